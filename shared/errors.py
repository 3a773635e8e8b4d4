"""The one exception that users are meant to see."""


class BitlawError(ValueError):
    """Bad input: one sentence that says what is wrong, where, and what to do.

    The command line prints the sentence without a traceback and exits with 2.
    """


def nearest(word: str, known: list[str]) -> str:
    """A hint such as ``, did you mean 'smoke'?`` when ``known`` holds something close to ``word``, else ``''``."""
    import difflib

    close = difflib.get_close_matches(word, known, n=1)
    return f", did you mean '{close[0]}'?" if close else ""
