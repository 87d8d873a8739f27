from __future__ import annotations

import pytest
from builders import a_link, a_request, a_view, a_worker

from controlplane.domain.estimate import (
    CacheCopy,
    idle_ttft_s,
    predict,
    prefill_time_s,
    queue_time_s,
    transfer_time_s,
)
from controlplane.domain.prefix import PrefixHit
from controlplane.domain.throughput.profile import QuadraticPrefill

EAST, WEST, DECODE = a_worker("east/p1"), a_worker("west/p1"), a_worker("west/d1")


def test_prefill_time_is_fixed_and_per_uncached_token() -> None:
    request = a_request(input_tokens=101, prefix_hits={"west/p1": PrefixHit(80, 60)})

    prediction = predict(request, WEST, DECODE, a_view())

    assert prediction.uncached_tokens == 40
    assert prediction.prefill_s == pytest.approx(0.01 + 40 * 0.001)


def test_queue_time_is_the_tokens_before_it() -> None:
    worker = a_worker("west/p1", pending_tokens=500)

    prediction = predict(a_request(), worker, DECODE, a_view())

    assert prediction.queue_s == pytest.approx(0.5)
    assert prediction.ttft_s == pytest.approx(0.5 + prediction.prefill_s)


def test_bytes_are_what_the_decoding_side_lacks_and_the_state() -> None:
    hits = {"west/d1": PrefixHit(64, 0), "east/p1": PrefixHit(16, 16)}

    prediction = predict(a_request(prefix_hits=hits), EAST, DECODE, a_view())

    assert prediction.transfer_bytes == (100 - 64) * 1000 + 50_000


def test_the_network_inside_a_datacenter_costs_nothing() -> None:
    prediction = predict(a_request(), WEST, DECODE, a_view())

    assert (prediction.transfer_s, prediction.state_tail_s, prediction.rtt_s) == (0.0, 0.0, 0.0)
    assert prediction.ttft_s == prediction.prefill_s


def test_prefill_hides_a_shorter_transfer_but_not_the_state() -> None:
    # 100 tokens: 110 ms of prefill; 100 kB in 100 ms at one megabyte a second.
    prediction = predict(a_request(), EAST, DECODE, a_view())

    assert prediction.prefill_s == pytest.approx(0.11)
    assert prediction.transfer_s == pytest.approx(0.1)
    assert prediction.state_tail_s == pytest.approx(0.05)
    assert prediction.rtt_s == pytest.approx(0.02)
    assert prediction.ttft_s == pytest.approx(0.11 + 0.05 + 0.02)


def test_a_longer_transfer_hides_prefill() -> None:
    view = a_view(links=(a_link(capacity_bps=4e6),))

    prediction = predict(a_request(), EAST, DECODE, view)

    assert prediction.ttft_s == pytest.approx(0.2 + 0.1 + 0.02)


def test_the_state_crosses_the_link_once() -> None:
    prefill = a_worker("east/p1", prefill_fixed_s=0.0, prefill_s_per_token=0.0)
    hits = {"west/d1": PrefixHit(100, 0)}

    prediction = predict(a_request(prefix_hits=hits), prefill, DECODE, a_view())

    assert prediction.transfer_bytes == 50_000
    assert prediction.ttft_s == pytest.approx(0.05 + 0.02)


def test_a_transfer_waits_behind_the_bytes_already_promised() -> None:
    busy = a_view(links=(a_link(reserved_bytes=300_000),))

    prediction = predict(a_request(), EAST, DECODE, busy)

    assert prediction.transfer_s == pytest.approx(0.1 + 0.3)
    assert prediction.transfer_bytes == 150_000


def test_only_the_direction_from_prefill_to_decode_counts() -> None:
    view = a_view(links=(a_link("west", "east", capacity_bps=1.0), a_link("east", "west")))

    prediction = predict(a_request(), EAST, DECODE, view)

    assert prediction.transfer_s == pytest.approx(0.1)


def test_a_transfer_without_a_link_is_refused() -> None:
    with pytest.raises(ValueError, match="no link east>west"):
        predict(a_request(), EAST, DECODE, a_view(links=()))


def test_a_prompt_of_one_token_has_no_prefill_but_a_state() -> None:
    prediction = predict(a_request(input_tokens=1), EAST, DECODE, a_view())

    assert prediction.uncached_tokens == 0
    assert prediction.transfer_bytes == 50_000


def test_a_hit_on_the_token_left_to_decode_saves_nothing_more() -> None:
    hits = {"east/p1": PrefixHit(112, 112), "west/d1": PrefixHit(112, 112)}

    prediction = predict(a_request(input_tokens=112, prefix_hits=hits), EAST, DECODE, a_view())

    assert prediction.uncached_tokens == 0
    assert prediction.transfer_bytes == 50_000


@pytest.mark.parametrize(
    ("transfer_bytes", "reserved_bytes", "seconds"),
    [
        pytest.param(0, 0, 0.0, id="nothing"),
        pytest.param(1_000_000, 0, 1.0, id="alone"),
        pytest.param(0, 500_000, 0.5, id="only others"),
        pytest.param(1_000_000, 500_000, 1.5, id="behind others"),
    ],
)
def test_transfer_time_is_bits_by_rate(
    transfer_bytes: int, reserved_bytes: int, seconds: float
) -> None:
    link = a_link(reserved_bytes=reserved_bytes)

    assert transfer_time_s(transfer_bytes, link) == pytest.approx(seconds)


