from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from builders import a_link, a_request, a_view, a_worker
from pydantic import ValidationError

from controlplane.domain.cluster import ClusterView, LinkView, WorkerView
from controlplane.domain.decision import Candidate, Decision, RequestFeatures
from controlplane.domain.plan import Plan, PlanInputs, ShadowPrices
from controlplane.domain.prefix import PrefixHit
from policies.lookahead import LookaheadParameters, LookaheadPolicy

EAST, WEST, DECODE = a_worker("east/p1"), a_worker("west/p1"), a_worker("west/d1")
FAST, BACK = a_link(capacity_bps=8e9), a_link("west", "east", capacity_bps=8e9)


def decide(
    request: RequestFeatures, view: ClusterView, *, seed: int = 0, **parameters: Any
) -> Decision:
    policy = LookaheadPolicy(LookaheadParameters.model_validate(parameters))
    return policy.decide(request, view, Random(seed))


def seen(*workers: WorkerView, **overrides: Any) -> ClusterView:
    return a_view(DECODE, *workers, **{"links": (a_link(),), **overrides})


def prefill_worker(decision: Decision) -> str | None:
    return decision.placement.prefill_worker if decision.placement else None


def candidate(decision: Decision, worker_id: str) -> Candidate:
    return next(one for one in decision.candidates if one.worker_id == worker_id)


# --- Predicted TTFT alone ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("east", "west", "link", "worker"),
    [
        pytest.param(EAST, WEST, a_link(), "west/p1", id="home when all is equal"),
        pytest.param(EAST, a_worker("west/p1", pending_s=1.0), a_link(), "east/p1", id="queue"),
        pytest.param(
            a_worker("east/p1", prefill_s_per_token=1e-5),
            a_worker("west/p1", prefill_s_per_token=1e-2),
            a_link(),
            "east/p1",
            id="faster hardware",
        ),
        pytest.param(
            a_worker("east/p1", prefill_s_per_token=1e-5),
            a_worker("west/p1", prefill_s_per_token=1e-2),
            a_link(capacity_bps=8e5),
            "west/p1",
            id="faster hardware behind a slow link",
        ),
        pytest.param(
            EAST,
            a_worker("west/p1", pending_s=1.0),
            a_link(reserved_bytes=3_000_000),
            "west/p1",
            id="a link that is promised away",
        ),
        pytest.param(
            EAST,
            a_worker("west/p1", pending_s=0.2),
            a_link(rtt_s=0.5),
            "west/p1",
            id="a long way",
        ),
    ],
)
def test_without_a_plan_the_least_predicted_ttft_wins(
    east: WorkerView, west: WorkerView, link: LinkView, worker: str
) -> None:
    decision = decide(a_request(), seen(east, west, links=(link,)))

    assert prefill_worker(decision) == worker
    assert decision.reason == "least_cost"


def test_the_terms_of_a_cost_add_up_to_the_predicted_ttft() -> None:
    view = seen(a_worker("east/p1", pending_s=0.3), a_worker("west/p1", pending_s=9.0))

    decision = decide(a_request(), view)

    assert decision.prediction is not None
    terms = {term.name: term.weighed_s for term in decision.prediction.costs}
    assert list(terms) == ["queue", "prefill", "state tail", "round trip"]
    assert sum(terms.values()) == pytest.approx(decision.prediction.ttft_s)


def test_a_transfer_counts_for_what_it_lasts_longer_than_prefill() -> None:
    view = seen(EAST, links=(a_link(capacity_bps=4e6),))

    decision = decide(a_request(), view)

    assert decision.prediction is not None
    terms = {term.name: term.weighed_s for term in decision.prediction.costs}
    assert terms["prefill"] == pytest.approx(0.11)
    assert terms["transfer beyond prefill"] == pytest.approx(0.2 - 0.11)


def test_every_option_is_explained_by_its_terms() -> None:
    decision = decide(a_request(), seen(EAST, WEST))

    for worker_id in ("east/p1", "west/p1"):
        prediction = candidate(decision, worker_id).prediction
        assert prediction is not None
        assert prediction.costs
    assert decision.explanation == ("west costs 0.110 s (prefill 0.110 s); east would cost 0.180 s")


