"""Which prefixes are where: block hash to holders, one by one while they are few, as bits beyond."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import islice
from typing import Final

from controlplane.domain.prefix import BlockHash, InventoryDelta, InventoryEntry, PrefixHit
from controlplane.domain.prefix_hits import Hits, Numbers, SharedHits

_NOBODY: Final[Mapping[str, InventoryEntry]] = {}

#: Holders of a block that are told one by one: as many as a choice looks at. Of more, a bit says who
#: holds it, which takes 2 KiB a block among 16,000 workers and an operation for all of them together.
HOLDERS_EACH_MAX: Final = 64
#: Numbers of workers that are gone before all are given anew: as many as there are, and some.
_GONE_MAX: Final = 1024


class _Crowd:
    """The holders of a block as bits."""

    __slots__ = ("attention", "state")

    def __init__(self) -> None:
        self.attention = 0
        self.state = 0

    def put(self, bit: int, entry: InventoryEntry) -> None:
        self.attention = self.attention | bit if entry.has_attention else self.attention & ~bit
        self.state = self.state | bit if entry.has_state else self.state & ~bit

    def drop(self, bit: int) -> None:
        self.attention &= ~bit
        self.state &= ~bit


class PrefixIndex:
    """
    Block hash to holders, for one router; fed by inventory deltas.

    Memory is bounded by what the workers hold: an entry leaves with the delta that removes it or
    with its worker. Lookup costs one dictionary access per block of the longest hit for each worker
    that holds the first one; where more than `HOLDERS_EACH_MAX` do, two operations on bits per block
    for all of them.
    """

    def __init__(self, *, each_max: int = HOLDERS_EACH_MAX) -> None:
        """
        Nothing is known yet.

        Args:
            each_max: Holders of a block that are told one by one, > 0.
        """
        self._each_max = each_max
        #: With so few left the bits are given up again; not sooner, or any heartbeat might change the
        #: form.
        self._few = each_max // 2
        self._holders: dict[BlockHash, dict[str, InventoryEntry]] = {}
        self._held: dict[str, set[BlockHash]] = {}
        #: Blocks with many holders.
        self._crowds: dict[BlockHash, _Crowd] = {}
        self._numbers = Numbers()

    def __repr__(self) -> str:
        return f"<PrefixIndex {len(self._holders)} blocks, {len(self._held)} workers>"

    def apply(self, worker_id: str, delta: InventoryDelta) -> None:
        """Take a worker's report into the index."""
        if delta.is_full:
            self.forget(worker_id)
        for block in delta.removed:
            self._remove(worker_id, block)
        held = self._held.setdefault(worker_id, set())
        for block, entry in delta.stored.items():
            if not (entry.has_attention or entry.has_state):
                self._remove(worker_id, block)
                continue
            holders = self._holders.setdefault(block, {})
            holders[worker_id] = entry
            held.add(block)
            if len(holders) > self._few:
                self._tell_crowd(block, holders, worker_id, entry)

    def forget(self, worker_id: str) -> None:
        """Drop everything known of a worker."""
        for block in tuple(self._held.get(worker_id, ())):
            self._remove(worker_id, block)
        self._held.pop(worker_id, None)

    def match(self, hashes: Sequence[BlockHash], *, block_tokens: int) -> Hits:
        """
        Hits of one prompt at every worker that holds its first block.

        Args:
            hashes: From `block_hashes`, with the same `block_tokens`.
            block_tokens: Tokens in a block.
        """
        if not hashes:
            return {}
        crowd = self._crowds.get(hashes[0])
        if crowd is not None:
            return self._match_crowd(hashes, block_tokens)
        first = self._holders.get(hashes[0], _NOBODY)
        return self._match_each(hashes, 0, list(first), block_tokens, {})

    def held_blocks(self, worker_id: str) -> int:
        """Blocks known to be at a worker."""
        return len(self._held.get(worker_id, ()))

    # --- One by one ---------------------------------------------------------------------------

    def _match_each(
        self,
        hashes: Sequence[BlockHash],
        start: int,
        alive: list[str],
        block_tokens: int,
        resumable: dict[str, int],
    ) -> dict[str, PrefixHit]:
        """Hits of workers that hold all blocks before `start`, and what they can resume from so far."""
        ended: dict[str, int] = {}
        tokens = start * block_tokens
        for block in islice(hashes, start, None):
            holders = self._holders.get(block, _NOBODY)
            matched: list[str] = []
            for worker_id in alive:
                entry = holders.get(worker_id)
                if entry is None or not entry.has_attention:
                    ended[worker_id] = tokens
                    continue
                matched.append(worker_id)
                if entry.has_state:
                    resumable[worker_id] = tokens + block_tokens
            alive = matched
            if not alive:
                break
            tokens += block_tokens
        ended.update(dict.fromkeys(alive, tokens))
        return {
            worker_id: PrefixHit(held_tokens, resumable.get(worker_id, 0))
            for worker_id, held_tokens in ended.items()
            if held_tokens
        }

    # --- As bits ------------------------------------------------------------------------------

    def _match_crowd(self, hashes: Sequence[BlockHash], block_tokens: int) -> SharedHits:
        """All at once, as long as the blocks have many holders; the few that go on one by one."""
        alive = self._crowds[hashes[0]].attention
        classes = _Classes()
        own: dict[str, PrefixHit] = {}
        tokens = 0
        for position, block in enumerate(hashes):
            crowd = self._crowds.get(block)
            if crowd is None:
                few = self._going_on(block, alive)
                alive &= ~_bits(few.values())
                resumable = {name: classes.resumable_tokens(number) for name, number in few.items()}
                own = self._match_each(hashes, position, list(few), block_tokens, resumable)
                break
            matched = alive & crowd.attention
            if matched != alive:
                classes.end(alive ^ matched, tokens)
                alive = matched
                if not alive:
                    break
            tokens += block_tokens
            classes.resume(alive & crowd.state, tokens)
        classes.end(alive, tokens)
        return SharedHits(self._numbers, classes.found, own)

    def _going_on(self, block: BlockHash, alive: int) -> dict[str, int]:
        """Numbers of the holders of a block that has few, those of them that are alive."""
        found = {}
        for name in self._holders.get(block, _NOBODY):
            number = self._numbers.get(name)
            if number is not None and alive >> number & 1:
                found[name] = number
        return found

    def _tell_crowd(
        self,
        block: BlockHash,
        holders: Mapping[str, InventoryEntry],
        worker_id: str,
        entry: InventoryEntry,
    ) -> None:
        self._number_anew_if_due()
        crowd = self._crowds.get(block)
        if crowd is not None:
            crowd.put(1 << self._numbers.of(worker_id), entry)
        elif len(holders) > self._each_max:
            self._crowds[block] = self._crowd_of(holders)

    def _crowd_of(self, holders: Mapping[str, InventoryEntry]) -> _Crowd:
        crowd = _Crowd()
        for name, its in holders.items():
            crowd.put(1 << self._numbers.of(name), its)
        return crowd

    def _number_anew_if_due(self) -> None:
        """Most numbers are of workers that are gone: hits that were told keep the old ones."""
        if len(self._numbers) > 2 * len(self._held) + _GONE_MAX:
            self._numbers = Numbers()
            self._crowds = {block: self._crowd_of(self._holders[block]) for block in self._crowds}

    def _remove(self, worker_id: str, block: BlockHash) -> None:
        holders = self._holders.get(block)
        if holders is None:
            return
        holders.pop(worker_id, None)
        if not holders:
            del self._holders[block]
        held = self._held.get(worker_id)
        if held is not None:
            held.discard(block)
        crowd = self._crowds.get(block)
        if crowd is not None:
            if len(holders) <= self._few:
                del self._crowds[block]
            else:
                crowd.drop(1 << self._numbers.of(worker_id))


