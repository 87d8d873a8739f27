"""A replay: what emulated workers and links make of requests, to the millisecond."""

from __future__ import annotations

import pytest
from replay_builders import (
    ListTrace,
    a_hardware,
    a_world,
    replayed,
    some_requests,
)

from controlplane.domain.throughput.profile import KvSize, QuadraticPrefill
from controlplane.errors import ConfigError
from controlplane.replay.link_steps import check_changes
from controlplane.replay.results import Slo
from controlplane.replay.spec import LinkStep, Loss
from controlplane.replay.traces.request import TraceRequest

_NEARLY = 0.006


def test_an_idle_fleet_takes_what_the_profile_says() -> None:
    result = replayed(some_requests(5, every_s=10.0), a_world("west/p1", "west/d1"))
    assert result.done == 5
    # 1,000 tokens of prefill, and one step for the last of the prompt.
    assert result.ttft_s.p99 == pytest.approx(1.01, rel=_NEARLY)
    assert result.tpot_s.p50 == pytest.approx(0.01, rel=_NEARLY)
    assert result.finished_s == pytest.approx(40 + 1.01 + 0.1, rel=_NEARLY)


def test_prompts_wait_for_their_turn_at_a_prefill_worker() -> None:
    result = replayed(some_requests(3, every_s=0.0), a_world("west/p1", "west/d1"))
    assert result.ttft_s.mean == pytest.approx((1.01 + 2.01 + 3.01) / 3, rel=_NEARLY)


def test_sequences_wait_for_a_slot_of_a_decode_worker() -> None:
    hardware = a_hardware(prefill=QuadraticPrefill(fixed_s=0.0, s_per_token=1e-9))
    trace = some_requests(3, every_s=0.0, output_tokens=101)
    result = replayed(trace, a_world("west/p1", "west/d1", hardware=hardware))
    # Two slots: the third one begins when they are free, after 101 steps of 10 ms.
    assert result.ttft_s.p99 == pytest.approx(1.01 + 0.01, rel=_NEARLY)


def test_offloaded_kv_takes_the_link_and_overlaps_with_prefill() -> None:
    world = a_world("east/p1", "west/d1", gbit_per_s=0.001)
    result = replayed(some_requests(1), world, "offload_all")
    # A megabyte over 125,000 bytes a second.
    assert result.ttft_s.mean == pytest.approx(8.01, rel=_NEARLY)
    assert result.offloaded == 1.0
    assert result.links["east>west"].bytes_total == 1_000_000


def test_bytes_over_a_link_cost_what_the_fleet_says() -> None:
    world = a_world("east/p1", "west/d1", egress_price_per_gb=20.0)
    result = replayed(some_requests(3), world, "offload_all")
    assert result.links["east>west"].bytes_total == 3_000_000
    assert result.egress_cost == pytest.approx(0.06)


def test_a_policy_that_weighs_money_keeps_off_a_dear_link() -> None:
    def offloaded(price_per_gb: float) -> float:
        trace = some_requests(20, every_s=0.5)
        world = a_world(egress_price_per_gb=price_per_gb)
        return replayed(trace, world, "lookahead").offloaded

    assert offloaded(0.0) > 0.2
    assert offloaded(1000.0) < 0.5 * offloaded(0.0)


def test_a_fast_link_costs_the_state_and_the_round_trip_alone() -> None:
    hardware = a_hardware(kv=KvSize(state_bytes=12_500.0, bytes_per_token=1.0))
    world = a_world("east/p1", "west/d1", gbit_per_s=0.001, rtt_s=0.05, hardware=hardware)
    result = replayed(some_requests(1), world, "offload_all")
    # Asking for prefill and for the last bytes: a round trip each.
    assert result.ttft_s.mean == pytest.approx(1.0 + 0.1 + 0.05 + 0.05 + 0.01, rel=_NEARLY)


def test_a_prefix_that_was_prefilled_before_is_not_computed_again() -> None:
    trace = some_requests(2, every_s=20.0, input_tokens=1025, blocks=(1, 2, 3))
    result = replayed(trace, a_world("west/p1", "west/d1"))
    assert result.prefix_hit_ratio == pytest.approx(0.5)


def test_other_prompts_are_no_prefix_hits() -> None:
    trace = ListTrace(
        [TraceRequest(20.0 * n, 1025, 5, (3 * n, 3 * n + 1, 3 * n + 2)) for n in (1, 2)]
    )
    assert replayed(trace, a_world("west/p1", "west/d1")).prefix_hit_ratio == 0.0