def test_leaving_has_to_save_more_than_a_margin() -> None:
    # East takes 0.18 s whatever waits in west, which takes 0.11 s and its queue.
    chosen = [
        prefill_worker(decide(a_request(), seen(EAST, a_worker("west/p1", pending_s=queue_s))))
        for queue_s in (0.072, 0.08)
    ]

    assert chosen == ["west/p1", "east/p1"]


def test_a_worker_that_warms_up_costs_more_than_it_takes() -> None:
    young = a_worker("west/p1", share=0.25)

    decision = decide(a_request(), seen(EAST, young))

    assert prefill_worker(decision) == "east/p1"
    prediction = candidate(decision, "west/p1").prediction
    assert prediction is not None
    assert prediction.costs[-1].name == "warming up"
    assert sum(term.weighed_s for term in prediction.costs) == pytest.approx(0.44)


# --- Shadow prices ----------------------------------------------------------------------------


def a_plan(load: float, **overrides: Any) -> Plan:
    """
    The case study at some load: prefill in east is 2.5 times as fast, and 2.5 times as dear.

    Seven prefill workers take 3.2 requests a second.
    """
    values: dict[str, Any] = {
        "version": 1,
        "author": "west/router-1",
        "threshold_tokens": {"east>west": 19_400.0},
        "prices": ShadowPrices(prefill_per_s={"east": 0.626, "west": 0.249}),
        "throughput_per_s": 3.2,
        "load": load,
        "inputs": PlanInputs(
            arrival_per_s=3.2 * load,
            uncached_tokens_mean=27_000,
            uncached_tokens_p50=19_000,
            uncached_tokens_p90=62_000,
            output_tokens_mean=1024,
            workers={"east/prefill": 4, "west/prefill": 3, "west/decode": 5},
        ),
    }
    return Plan(**(values | overrides))


def case_study(*, load: float | None, **pending_s: float) -> ClusterView:
    """Four fast prefill workers in east, three slow ones in west; queues by datacenter."""
    kv = {"kv_bytes_per_token": 16_740, "kv_state_bytes": 172 << 20, "context_tokens_max": 1 << 20}
    east = {"prefill_fixed_s": 0.371, "prefill_s_per_token": 4.29e-5}
    west = {"prefill_fixed_s": 0.453, "prefill_s_per_token": 1.316e-4}
    return a_view(
        a_worker("west/d1", **kv),
        *(
            a_worker(
                f"east/p{n}",
                **kv,
                **east,
                prefill_s_per_token_squared=9.38e-11,
                pending_s=pending_s.get("east", 0.0),
            )
            for n in range(4)
        ),
        *(
            a_worker(
                f"west/p{n}",
                **kv,
                **west,
                prefill_s_per_token_squared=2.92e-10,
                pending_s=pending_s.get("west", 0.0),
            )
            for n in range(3)
        ),
        links=(a_link(capacity_bps=100e9),),
        plan=None if load is None else a_plan(load),
    )


def sites(view: ClusterView, *lengths: int) -> list[str]:
    return [
        (prefill_worker(decide(a_request(input_tokens=length + 1), view)) or "").partition("/")[0]
        for length in lengths
    ]


LENGTHS = (1_000, 4_000, 10_000, 15_000, 22_000, 60_000, 120_000)


def test_without_a_plan_and_without_queues_the_fast_pool_takes_all_but_the_shortest() -> None:
    assert sites(case_study(load=None), *LENGTHS) == ["east"] * 7


def test_far_below_saturation_prices_change_nothing() -> None:
    assert sites(case_study(load=0.2), *LENGTHS) == sites(case_study(load=None), *LENGTHS)


def test_near_saturation_the_fast_pool_is_kept_for_those_who_gain_most() -> None:
    """Greedy routing floods it; the prices give back about the threshold of the plan, 19.4K."""
    assert sites(case_study(load=0.97, east=5.0, west=5.0), *LENGTHS) == [
        *["west"] * 4,
        *["east"] * 3,
    ]


