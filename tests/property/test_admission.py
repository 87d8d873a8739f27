"""Whatever comes, waits, leaves and ends: bounds, fair shares, and nobody lost or served twice."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from controlplane.domain.fair_queue import FairQueue

TENANTS = "abcde"

steps = st.one_of(
    st.tuples(st.just("offer"), st.sampled_from(TENANTS), st.integers(1, 20)),
    st.tuples(st.just("take"), st.just(""), st.just(0)),
    st.tuples(st.just("remove"), st.just(""), st.integers(0, 200)),
    st.tuples(st.just("tick"), st.just(""), st.integers(1, 5)),
)


@given(items_max=st.integers(0, 12), course=st.lists(steps, max_size=200))
def test_every_item_has_exactly_one_fate(
    items_max: int, course: list[tuple[str, str, int]]
) -> None:
    """Handed out in time, evicted, removed, too late, or still waiting; against a plain list."""
    queue: FairQueue[int] = FairQueue(items_max)
    waiting: dict[int, tuple[str, int]] = {}
    now_s = 0
    for number, (what, tenant, value) in enumerate(course):
        if what == "tick":
            now_s += value
        elif what == "remove":
            assert queue.remove(value) == (waiting.pop(value, None) is not None)
        elif what == "offer":
            counts = Counter(owner for owner, _ in waiting.values())
            offered = queue.offer(tenant, number, deadline_s=now_s + value)
            if len(waiting) < items_max:
                assert offered.is_taken
                assert offered.evicted is None
            elif offered.is_taken:
                assert offered.evicted is not None
                owner, _ = waiting.pop(offered.evicted)
                assert counts[owner] == max(counts.values()) > counts[tenant] + 1
            else:
                assert max(counts.values(), default=0) <= counts[tenant] + 1
            if offered.is_taken:
                waiting[number] = (tenant, now_s + value)
        else:
            item = queue.take(now_s)
            if item is None:
                assert all(deadline_s <= now_s for _, deadline_s in waiting.values())
                waiting.clear()
            else:
                owner, deadline_s = waiting.pop(item)
                assert deadline_s > now_s
                older = [n for n, (who, due) in waiting.items() if who == owner and n < item]
                assert all(waiting[n][1] <= now_s for n in older), "oldest first within a tenant"
                waiting = {n: w for n, w in waiting.items() if n not in older}
        assert len(queue) <= items_max
        assert {n for n in waiting if waiting[n][1] > now_s} <= set(queue._tenants)


@given(
    rates=st.dictionaries(st.sampled_from(TENANTS), st.integers(1, 40), min_size=1),
    items_max=st.integers(50, 100),
    served_per_round=st.integers(1, 10),
)
def test_no_tenant_gets_less_than_its_fair_share(
    rates: dict[str, int], items_max: int, served_per_round: int
) -> None:
    """Max-min fair over tenants that keep asking, however unequal their rates."""
    rounds = 60
    queue: FairQueue[tuple[str, int, int]] = FairQueue(items_max)
    served: Counter[str] = Counter()
    for number in range(rounds):
        for tenant, rate in rates.items():
            for one in range(rate):
                queue.offer(tenant, (tenant, number, one), deadline_s=1e9)
        for _ in range(served_per_round):
            item = queue.take(0)
            if item is not None:
                served[item[0]] += 1

    share = fair_share(rates, served_per_round)
    for tenant, rate in rates.items():
        # Rounding: a tenant waits at most one turn of all the others longer.
        assert served[tenant] >= 0.8 * min(rate, share) * rounds - len(rates) - 1, (tenant, served)


def fair_share(rates: dict[str, int], capacity: int) -> float:
    """The largest share that no tenant exceeds when the capacity is used up (water filling)."""
    left, asking = float(capacity), sorted(rates.values())
    for place, rate in enumerate(asking):
        share = left / (len(asking) - place)
        if rate >= share:
            return share
        left -= rate
    return float(max(asking))
