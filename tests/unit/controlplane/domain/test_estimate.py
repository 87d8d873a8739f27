from __future__ import annotations

import pytest
from builders import a_link, a_request, a_view, a_worker

from controlplane.domain.estimate import predict, transfer_time_s
from controlplane.domain.prefix import PrefixHit

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