def test_prices_yield_to_a_queue_that_is_much_longer() -> None:
    assert sites(case_study(load=0.97, east=60.0, west=0.0), 22_000) == ["west"]
    assert sites(case_study(load=0.97, east=0.0, west=60.0), 18_000) == ["east"]


def test_the_weight_of_prices_can_be_taken_away() -> None:
    view = case_study(load=0.97)

    decision = decide(a_request(input_tokens=4_001), view, price_weight=0.0)

    assert prefill_worker(decision) in {f"east/p{n}" for n in range(4)}


def test_a_price_is_a_term_of_its_own() -> None:
    decision = decide(a_request(input_tokens=60_001), case_study(load=0.9))

    assert decision.prediction is not None
    (price,) = [term for term in decision.prediction.costs if "price" in term.name]
    assert price.name == "price of prefill time in east"
    assert price.unit == "s"
    # 3.28 s at 0.626 requests a second of it, each worth 7 / 3.2 s at a pressure of 6.561.
    assert price.weighed_s == pytest.approx(3.2826 * 0.626 * 7 / 3.2 * 6.561, rel=1e-3)


def a_fifth(of: WorkerView, **overrides: Any) -> WorkerView:
    """Time that a decode worker of the same hardware lends: all takes five times as long."""
    return replace(
        of,
        worker_id="west/d1.lent",
        lent_part=0.2,
        prefill_fixed_s=5 * of.prefill_fixed_s,
        prefill_s_per_token=5 * of.prefill_s_per_token,
        prefill_s_per_token_squared=5 * of.prefill_s_per_token_squared,
        **overrides,
    )


def test_lent_time_takes_no_more_of_a_worker_than_a_worker_of_its_own() -> None:
    """It lasts five times as long, and is a fifth of a worker meanwhile: its price is the same."""
    view = case_study(load=0.9)
    whole = next(one for one in view.workers if one.worker_id == "west/p1")
    prices = []
    for prefill in (whole, a_fifth(whole)):
        only = a_view(a_worker("west/d1"), prefill, plan=view.plan)
        decision = decide(a_request(input_tokens=4_001), only)
        assert decision.prediction is not None
        terms = {term.name: term.weighed_s for term in decision.prediction.costs}
        prices.append((terms["prefill"], terms["price of prefill time in west"]))

    (whole_s, whole_price_s), (lent_s, lent_price_s) = prices
    assert lent_s == pytest.approx(5 * whole_s)
    assert lent_price_s == pytest.approx(whole_price_s)


def test_near_saturation_lent_time_is_used_before_its_datacenter_is_left() -> None:
    """Were it as dear as it is slow, it would stand idle while the link has to carry its prompts."""
    view = case_study(load=0.97, east=20.0, west=30.0)
    whole = next(one for one in view.workers if one.worker_id == "west/p1")
    with_lent = replace(view, workers=(*view.workers, a_fifth(whole, pending_s=0.0)))

    assert prefill_worker(decide(a_request(input_tokens=4_001), with_lent)) == "west/d1.lent"


def test_a_scarce_link_has_a_price_per_byte() -> None:
    """Two datacenters that are as fast: the one whose link binds is left for those who need it."""
    slow_home = a_worker("west/p1", pending_s=9.0)
    links = (a_link(capacity_bps=8e8), a_link("north", "west", capacity_bps=8e8, rtt_s=0.03))
    prices = ShadowPrices(link_per_byte={"east>west": 1e-6})

    chosen = [
        prefill_worker(
            decide(
                a_request(),
                seen(
                    EAST,
                    a_worker("north/p1"),
                    slow_home,
                    links=links,
                    plan=a_plan(load, prices=prices),
                ),
            )
        )
        for load in (0.0, 0.95)
    ]

    assert chosen == ["east/p1", "north/p1"]


