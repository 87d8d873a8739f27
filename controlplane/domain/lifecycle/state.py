"""Where a request can be."""

from __future__ import annotations

from enum import Enum


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

    @property
    def is_terminal(self) -> bool:
        """Nothing comes after it."""
        return self in _TERMINAL


_TERMINAL = frozenset({State.DONE, State.FAILED, State.CANCELLED, State.REJECTED})