class _Classes:
    """Workers of equal hits, found block by block."""

    __slots__ = ("_any_state", "_states", "found")

    def __init__(self) -> None:
        self.found: list[tuple[int, PrefixHit]] = []
        #: Who can resume where, in order of tokens, and who can anywhere up to there.
        self._states: list[tuple[int, int]] = []
        self._any_state = 0

    def resume(self, bits: int, tokens: int) -> None:
        """These workers hold the state behind so many tokens."""
        if bits:
            self._states.append((bits, tokens))
            self._any_state |= bits

    def end(self, bits: int, tokens: int) -> None:
        """These workers hold so many tokens and no more."""
        if not tokens:
            return
        rest = bits & self._any_state
        if bits != rest:
            self.found.append((bits ^ rest, PrefixHit(tokens, 0)))
        for state, resumable_tokens in reversed(self._states):
            if not rest:
                break
            part = rest & state
            if part:
                self.found.append((part, PrefixHit(tokens, resumable_tokens)))
                rest ^= part

    def resumable_tokens(self, number: int) -> int:
        """What one worker can resume from so far; 0 from nowhere."""
        for state, tokens in reversed(self._states):
            if state >> number & 1:
                return tokens
        return 0


def _bits(numbers: Collection[int]) -> int:
    bits = 0
    for number in numbers:
        bits |= 1 << number
    return bits
