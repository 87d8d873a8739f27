from __future__ import annotations

from random import Random

from prfaas_maintenance import MaintenanceParameters, MaintenancePolicy

from controlplane.domain.cluster import ClusterView, LinkView, WorkerView
from controlplane.domain.decision import Decision, RequestFeatures
from controlplane.domain.prefix import PrefixHit


def a_worker(worker_id: str, *, pending_tokens: int = 0) -> WorkerView:
    datacenter, _, name = worker_id.partition("/")
    return WorkerView(
        worker_id=worker_id,
        datacenter=datacenter,
        role="decode" if name.startswith("d") else "prefill",
        incarnation="i1",
        url="http://127.0.0.1:9000",
        model="m",
        fingerprint="f",
        block_tokens=16,
        context_tokens_max=4096,
        slots=4,
        requests_max=16,
        prefill_s_per_token=0.001,
        pending_tokens=pending_tokens,
    )


def decide(
    *workers: WorkerView,
    parameters: MaintenanceParameters | None = None,
    hits: dict[str, PrefixHit] | None = None,
    seed: int = 0,
) -> Decision:
    view = ClusterView(
        epoch=1,
        age_s=0.1,
        home_datacenter="west",
        workers=(*workers, a_worker("west/d1")),
        links=(LinkView(from_datacenter="east", to_datacenter="west", capacity_bps=1e9),),
    )
    request = RequestFeatures(
        request_id="r1",
        model="m",
        input_tokens=101,
        output_tokens_max=16,
        sequence=0,
        prefix_hits=hits or {},
    )
    policy = MaintenancePolicy(parameters or MaintenanceParameters())
    return policy.decide(request, view, Random(seed))


def prefill_worker(decision: Decision) -> str:
    assert decision.placement is not None
    return decision.placement.prefill_worker


def test_a_closed_datacenter_gets_nothing() -> None:
    workers = (a_worker("east/p1"), a_worker("west/p1", pending_tokens=9000))

    decision = decide(*workers, parameters=MaintenanceParameters(closed=["east"]))

    assert prefill_worker(decision) == "west/p1"
    closed = next(one for one in decision.candidates if one.worker_id == "east/p1")
    assert (closed.rejected_by, closed.detail) == ("filter", "east is closed for maintenance")


def test_when_everything_is_closed_nothing_is_placed() -> None:
    decision = decide(
        a_worker("east/p1"), parameters=MaintenanceParameters(closed=["east", "west"])
    )

    assert decision.placement is None


def test_a_cached_prompt_goes_where_it_is_cached() -> None:
    decision = decide(a_worker("east/p1"), a_worker("east/p2"), hits={"east/p2": PrefixHit(96, 96)})

    assert prefill_worker(decision) == "east/p2"
    assert decision.explanation == (
        "east/p2 scores 1.960 (affinity 0.96, idle 1.00), the highest of 2 scores is 1.960"
    )


def test_weights_say_what_counts() -> None:
    workers = (a_worker("west/p1", pending_tokens=9000), a_worker("west/p2"))
    hits = {"west/p1": PrefixHit(96, 96)}
    only_caches = MaintenanceParameters(idle_weight=0.0)
    only_queues = MaintenanceParameters(affinity_weight=0.0)

    chosen = [
        prefill_worker(decide(*workers, parameters=each, hits=hits))
        for each in (only_caches, only_queues)
    ]

    assert chosen == ["west/p1", "west/p2"]


def test_nearly_equal_workers_share_the_work() -> None:
    workers = (a_worker("west/p1"), a_worker("west/p2", pending_tokens=20))

    chosen = {prefill_worker(decide(*workers, seed=seed)) for seed in range(20)}

    assert chosen == {"west/p1", "west/p2"}
