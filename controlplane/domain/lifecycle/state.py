"""Where a request can be."""

from __future__ import annotations

from enum import Enum
from typing import Final

_TERMINAL: Final = frozenset({"done", "failed", "cancelled", "rejected"})


class State(Enum):
    """Where a request is."""

    ADMITTED = "admitted"
    QUEUED = "queued"
    PREFILLING = "prefilling"
    TRANSFERRING = "transferring"
    DECODING = "decoding"
    MIGRATING = "migrating"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    REJECTED = "rejected"

    def __init__(self, value: str) -> None:
        #: Nothing comes after it. Kept, because each request asks for it a dozen times.
        self.is_terminal = value in _TERMINAL

    #: By identity: an `Enum` hashes its name, in Python, each time it is looked up in a table.
    __hash__ = object.__hash__