# --- What grows with the square ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("uncached_tokens", "cached_tokens", "seconds"),
    [
        pytest.param(0, 0, 0.5, id="nothing"),
        pytest.param(1000, 0, 0.5 + 1.0 + 2.0, id="nothing cached"),
        pytest.param(1000, 1000, 0.5 + 1.0 + 6.0, id="behind a cache"),
        pytest.param(2000, 0, 0.5 + 2.0 + 8.0, id="twice as long"),
    ],
)
def test_each_token_attends_to_all_before_it(
    uncached_tokens: int, cached_tokens: int, seconds: float
) -> None:
    worker = a_worker(
        prefill_fixed_s=0.5, prefill_s_per_token=1e-3, prefill_s_per_token_squared=2e-6
    )

    assert prefill_time_s(worker, uncached_tokens, cached_tokens) == pytest.approx(seconds)


def test_a_cache_saves_its_own_part_alone() -> None:
    worker = a_worker("west/p1", prefill_s_per_token_squared=1e-6)
    hits = {"west/p1": PrefixHit(60, 60)}

    cached = predict(a_request(prefix_hits=hits), worker, DECODE, a_view()).prefill_s
    whole = predict(a_request(), worker, DECODE, a_view()).prefill_s

    assert whole - cached == pytest.approx(60 * 0.001 + 60 * 60 * 1e-6)


def test_the_profile_of_the_throughput_model_agrees() -> None:
    worker = a_worker(prefill_s_per_token_squared=3e-7)
    profile = QuadraticPrefill(fixed_s=0.01, s_per_token=0.001, s_per_token_squared=3e-7)

    assert prefill_time_s(worker, 700, 320) == pytest.approx(profile.prefill_s(700, 320))


# --- Queues in seconds ------------------------------------------------------------------------


def test_a_worker_s_own_estimate_of_its_queue_counts_before_its_tokens() -> None:
    telling = a_worker("west/p1", pending_tokens=500, pending_s=2.0)

    assert predict(a_request(), telling, DECODE, a_view()).queue_s == 2.0
    assert queue_time_s(a_worker("west/p1", pending_tokens=500)) == pytest.approx(0.5)


def test_what_was_promised_on_a_link_moves_while_the_request_waits() -> None:
    busy = a_view(links=(a_link(reserved_bytes=300_000),))
    waits = {
        pending_s: predict(a_request(), a_worker("east/p1", pending_s=pending_s), DECODE, busy)
        for pending_s in (0.0, 0.2, 5.0)
    }

    assert [it.transfer_s for it in waits.values()] == pytest.approx([0.4, 0.2, 0.1])


# --- Copies of cached prefixes ----------------------------------------------------------------


def test_a_copied_prefix_need_not_be_computed() -> None:
    copy = CacheCopy(EAST, 64)
    view = a_view(links=(a_link(egress_price_per_gb=2.0),))

    it = predict(a_request(), WEST, DECODE, view, copy)

    assert it.uncached_tokens == 36
    assert it.prefill_s == pytest.approx(0.01 + 0.036)
    assert it.copy_bytes == 64 * 1000 + 50_000
    assert it.copy_s == pytest.approx(0.114 + 0.02)
    assert it.ttft_s == pytest.approx(0.134 + 0.046)
    assert it.egress_cost == pytest.approx(114_000 / 1e9 * 2.0)


def test_a_copy_moves_while_the_request_waits() -> None:
    waiting = a_worker("west/p1", pending_s=1.0)

    it = predict(a_request(), waiting, DECODE, a_view(), CacheCopy(EAST, 64))

    assert it.queue_s == 1.0
    assert it.ttft_s == pytest.approx(1.0 + 0.046)


def test_of_a_copy_only_what_the_target_lacks_is_moved() -> None:
    hits = {"west/p1": PrefixHit(48, 0)}

    it = predict(a_request(prefix_hits=hits), WEST, DECODE, a_view(), CacheCopy(EAST, 64))

    assert it.copy_bytes == (64 - 48) * 1000 + 50_000


def test_a_copy_inside_a_datacenter_costs_no_time() -> None:
    it = predict(a_request(), WEST, DECODE, a_view(), CacheCopy(a_worker("west/p2"), 64))

    assert (it.copy_s, it.egress_cost) == (0.0, 0.0)
    assert it.uncached_tokens == 36


def test_a_copy_without_a_link_is_refused() -> None:
    with pytest.raises(ValueError, match="no link north>west"):
        predict(a_request(), WEST, DECODE, a_view(), CacheCopy(a_worker("north/p1"), 64))


# --- Money and idleness -----------------------------------------------------------------------


def test_egress_costs_by_the_gigabyte() -> None:
    view = a_view(links=(a_link(egress_price_per_gb=0.08),))

    assert predict(a_request(), EAST, DECODE, view).egress_cost == pytest.approx(150_000e-9 * 0.08)
    assert predict(a_request(), WEST, DECODE, view).egress_cost == 0.0


def test_an_idle_ttft_leaves_out_who_came_before() -> None:
    link = a_link(reserved_bytes=900_000)
    busy, idle = a_worker("east/p1", pending_s=3.0), a_view(links=(a_link(),))

    it = predict(a_request(), busy, DECODE, a_view(links=(link,)))

    expected_s = predict(a_request(), EAST, DECODE, idle).ttft_s
    assert idle_ttft_s(it, busy, link) == pytest.approx(expected_s)
    assert idle_ttft_s(predict(a_request(), WEST, DECODE, idle), WEST, None) == pytest.approx(0.11)
