"""A bounded queue that is fair between tenants: each is served in its turn, each may wait a share."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Offered(Generic[T]):
    """What became of an arrival."""

    #: It waits now; else it is refused.
    is_taken: bool
    #: Who had to make room for it: this one no longer waits.
    evicted: T | None = None


class FairQueue(Generic[T]):
    """
    Items of tenants, handed out round robin over the tenants, oldest first within one.

    A tenant that floods the queue waits for itself: when the queue is full, an arrival of a tenant
    with fewer items takes the place of the newest item of the tenant with the most. Every
    operation takes constant time, but for dropping items that are too late, each once.

    Items must be hashable and differ.
    """

    def __init__(self, items_max: int) -> None:
        """
        Args:
            items_max: Items that may wait, >= 0.
        """
        self._items_max = items_max
        #: Tenants in the order of their turns, each with its items and their deadlines, oldest
        #: first. No tenant without an item.
        self._turns: OrderedDict[str, OrderedDict[T, float]] = OrderedDict()
        self._tenants: dict[T, str] = {}
        #: Tenants by how many items they have; no empty entry.
        self._by_count: dict[int, dict[str, None]] = {}
        self._count_max = 0

    def __len__(self) -> int:
        """Items that wait, those that are too late included until they are met."""
        return len(self._tenants)

    def __repr__(self) -> str:
        return f"<FairQueue {len(self)} of {self._items_max}, {len(self._turns)} tenants>"

    def count(self, tenant: str) -> int:
        """Items of one tenant."""
        return len(self._turns.get(tenant, ()))

    def offer(self, tenant: str, item: T, *, deadline_s: float) -> Offered[T]:
        """
        Queue an item, if there is room or room can fairly be made.

        Room is made only at a tenant that then still has as many items as this one: two tenants
        with equal shares do not push each other out.

        Args:
            tenant: Whose it is.
            item: What waits.
            deadline_s: When it is worth nothing any more, on the caller's clock.

        Mutates: the queue.
        """
        evicted: T | None = None
        if len(self._tenants) >= self._items_max:
            if self._count_max <= self.count(tenant) + 1:
                return Offered(is_taken=False)
            crowded = next(iter(self._by_count[self._count_max]))
            evicted = next(reversed(self._turns[crowded]))
            self.remove(evicted)
        items = self._turns.setdefault(tenant, OrderedDict())
        items[item] = deadline_s
        self._tenants[item] = tenant
        self._recount(tenant, len(items) - 1, len(items))
        return Offered(is_taken=True, evicted=evicted)

    def take(self, now_s: float) -> T | None:
        """
        The next item in turn, or None when nothing waits; what is too late is dropped.

        Mutates: the queue. An item is handed out once, and never at or after its deadline.
        """
        while self._turns:
            tenant, items = next(iter(self._turns.items()))
            item, deadline_s = next(iter(items.items()))
            self.remove(item)
            if deadline_s > now_s:
                if tenant in self._turns:
                    self._turns.move_to_end(tenant)
                return item
        return None

    def remove(self, item: T) -> bool:
        """
        Forget an item; False when it does not wait here. Its tenant keeps its turn.

        Mutates: the queue.
        """
        tenant = self._tenants.pop(item, None)
        if tenant is None:
            return False
        items = self._turns[tenant]
        del items[item]
        self._recount(tenant, len(items) + 1, len(items))
        if not items:
            del self._turns[tenant]
        return True

    def _recount(self, tenant: str, old: int, new: int) -> None:
        """Keep tenants by their count; counts change by one, so the largest is at hand."""
        if old:
            del self._by_count[old][tenant]
            if not self._by_count[old]:
                del self._by_count[old]
        if new:
            self._by_count.setdefault(new, {})[tenant] = None
        if new > self._count_max or self._count_max not in self._by_count:
            self._count_max = new


#: The pace is an average over about so many ended requests: fewer follow noise, more do not follow
#: a new kind of load.
_MEMORY_REQUESTS: Final = 100


@dataclass(frozen=True, slots=True)
class Pace:
    """
    How fast places become free: requests that ended for each second of a held place.

    Counted by held places, not by time alone, so that it also holds for the moment when a quiet
    router is flooded; both sums forget, in step.
    """

    #: Up to when it is counted, on the caller's clock.
    seen_s: float
    running: int = 0
    held_s: float = 0.0
    ended: float = 0.0

    def now(self, now_s: float, *, running: int, has_ended: bool = False) -> Pace:
        """The pace from `now_s` on, when so many requests hold a place. Pure."""
        held_s = self._held_s(now_s)
        if not has_ended:
            return Pace(now_s, running, held_s, self.ended)
        keep = 1 - 1 / _MEMORY_REQUESTS
        return Pace(now_s, running, held_s * keep, self.ended * keep + 1)

    def per_s(self, now_s: float) -> float:
        """Requests that end in a second as things stand, >= 0; 0 when none ever ended. Pure."""
        held_s = self._held_s(now_s)
        return self.ended / held_s * self.running if held_s > 0 else 0.0

    def _held_s(self, now_s: float) -> float:
        return self.held_s + self.running * max(0.0, now_s - self.seen_s)


def time_to_place_s(*, ahead: int, per_s: float, longest_s: float) -> float:
    """
    What a refused client is asked to wait at least. Pure.

    Args:
        ahead: Requests that get a place before this one would, >= 0.
        per_s: Places that become free in a second, >= 0.
        longest_s: The answer when it takes longer, or when nothing ends at all. >= 1.

    Returns:
        Estimate of the time until a place is free, in seconds, from 1 to `longest_s`.
    """
    if per_s <= 0:
        return longest_s
    return max(1.0, min(longest_s, (ahead + 1) / per_s))
