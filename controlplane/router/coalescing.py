"""
One prefill for requests with a common prefix that come at the same time.

The first one computes it, the others wait until it has, and are then told where the prefix is:
a worker's own report of its cache comes with its next heartbeat, up to a second later.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from controlplane.domain.prefix import BlockHash, PrefixHit

#: Prefixes that are remembered after their prefill, until workers tell of them themselves.
_RECENT_MAX = 4096


@dataclass(slots=True, eq=False)
class Lead:
    """A request that computes a prefix."""

    #: Under which it is found.
    keys: tuple[BlockHash, ...]
    prefill_worker: str
    over: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True, slots=True)
class _Recent:
    """A prefix that was computed a moment ago."""

    prefill_worker: str
    until_s: float


class Coalescing:
    """The prefixes that one router has under way."""

    def __init__(
        self,
        *,
        tokens_min: int,
        waiters_max: int,
        hint_s: float,
        clock: Callable[[], float],
    ) -> None:
        """
        None.

        Args:
            tokens_min: Shorter common prefixes are not waited for, > 0.
            waiters_max: Requests that may wait at the same time.
            hint_s: How long a finished prefill is told of; two heartbeats.
            clock: Monotonic seconds.
        """
        self._tokens_min = tokens_min
        self._waiters_max = waiters_max
        self._hint_s = hint_s
        self._clock = clock
        self._leads: dict[BlockHash, Lead] = {}
        self._recent: OrderedDict[BlockHash, _Recent] = OrderedDict()
        self._waiters = 0

    def __repr__(self) -> str:
        return f"<Coalescing {len(self._leads)} prefixes under way, {self._waiters} waiting>"

    @property
    def waiters(self) -> int:
        """Requests that wait."""
        return self._waiters

    @property
    def under_way(self) -> int:
        """Keys of prefixes that are being computed."""
        return len(self._leads)

    def is_worth(self, tokens: int) -> bool:
        """Whether a prefix of so many uncached tokens is long enough."""
        return tokens >= self._tokens_min

    def lead(self, hashes: Sequence[BlockHash], *, block_tokens: int, prefill_worker: str) -> Lead:
        """Say that a request now computes its prefix; `over` must be called when it is done."""
        keys = tuple(
            hashes[count - 1]
            for count in _lengths(len(hashes))
            if count * block_tokens >= self._tokens_min
        )
        lead = Lead(keys, prefill_worker)
        for key in keys:
            self._leads.setdefault(key, lead)
        return lead

    def over(self, lead: Lead, *, is_computed: bool) -> None:
        """A prefill is done, or given up. Idempotent."""
        if lead.over.is_set():
            return
        lead.over.set()
        recent = _Recent(lead.prefill_worker, self._clock() + self._hint_s)
        for key in lead.keys:
            if self._leads.get(key) is lead:
                del self._leads[key]
            if is_computed:
                self._recent[key] = recent
                self._recent.move_to_end(key)
        while len(self._recent) > _RECENT_MAX:
            self._recent.popitem(last=False)

    async def wait(
        self, hashes: Sequence[BlockHash], *, block_tokens: int, cached_tokens: int, within_s: float
    ) -> bool:
        """
        Wait until nobody computes a long part of this prefix; whether there was anybody.

        Args:
            hashes: Of the request.
            block_tokens: Tokens of each.
            cached_tokens: What some prefill worker holds of it already.
            within_s: At most so long.
        """
        if not self._leads or self._waiters >= self._waiters_max:
            return False
        has_waited = False
        self._waiters += 1
        try:
            async with asyncio.timeout(within_s):
                while (lead := self._find(hashes, block_tokens, cached_tokens)) is not None:
                    has_waited = True
                    await lead.over.wait()
        except TimeoutError:
            return has_waited
        finally:
            self._waiters -= 1
        return has_waited

    def hints(self, hashes: Sequence[BlockHash], *, block_tokens: int) -> dict[str, PrefixHit]:
        """What prefill workers are known to hold although they have not said so yet."""
        if not self._recent:
            return {}
        now_s = self._clock()
        for count in range(len(hashes), 0, -1):
            recent = self._recent.get(hashes[count - 1])
            if recent is None:
                continue
            if recent.until_s <= now_s:
                del self._recent[hashes[count - 1]]
                continue
            tokens = count * block_tokens
            hit = PrefixHit(attention_tokens=tokens, resumable_tokens=tokens)
            return {recent.prefill_worker: hit}
        return {}

    def _find(
        self, hashes: Sequence[BlockHash], block_tokens: int, cached_tokens: int
    ) -> Lead | None:
        """Who computes the longest part of it; None if that is not worth a wait."""
        shortest = -(-(cached_tokens + self._tokens_min) // block_tokens)
        for count in range(len(hashes), shortest - 1, -1):
            lead = self._leads.get(hashes[count - 1])
            if lead is not None:
                return lead
        return None


def _lengths(blocks: int) -> list[int]:
    """
    The lengths under which a prefix of so many blocks is found: the whole, and powers of two.

    Another request with a common prefix finds at least half of it; one whose prompt goes on where
    this one ends finds all of it.
    """
    lengths = [1 << power for power in range(blocks.bit_length()) if 1 << power < blocks]
    return [*lengths, blocks] if blocks else []
