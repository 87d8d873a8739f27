"""`Prober` without a network: the twin of `http_probes.py`, told who would answer what."""

from __future__ import annotations

from controlplane.router.probes import NoBeat
from controlplane.wire import WorkerBeat


class MemoryProber:
    """Answers as it was told; at an address that it was told nothing of, nobody listens."""

    def __init__(self) -> None:
        #: By URL.
        self.answers: dict[str, WorkerBeat | NoBeat] = {}
        #: URLs in the order they were asked.
        self.asked: list[str] = []
        self._is_closed = False

    def __repr__(self) -> str:
        return f"<MemoryProber {len(self.answers)} answers>"

    async def ask(self, url: str) -> WorkerBeat | NoBeat:
        """What a worker says of itself; see the contract."""
        if self._is_closed:
            return "silent"
        self.asked.append(url)
        return self.answers.get(url, "refused")

    async def close(self) -> None:
        """Nothing is open."""
        self._is_closed = True
