"""What a source says about itself, for ``meta.json``."""

from typing import Any, NamedTuple


class Origin(NamedTuple):
    """Source and terms in words, and whatever else a reader of the data wants to know."""

    source: str
    licence: str
    details: dict[str, Any]
