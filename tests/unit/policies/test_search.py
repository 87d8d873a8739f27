from __future__ import annotations

from random import Random

import pytest
from builders import a_link, a_request, a_view, a_worker
from hypothesis import given
from hypothesis import strategies as st

from controlplane.domain.cluster import WorkerView
from controlplane.domain.decision import RequestFeatures
from controlplane.domain.estimate import predict
from controlplane.domain.prefix import PrefixHit
from controlplane.domain.prefix_hits import Numbers, SharedHits
from controlplane.domain.sites import share_of
from policies.search import HOLDERS_MAX, Feasible, best_of_sites, find_holders, least_busy, looks
from policies.survey import survey

amounts = st.sampled_from((0, 1)) | st.integers(0, 100_000)


def feasible(request: RequestFeatures, *workers: object, **overrides: object) -> Feasible:
    decode = a_worker("west/d1")
    view = a_view(decode, *workers, **overrides)  # type: ignore[arg-type]
    groups = [one for one in survey(request, view) if one.kind.role == "prefill"]
    find_holders(request, view, groups)
    return Feasible(request, view, decode, groups, looks(view, len(groups)))


@given(
    st.lists(
        st.tuples(
            st.sampled_from(("east", "west")),
            amounts,
            st.floats(0, 0.01),
            st.sampled_from((0.0, 1e-6)),
            st.sampled_from((1.0, 1.0, 0.3)),
            st.integers(0, 6),
        ),
        min_size=1,
        max_size=20,
    ),
    amounts,
    st.floats(1e3, 1e10),
)
def test_the_best_of_a_datacenter_is_that_of_the_full_prediction(
    drawn: list[tuple[str, int, float, float, float, int]], reserved_bytes: int, capacity_bps: float
) -> None:
    """The quick arithmetic of the search agrees with `predict` to the last bit."""
    workers = [
        a_worker(
            f"{site}/p{number}",
            pending_tokens=pending,
            prefill_s_per_token=per_token,
            prefill_s_per_token_squared=squared,
            share=share,
        )
        for number, (site, pending, per_token, squared, share, _) in enumerate(drawn)
    ]
    hits = {
        worker.worker_id: PrefixHit(16 * one[5], 16 * one[5])
        for worker, one in zip(workers, drawn, strict=True)
    }
    request = a_request(prefix_hits=hits)
    link = a_link(reserved_bytes=reserved_bytes, capacity_bps=capacity_bps)
    these = feasible(request, *workers, links=(link,))

    found = {one.datacenter: one for one in best_of_sites(these, Random(0))}

    for site in {worker.datacenter for worker in workers}:
        costs = {
            one.worker_id: predict(request, one, these.decode, these.view).ttft_s / share_of(one)
            for one in workers
            if one.datacenter == site
        }
        assert costs[found[site].worker_id] == min(costs.values())


def chosen(*workers: WorkerView, hits: dict[str, PrefixHit] | None = None) -> set[str]:
    these = feasible(a_request(prefix_hits=hits or {}), *workers)
    return {best_of_sites(these, Random(seed))[0].worker_id for seed in range(200)}


def test_idle_workers_as_fast_as_measurements_tell_share_the_work() -> None:
    alike = [a_worker(f"west/p{n}", prefill_s_per_token=1e-3 * (1 + n / 100)) for n in range(6)]
    slower = a_worker("west/slow", prefill_s_per_token=1.2e-3)

    assert chosen(*alike, slower) == {one.worker_id for one in alike}


def test_a_hit_or_a_queue_is_no_noise() -> None:
    workers = [
        a_worker("west/p0", prefill_s_per_token=1e-3),
        a_worker("west/p1", prefill_s_per_token=1.01e-3),
        a_worker("west/busy", prefill_s_per_token=1e-3, pending_tokens=8),
    ]

    assert chosen(*workers) == {"west/p0", "west/p1"}
    assert chosen(*workers, hits={"west/p1": PrefixHit(64, 64)}) == {"west/p1"}


def test_workers_have_numbers_in_order_of_their_ids() -> None:
    these = feasible(a_request(), a_worker("west/p2"), a_worker("east/p1"), a_worker("west/p1"))

    assert len(these) == 3
    names = [these[number].worker_id for number in range(3)]
    assert names == ["east/p1", "west/p1", "west/p2"]
    with pytest.raises(IndexError):
        these[3]


