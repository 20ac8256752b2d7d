"""The one exception for mistakes that the user can mend."""

import click


class UserError(click.ClickException):
    """A wrong parameter, file or image: names it, its value and the remedy.

    Deriving from click's exception makes every entry point print ``Error: <message>`` on one
    line and exit with status 1, without a traceback; library callers catch it like any other.
    """


class MetricUnavailable(Exception):
    """A metric cannot be computed here; the message says why and what would help."""
