"""How much of an engine's time prefill may take beside decode: an account of seconds, nothing else."""

from __future__ import annotations


class PrefillShare:
    """
    Lets prefill have at most a part of the time while there is something to decode.

    Each second of decode earns prefill `share / (1 - share)` seconds, each second of prefill is paid
    from that. A block of prefill cannot be cut, so it may begin as soon as nothing is owed, and what
    it takes too much is owed afterwards: in any stretch of work with something to decode, prefill has
    at most its share and one block. Nothing is saved up but what one step earns: a block that comes
    after a long time without prefill finds no more than one that comes at once.
    """

    def __init__(self) -> None:
        """Without a bound."""
        self._share: float | None = None
        self._owed_s = 0.0

    def __repr__(self) -> str:
        return f"<PrefillShare {self._share}, {self._owed_s:.4f} s owed>"

    def set(self, share: float | None) -> None:
        """
        Bound prefill from now on; what is owed stays owed.

        Args:
            share: Part of the time, 0 < share < 1; None for no bound.

        Raises:
            ValueError: Not such a part.
        """
        if share is not None and not 0 < share < 1:
            raise ValueError(f"a share is more than 0 and less than 1, got {share}")
        self._share = share
        if share is None:
            self._owed_s = 0.0

    @property
    def has_turn(self) -> bool:
        """Whether prefill may take a block now, if there is something to decode."""
        return self._owed_s <= 0

    def prefilled(self, taken_s: float, *, has_decode: bool) -> None:
        """A block took so long; it is free while there is nothing to decode."""
        if self._share is not None and has_decode:
            self._owed_s += taken_s

    def decoded(self, taken_s: float) -> None:
        """A decode step took so long."""
        if self._share is not None:
            earned_s = taken_s * self._share / (1 - self._share)
            # What one step earns too much counts for the next block, or shares would be rounded down.
            self._owed_s = max(-earned_s, self._owed_s - earned_s)

    def idle(self) -> None:
        """There is nothing to decode: what was owed, nobody misses any more."""
        self._owed_s = 0.0
