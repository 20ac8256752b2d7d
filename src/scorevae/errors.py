"""The two things that may go wrong: a mistake that the user can mend, and what cannot be had."""

import click


class UserError(click.ClickException):
    """A wrong parameter, file or image: names it, its value and the remedy.

    Deriving from click's exception makes every entry point print ``Error: <message>`` on one
    line and exit with status 1, without a traceback; library callers catch it like any other.
    """


class Unavailable(Exception):
    """Something cannot be had here, because of what the message says, with what would help.

    No mistake: the rest goes on, and the report shows "–" with this reason.
    """


def in_words(error: Exception) -> str:
    """The message of an error, in a line; of one that was not foreseen its kind, too."""
    text = in_a_line(error, 300)
    foreseen = isinstance(error, Unavailable | UserError)
    return text if foreseen else f"{type(error).__name__}: {text}"


def in_a_line(message: object, most: int = 200) -> str:
    """What another library said, to be quoted: without line breaks, cut after ``most`` signs."""
    return " ".join(str(message).split())[:most]