def test_a_decode_worker_fetches_only_what_it_lacks() -> None:
    trace = some_requests(2, every_s=20.0, input_tokens=1025, blocks=(1, 2, 3))
    result = replayed(trace, a_world("east/p1", "west/d1"), "offload_all")
    assert result.links["east>west"].bytes_total == 1024 * 1000


def test_twice_the_speed_is_twice_the_load() -> None:
    slow = replayed(some_requests(20, every_s=2.0), a_world())
    fast = replayed(some_requests(20, every_s=2.0), a_world(), speed=2.0)
    assert fast.arrivals_s == pytest.approx(slow.arrivals_s / 2)


def test_goodput_counts_what_meets_the_objective() -> None:
    trace = some_requests(4, every_s=0.0)
    result = replayed(trace, a_world("west/p1", "west/d1"), slo=Slo(ttft_s=2.5))
    assert result.within_slo == 0.5
    strict = replayed(trace, a_world("west/p1", "west/d1"), slo=Slo(tpot_s=0.001))
    assert strict.within_slo == 0.0


def test_clients_of_a_closed_loop_wait_for_their_answers() -> None:
    result = replayed(some_requests(6, every_s=0.0), a_world("west/p1", "west/d1"), clients=1)
    assert result.ttft_s.p99 == pytest.approx(1.01, rel=_NEARLY)
    assert result.finished_s == pytest.approx(6 * (1.01 + 0.1), rel=_NEARLY)


def test_only_the_first_requests_are_replayed() -> None:
    assert replayed(some_requests(9), a_world(), requests=4).requests == 4


def test_prefill_workers_that_die_lose_no_request() -> None:
    loss = Loss(at_s=5.5, workers=("east/p1",), back_after_s=10.0)
    trace = some_requests(30, every_s=1.0)
    world = a_world("east/p1", "west/p1", "west/d1", "west/d2", changes=(loss,))
    result = replayed(trace, world, "round_robin")
    assert result.outcomes == {"done": 30}
    assert result.retries > 0


def test_decode_workers_that_die_lose_no_request() -> None:
    loss = Loss(at_s=5.5, workers=("west/d1",), back_after_s=10.0)
    trace = some_requests(20, every_s=1.0, output_tokens=150)
    result = replayed(trace, a_world(changes=(loss,)), "local_only")
    assert result.outcomes == {"done": 20}
    assert result.retries > 0


def test_a_cut_link_loses_no_request_while_there_is_another_way() -> None:
    cut = LinkStep(at_s=5.0, link="east>west", capacity_bps=0.0)
    mended = LinkStep(at_s=40.0, link="east>west", capacity_bps=1e9)
    trace = some_requests(60, every_s=1.5)
    result = replayed(trace, a_world(changes=(cut, mended)), "round_robin")
    assert result.outcomes == {"done": 60}


def test_a_slower_link_is_slower_from_then_on() -> None:
    step = LinkStep(at_s=15.0, link="east>west", capacity_bps=1e6)
    world = a_world("east/p1", "west/d1", gbit_per_s=1.0, changes=(step,))
    result = replayed(some_requests(2, every_s=20.0), world, "offload_all")
    assert result.ttft_s.p50 == pytest.approx(1.01, rel=_NEARLY)
    assert result.ttft_s.p99 == pytest.approx(8.01, rel=_NEARLY)


def test_a_change_of_an_unknown_link_is_refused() -> None:
    step = LinkStep(at_s=1.0, link="east>north", capacity_bps=1.0)
    with pytest.raises(
        ConfigError, match=r"link 'east>north' is not in the fleet; known are east>west"
    ):
        check_changes(a_world(changes=(step,)), "steps.toml")


def test_equal_seeds_give_equal_replays_and_others_do_not() -> None:
    trace = some_requests(40, every_s=0.3)
    one = replayed(trace, a_world(), "power_of_two", seed=5)
    assert replayed(trace, a_world(), "power_of_two", seed=5) == one
    assert replayed(trace, a_world(), "power_of_two", seed=6).digest != one.digest


def test_a_fleet_of_many_workers_and_datacenters_runs() -> None:
    names = [f"{site}/{kind}{n}" for site in ("east", "west") for kind in "pd" for n in range(125)]
    result = replayed(some_requests(50, every_s=0.02), a_world(*names), "prfaas")
    assert result.done == 50