def test_those_worth_a_look_come_once() -> None:
    request = a_request(prefix_hits={"west/p1": PrefixHit(16, 16)})
    these = feasible(request, a_worker("west/p1"), a_worker("west/p2"))

    seen = [one.worker_id for one in these.looked_at(Random(0))]

    assert seen == ["west/p1", "west/p2"]


def test_the_start_among_many_equals_is_by_chance() -> None:
    these = feasible(a_request(), *(a_worker(f"west/p{n:02}") for n in range(30)))
    (group,) = these.groups

    firsts = {least_busy(group, 3, Random(seed))[0].worker_id for seed in range(200)}

    assert len(firsts) == 30


def test_nothing_is_drawn_when_the_least_busy_are_known() -> None:
    workers = [a_worker(f"west/p{n:02}", pending_tokens=n) for n in range(30)]
    (group,) = feasible(a_request(), *workers).groups
    rng = Random(0)
    before = rng.getstate()

    found = least_busy(group, 3, rng)

    assert [one.worker_id for one in found] == ["west/p00", "west/p01", "west/p02"]
    assert rng.getstate() == before


def test_of_many_that_hold_something_the_longest_are_looked_at() -> None:
    workers = [a_worker(f"west/p{n:03}") for n in range(HOLDERS_MAX + 20)]
    hits = {one.worker_id: PrefixHit(n, n) for n, one in enumerate(workers, start=1)}
    view = a_view(*workers)

    (group,) = survey(a_request(), view)

    find_holders(a_request(prefix_hits=hits), view, [group])

    assert len(group.held) == HOLDERS_MAX
    assert min(one.worker_id for one in group.held) == "west/p020"


def test_a_prefix_that_all_hold_is_counted_for_those_that_are_looked_at() -> None:
    workers = [a_worker(f"west/p{n:03}", pending_tokens=n) for n in range(HOLDERS_MAX + 20)]
    hits = {one.worker_id: PrefixHit(64, 64) for one in workers}
    these = feasible(a_request(prefix_hits=hits), *workers)

    assert these.by_site() == {"west": (len(workers), 36)}


def a_crowd(*names: str, **own: PrefixHit) -> SharedHits:
    """Workers of the west that hold the same, and others by name with hits of their own."""
    numbers = Numbers()
    bits = sum(1 << numbers.of(name) for name in names)
    return SharedHits(
        numbers, [(bits, PrefixHit(64, 64))], {f"west/{name}": one for name, one in own.items()}
    )


def test_of_a_crowd_of_holders_one_with_little_to_do_is_found() -> None:
    """However few of the least busy are looked at otherwise."""
    workers = [a_worker(f"west/p{n:03}", pending_tokens=n) for n in range(300)]
    names = [one.worker_id for number, one in enumerate(workers) if number % 3 == 2]
    these = feasible(a_request(prefix_hits=a_crowd(*names)), *workers)
    these.looks = 1

    seen = [one.worker_id for one in these.looked_at(Random(0))]

    assert seen == ["west/p002", "west/p000"]


def test_who_holds_more_than_the_crowd_is_found_however_busy() -> None:
    workers = [a_worker(f"west/p{n:03}", pending_tokens=n) for n in range(300)]
    names = [one.worker_id for one in workers[:200]]
    hits = a_crowd(*names, p299=PrefixHit(80, 80))
    these = feasible(a_request(prefix_hits=hits), *workers)
    these.looks = 1

    seen = [one.worker_id for one in these.looked_at(Random(0))]

    assert seen == ["west/p299", "west/p000"]


def test_of_a_crowd_that_cannot_take_the_request_nobody_is_looked_at() -> None:
    workers = [
        a_worker(f"west/p{n:03}", pending_tokens=n, is_draining=n % 2 == 0) for n in range(300)
    ]
    names = [one.worker_id for number, one in enumerate(workers) if number % 2 == 0]
    these = feasible(a_request(prefix_hits=a_crowd(*names)), *workers)
    these.looks = 1

    assert [one.worker_id for one in these.looked_at(Random(0))] == ["west/p001"]
