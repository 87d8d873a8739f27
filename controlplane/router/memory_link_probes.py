"""`LinkProber` without a network: the twin of `http_link_probes.py`, told who would answer what."""

from __future__ import annotations

from controlplane.router.link_probes import Way, WaySign


class MemoryLinkProber:
    """Answers as it was told; a way that it was told nothing of is open."""

    def __init__(self) -> None:
        #: By URL of the prefill worker.
        self.signs: dict[str, WaySign] = {}
        #: Ways in the order they were probed.
        self.crossed: list[Way] = []
        self._is_closed = False

    def __repr__(self) -> str:
        return f"<MemoryLinkProber {len(self.crossed)} probes>"

    async def cross(self, way: Way, *, timeout_s: float) -> WaySign:
        """Whether a way is open; see the contract."""
        del timeout_s
        if self._is_closed:
            return "unknown"
        self.crossed.append(way)
        return self.signs.get(way.owner_url, "answered")

    async def close(self) -> None:
        """Nothing is open."""
        self._is_closed = True