# --- Money ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("price_per_gb", "s_per_currency", "worker"),
    [
        pytest.param(0.0, 10.0, "east/p1", id="free"),
        # 150 kB, 0.1 s to be saved.
        pytest.param(50.0, 10.0, "east/p1", id="worth it"),
        pytest.param(100.0, 10.0, "west/p1", id="too dear"),
        pytest.param(100.0, 1.0, "east/p1", id="too dear, but money counts little"),
        pytest.param(1000.0, 0.0, "east/p1", id="money counts nothing"),
    ],
)
def test_egress_is_weighed_against_time(
    price_per_gb: float, s_per_currency: float, worker: str
) -> None:
    link = a_link(egress_price_per_gb=price_per_gb)
    view = seen(EAST, a_worker("west/p1", pending_s=0.17), links=(link,))

    assert prefill_worker(decide(a_request(), view, s_per_currency=s_per_currency)) == worker


def test_egress_is_a_term_in_currency() -> None:
    view = seen(EAST, links=(a_link(egress_price_per_gb=100.0),))

    decision = decide(a_request(), view)

    assert decision.prediction is not None
    term = decision.prediction.costs[-1]
    assert (term.name, term.unit) == ("egress", "currency")
    assert term.amount == pytest.approx(0.015)
    assert term.weighed_s == pytest.approx(0.15)
    assert "egress 0.150 s for 0.015" in decision.explanation


# --- The deadline -----------------------------------------------------------------------------


def dear_and_cheap() -> ClusterView:
    """East is earlier, by 0.63 s, and costs money; west costs none."""
    link = a_link(egress_price_per_gb=1000.0)
    return seen(EAST, a_worker("west/p1", pending_s=0.7), links=(link,))


def test_without_a_deadline_the_cheaper_placement_wins() -> None:
    assert prefill_worker(decide(a_request(), dear_and_cheap())) == "west/p1"


def test_a_placement_that_misses_the_deadline_loses() -> None:
    decision = decide(a_request(ttft_deadline_s=0.5), dear_and_cheap())

    assert prefill_worker(decision) == "east/p1"
    assert decision.reason == "least_cost"
    late = candidate(decision, "west/p1")
    assert late.rejected_by == "over_deadline"
    assert late.detail == "predicted 0.810 s, asked for within 0.5 s"
    assert late.prediction is None
    assert decision.margin_s is None
    assert decision.explanation.endswith("; 1 would miss the deadline of 0.5 s")


def test_a_deadline_that_all_meet_changes_nothing() -> None:
    hurried = decide(a_request(ttft_deadline_s=5.0), dear_and_cheap())

    assert hurried == decide(a_request(), dear_and_cheap())


def test_when_none_meets_the_deadline_the_earliest_wins_whatever_it_costs() -> None:
    decision = decide(a_request(ttft_deadline_s=0.05), dear_and_cheap())

    assert prefill_worker(decision) == "east/p1"
    assert decision.reason == "deadline_unreachable"
    assert decision.explanation == (
        "no placement is predicted within 0.05 s: the earliest is east with 0.180 s"
    )
    assert candidate(decision, "west/p1").rejected_by is None


# --- The objective ----------------------------------------------------------------------------


def queues(**pending_s: float) -> ClusterView:
    """Three workers at home, each with a queue; a prompt takes 0.11 s."""
    return seen(*(a_worker(f"west/{name}", pending_s=wait) for name, wait in pending_s.items()))


@pytest.mark.parametrize(
    ("waits", "worker", "reason"),
    [
        pytest.param((0.2, 4.0, 9.0), "west/p1", "least_cost", id="the earliest that is in time"),
        pytest.param((6.0, 7.0, 9.0), "west/p3", "objective_unreachable", id="behind the longest"),
        pytest.param((6.0, 7.0, 20.0), "west/p2", "objective_unreachable", id="not without end"),
        pytest.param((12.0, 11.0, 20.0), "west/p2", "objective_unreachable", id="all are too long"),
    ],
)
def test_a_request_that_cannot_be_in_time_stays_out_of_the_way(
    waits: tuple[float, float, float], worker: str, reason: str
) -> None:
    view = queues(p1=waits[0], p2=waits[1], p3=waits[2])

    decision = decide(a_request(), view, ttft_slo_s=5.0, ttft_late_s=10.0)

    assert prefill_worker(decision) == worker
    assert decision.reason == reason


