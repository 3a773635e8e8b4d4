"""Results for readers: claims and verdicts, figures, the HTML page, flat metrics, comparison with committed goldens.

Every number comes from a file under `reports/`; nothing here fits, and nothing here knows a paper.
"""
