"""
What an agent tells of its server's prefix cache: the server's own events, or a guess.

Events that never match what was sent (another block size, a hash of something else, the wrong port)
would silently make every hit zero. So each prompt that was sent is looked for in the events a moment
later; when none is found time after time, that is said, and the guess is told instead.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Final

from controlplane.domain.prefix import BlockHash, InventoryDelta, InventoryEntry
from controlplane.observe.logs import get_logger
from controlplane.wire_types import INVENTORY_BLOCKS_MAX
from workers.engines.kv_events.decode import decode_batch
from workers.engines.kv_events.index import BlockIndex
from workers.engines.kv_events.order import Step
from workers.engines.kv_events.routed import RoutedBlocks

_log = get_logger()

#: Events of a prompt have come so long after its answer, or never.
_MATCH_S: Final = 2.0
#: Prompts that wait for that at the same time; others are not looked for.
_WAITING_MAX: Final = 64
#: So many prompts in a row without a block: the events are of something else.
_MISSES_MAX: Final = 8


class ServerInventory:
    """Used on the event loop's thread alone."""

    def __init__(
        self, ranks: Sequence[BlockIndex], routed: RoutedBlocks | None, *, match_s: float = _MATCH_S
    ) -> None:
        """
        Args:
            ranks: An index for each source of events; none where the server sends no events.
            routed: The guess; None for a server without a prefix cache.
            match_s: Seconds that events get after an answer.
        """
        self._ranks = tuple(ranks)
        self._routed = routed
        self._match_s = match_s
        self._changed: set[BlockHash] = set()
        self._misses = 0
        #: First blocks of prompts that events should have told of by then.
        self._awaited: deque[tuple[float, BlockHash]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._wants_full = True
        #: Prompts that no event told of.
        self.unmatched_total = 0
        #: What is told is a guess.
        self.is_approximate = not self._ranks

    def __repr__(self) -> str:
        kind = "guessed" if self.is_approximate else "told"
        return f"<ServerInventory {kind}, {self.unmatched_total} prompts unmatched>"

    def take(self, *, is_full: bool) -> InventoryDelta:
        """Changes since the last call, or everything; see the engine contract."""
        changed, self._changed = self._changed, set()
        if is_full or self._wants_full:
            self._wants_full = False
            everything = islice(self._known().items(), INVENTORY_BLOCKS_MAX)
            return InventoryDelta(is_full=True, stored=dict(everything))
        stored = {block: entry for block in changed if (entry := self._entry(block)) is not None}
        gone = tuple(block for block in changed if block not in stored)
        if len(changed) > INVENTORY_BLOCKS_MAX:
            return self.take(is_full=True)
        return InventoryDelta(stored=stored, removed=gone)

    def hear(self, rank: int, step: Step) -> None:
        """
        One step of a source's events.

        Raises:
            ValueError: The batch cannot be read.
        """
        index = self._ranks[rank]
        changed = index.clear() if step is None else index.apply(decode_batch(step))
        if not self.is_approximate:
            self._changed |= changed

    def sent(self, hashes: Sequence[BlockHash]) -> None:
        """The server has answered for a prompt with these full blocks."""
        if self._routed is None or not hashes:
            return
        changed = self._routed.sent(hashes)
        if self.is_approximate:
            self._changed |= changed
        if self._ranks and len(self._awaited) < _WAITING_MAX:
            loop = asyncio.get_running_loop()
            self._awaited.append((loop.time() + self._match_s, hashes[0]))
            if self._timer is None:
                self._timer = loop.call_later(self._match_s, self._look)

    def restarted(self) -> None:
        """The server has begun anew, with an empty cache."""
        for index in self._ranks:
            index.clear()
        if self._routed is not None:
            self._routed.clear()
        self._wants_full = True

    def close(self) -> None:
        """Look for nothing any more. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()

    # --- Parts --------------------------------------------------------------------------------

    def _known(self) -> Mapping[BlockHash, InventoryEntry]:
        if self.is_approximate:
            return {} if self._routed is None else self._routed.entries
        if len(self._ranks) == 1:
            return self._ranks[0].entries
        blocks = dict.fromkeys(block for index in self._ranks for block in index.entries)
        return {block: entry for block in blocks if (entry := self._entry(block)) is not None}

    def _entry(self, block: BlockHash) -> InventoryEntry | None:
        if self.is_approximate:
            return None if self._routed is None else self._routed.entries.get(block)
        found = [entry for index in self._ranks if (entry := index.entries.get(block)) is not None]
        if len(found) < 2:  # noqa: PLR2004 - nothing to be added up
            return found[0] if found else None
        # Which rank a request goes to is the server's choice; what any of them has can be had.
        return InventoryEntry(
            has_attention=any(entry.has_attention for entry in found),
            has_state=any(entry.has_state for entry in found),
        )

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        while self._awaited and self._awaited[0][0] <= loop.time():
            self._look_for(self._awaited.popleft()[1])
        self._timer = loop.call_at(self._awaited[0][0], self._look) if self._awaited else None

    def _look_for(self, block: BlockHash) -> None:
        is_found = any(block in index.entries for index in self._ranks)
        self._misses = 0 if is_found else self._misses + 1
        self.unmatched_total += not is_found
        if is_found and self.is_approximate:
            _log.info("kv_events.matched")
            self._tell(is_approximate=False)
        elif self._misses >= _MISSES_MAX and not self.is_approximate:
            _log.error("kv_events.unmatched", count=self._misses)
            self._tell(is_approximate=True)

    def _tell(self, *, is_approximate: bool) -> None:
        self.is_approximate, self._wants_full = is_approximate, True