def test_a_late_request_leaves_alone_those_workers_that_can_still_be_in_time() -> None:
    """It is late because it is long; the idle worker could serve others, the busy one could not."""
    long = a_request(input_tokens=60_001)
    view = a_view(
        *(
            a_worker(f"west/{name}", pending_s=wait, context_tokens_max=1 << 20)
            for name, wait in {"d1": 0.0, "p1": 0.0, "p2": 5.5}.items()
        )
    )

    assert prefill_worker(decide(long, view)) == "west/p1"
    assert prefill_worker(decide(long, view, ttft_slo_s=5.0)) == "west/p2"


@pytest.mark.parametrize(
    ("east_s", "west_s", "worker"),
    [
        pytest.param(5.5, 0.0, "east/p1", id="a little of the link is less than an idle worker"),
        pytest.param(5.5, 5.2, "west/p1", id="home takes nothing of the link"),
        pytest.param(5.5, 12.0, "east/p1", id="home is too long even for the late"),
    ],
)
def test_what_a_late_request_takes_is_counted_for_workers_and_links(
    east_s: float, west_s: float, worker: str
) -> None:
    pools = {"west/d1": 0.0, "east/p1": east_s, "west/p1": west_s}
    workers = (
        a_worker(name, pending_s=wait, context_tokens_max=1 << 20) for name, wait in pools.items()
    )
    view = a_view(*workers, links=(FAST,))

    decision = decide(a_request(input_tokens=60_001), view, ttft_slo_s=5.0, ttft_late_s=10.0)

    assert prefill_worker(decision) == worker


def test_what_a_late_request_takes_of_lent_time_is_a_part_of_a_worker() -> None:
    """5 s of a fifth of a worker are less than 5 s of a whole one."""
    long = a_request(input_tokens=6_001)
    whole = a_worker("west/p1", context_tokens_max=1 << 20)
    lent = replace(a_fifth(whole), worker_id="west/x1.lent")
    view = a_view(a_worker("west/d1", context_tokens_max=1 << 20), whole, lent)

    assert prefill_worker(decide(long, view)) == "west/p1"
    assert prefill_worker(decide(long, view, ttft_slo_s=5.0)) == "west/x1.lent"


def test_a_deadline_of_its_own_goes_before_the_objective() -> None:
    decision = decide(a_request(ttft_deadline_s=5.0), queues(p1=6.0, p2=9.0), ttft_slo_s=5.0)

    assert prefill_worker(decision) == "west/p1"
    assert decision.reason == "deadline_unreachable"


# --- Residency --------------------------------------------------------------------------------


def test_data_stays_where_it_may_be() -> None:
    view = seen(EAST, a_worker("west/p1", pending_s=99.0))

    decision = decide(a_request(allowed_datacenters=("west",)), view)

    assert prefill_worker(decision) == "west/p1"
    assert candidate(decision, "east/p1").rejected_by == "residency"


# --- Where to decode --------------------------------------------------------------------------

TWO_WAYS = (a_link(), a_link("west", "east"))


def a_full_home(pending_requests: int, **overrides: Any) -> ClusterView:
    """Four slots in west, which is home, and four idle ones in east; an output takes 0.32 s."""
    return a_view(
        a_worker("west/d1", pending_requests=pending_requests, requests_max=99),
        a_worker("east/d1"),
        EAST,
        WEST,
        **{"links": TWO_WAYS, **overrides},
    )


@pytest.mark.parametrize(
    ("pending_requests", "decode_worker"),
    [
        pytest.param(0, "west/d1", id="idle"),
        pytest.param(3, "west/d1", id="a free slot"),
        # One waits 0.08 s for a slot; the way to east is 0.02 s.
        pytest.param(4, "east/d1", id="a place in the queue"),
        pytest.param(20, "east/d1", id="a long queue"),
    ],
)
def test_decode_leaves_home_when_waiting_there_costs_more_than_the_way(
    pending_requests: int, decode_worker: str
) -> None:
    decision = decide(a_request(), a_full_home(pending_requests))

    assert decision.placement is not None
    assert decision.placement.decode_worker == decode_worker


