"""The one exception that users are meant to see."""

LONGEST = 2000  # characters of a sentence


class BitlawError(ValueError):
    """Bad input: one sentence that says what is wrong, where, and what to do.

    The command line prints the sentence without a traceback and exits with 2.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(one_line(sentence))


def one_line(text: str) -> str:
    """What can be printed, in one line of at most `LONGEST` characters; anything else is shown by its escape.

    Sentences quote cells, keys and names of files: whoever wrote those must not write lines, or commands to the
    terminal, into them.
    """
    text = text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def nearest(word: str, known: list[str]) -> str:
    """A hint such as ``, did you mean 'smoke'?`` when ``known`` holds something close to ``word``, else ``''``."""
    import difflib

    close = difflib.get_close_matches(word, known, n=1)
    return f", did you mean '{close[0]}'?" if close else ""


def not_kept(error: OSError) -> BitlawError:
    """What a full disk or a folder that cannot be written says of a sweep; some errors know no file."""
    where = f" at {error.filename}" if error.filename else ""
    return BitlawError(f"{error.strerror or error}{where}: what was finished is kept, mend it and run again")
