"""What a decision record keeps of the cluster: all of it, or what explains the decision."""

from __future__ import annotations

from random import Random

from builders import a_request, a_view, a_worker
from router_builders import MemoryRouter, a_busy_beat

from controlplane.domain.cluster import RECORDED_WORKERS_MAX, ClusterView, WorkerView, recorded
from controlplane.domain.decision import CANDIDATES_MAX
from controlplane.router.records import decode_record, encode_record, replay
from policies.api import Parameters
from policies.round_robin import RoundRobinPolicy


def many(count: int) -> tuple[WorkerView, ...]:
    """Prefill and decode workers in turn."""
    return tuple(a_worker(f"west/{'dp'[n % 2]}{n:03}") for n in range(count))


async def test_a_record_of_a_small_fleet_has_the_whole_view_and_replays(
    router: MemoryRouter,
) -> None:
    await router.serve()

    (attempt,) = (await router.record()).attempts
    assert len(attempt.view.workers) == 5
    assert attempt.view.workers_omitted == 0
    assert replay(attempt) == attempt.decision


async def test_a_record_of_a_large_fleet_has_its_candidates_and_says_so(
    router: MemoryRouter,
) -> None:
    await router.register(*(a_busy_beat(f"west/p{n}") for n in range(100, 200)))

    await router.serve()

    record = await router.record()
    (attempt,) = record.attempts
    named = {one.worker_id for one in attempt.decision.candidates}
    assert {worker.worker_id for worker in attempt.view.workers} == named
    assert 2 < len(named) <= CANDIDATES_MAX
    assert attempt.view.workers_omitted == 105 - len(named)
    assert decode_record(encode_record(record)) == record
    assert len(encode_record(record)) < 40_000


def test_up_to_the_bound_a_decision_replays_from_what_is_kept() -> None:
    view = a_view(*many(RECORDED_WORKERS_MAX))

    assert replays_from_kept(view)


def test_beyond_the_bound_it_does_not_and_no_cut_would() -> None:
    """Whose turn it is follows from how many there are: the reason why the whole is kept below."""
    view = a_view(*many(RECORDED_WORKERS_MAX + 2))

    assert not replays_from_kept(view)


def replays_from_kept(view: ClusterView) -> bool:
    policy, request = RoundRobinPolicy(Parameters()), a_request(sequence=31)
    decision = policy.decide(request, view, Random(7))
    kept = recorded(view, [one.worker_id for one in decision.candidates])
    return policy.decide(request, kept, Random(7)) == decision