def test_decode_stays_when_the_way_is_longer_than_the_wait() -> None:
    links = (a_link(rtt_s=0.2), a_link("west", "east", rtt_s=0.2))

    decision = decide(a_request(), a_full_home(4, links=links))

    assert decision.placement is not None
    assert decision.placement.decode_worker == "west/d1"
    assert decision.prediction is not None
    terms = {term.name: term.weighed_s for term in decision.prediction.costs}
    assert terms["decode queue"] == pytest.approx(16 * 0.02 / 4)


def test_the_way_to_decode_is_a_term() -> None:
    decision = decide(a_request(), a_full_home(20))

    assert decision.prediction is not None
    assert decision.placement is not None
    assert decision.placement.prefill_worker == "east/p1"
    assert {term.name: term.weighed_s for term in decision.prediction.costs} == pytest.approx(
        {
            "prefill": 0.11,
            "way to decode": 0.02,
        }
    )


def test_decode_stays_where_the_data_may_be() -> None:
    decision = decide(a_request(allowed_datacenters=("west",)), a_full_home(20))

    assert decision.placement is not None
    assert decision.placement.decode_worker == "west/d1"


def test_a_router_that_hears_little_is_not_choosy() -> None:
    decision = decide(a_request(), a_full_home(20, mode="stale_view"))

    assert decision.placement is not None
    assert decision.placement.decode_worker == "west/d1"


# --- Copies of caches -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("link", "parameters", "copied_tokens"),
    [
        pytest.param(FAST, {}, 992, id="cheaper than computing"),
        pytest.param(a_link(capacity_bps=8e6), {}, 0, id="dearer than computing"),
        pytest.param(a_link(capacity_bps=8e9, is_scarce=True), {}, 0, id="a scarce link"),
        pytest.param(
            a_link(capacity_bps=8e9, egress_price_per_gb=200.0), {}, 0, id="not worth its money"
        ),
        pytest.param(FAST, {"copies": False}, 0, id="told not to"),
    ],
)
def test_a_cache_is_copied_when_that_costs_less_than_computing(
    link: LinkView, parameters: dict[str, Any], copied_tokens: int
) -> None:
    busy = a_worker("east/p1", pending_s=9.0)
    request = a_request(input_tokens=1001, prefix_hits={"east/p1": PrefixHit(992, 992)})

    decision = decide(request, seen(busy, WEST, links=(link, BACK)), **parameters)

    assert decision.placement is not None
    assert decision.placement.prefill_worker == "west/p1"
    assert decision.placement.copy_tokens == copied_tokens
    assert (decision.placement.copy_from_worker == "east/p1") == bool(copied_tokens)


# --- Old views --------------------------------------------------------------------------------


def chosen_from(view: ClusterView) -> Counter[str | None]:
    return Counter(prefill_worker(decide(a_request(), view, seed=seed)) for seed in range(200))


def test_with_an_old_view_queues_that_may_have_gone_share_the_work() -> None:
    queues = (a_worker("east/p1", pending_s=1.0), a_worker("west/p1", pending_s=0.9))

    fresh = chosen_from(seen(*queues, age_s=0.2))
    old = chosen_from(seen(*queues, age_s=1.5))

    assert fresh == {"west/p1": 200}
    assert set(old) == {"east/p1", "west/p1"}
    assert min(old.values()) > 60


def test_an_old_view_does_not_make_an_idle_placement_look_worse_than_it_is() -> None:
    queues = (a_worker("east/p1"), a_worker("west/p1", pending_s=9.0))

    assert chosen_from(seen(*queues, age_s=1.5)) == {"east/p1": 200}


# --- Parameters -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parameters",
    [
        pytest.param({"price_weight": -1.0}, id="a negative weight"),
        pytest.param({"s_per_currency": float("inf")}, id="money beyond measure"),
        pytest.param({"margin_share": 1.0}, id="a margin that nothing beats"),
        pytest.param({"price_wait": 1.0}, id="misspelt"),
    ],
)
def test_wrong_parameters_are_refused(parameters: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        LookaheadParameters.model_validate(parameters)
