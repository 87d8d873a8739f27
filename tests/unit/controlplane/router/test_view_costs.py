"""What a router's view says of queues in seconds, of scarce links, and of prices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from builders import a_beat
from router_builders import DECODE_1, EAST_1, a_link_config

from controlplane.config import LinkConfig
from controlplane.domain.cluster import LinkView, WorkerView
from controlplane.domain.scarcity import ScarcityRules
from controlplane.router.claims import Claim
from controlplane.router.rules import ViewRules
from controlplane.router.view import ViewTracker
from controlplane.store.api import WorkerSeen
from controlplane.wire import Load, Profile, WorkerBeat

#: A day long ago, at midnight UTC.
MIDNIGHT_S = 20_000 * 86_400.0


class Clock:
    """Seconds that a test decides about; the wall clock goes along."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s

    def wall(self) -> float:
        return MIDNIGHT_S + self.now_s - 1000.0


@pytest.fixture
def clock() -> Clock:
    return Clock()


def a_tracker(clock: Clock, link: LinkConfig | None = None) -> ViewTracker:
    """A router in west that knows one prefill and one decode worker."""
    tracker = ViewTracker(
        home_datacenter="west",
        links=(link or a_link_config(),),
        ttl_s=1e9,
        clock=clock,
        wall_clock=clock.wall,
        rules=ViewRules(scarcity=ScarcityRules(dwell_s=5.0)),
    )
    see(tracker, a_beat(EAST_1), a_beat(DECODE_1))
    return tracker


def see(tracker: ViewTracker, *beats: WorkerBeat) -> None:
    tracker.apply_events([WorkerSeen(beat) for beat in beats])


def a_claim(**overrides: Any) -> Claim:
    """100 tokens and 0.4 s at east, a place in west, 1,000 bytes between them."""
    values: dict[str, Any] = {
        "prefill_worker": EAST_1,
        "prefill_incarnation": "i1",
        "prefill_tokens": 100,
        "prefill_s": 0.4,
        "decode_worker": DECODE_1,
        "decode_incarnation": "i1",
        "link": "east>west",
        "link_bytes": 1000,
    }
    return Claim(**(values | overrides))


def prefill(tracker: ViewTracker) -> WorkerView:
    found = tracker.view().worker(EAST_1)
    assert found is not None
    return found


def link(tracker: ViewTracker) -> LinkView:
    (found,) = tracker.view().links
    return found


def told(sequence: int, queue_s: float | None, tokens: int = 500) -> WorkerBeat:
    return a_beat(EAST_1, sequence=sequence, load=Load(queue_tokens=tokens, queue_s=queue_s))


# --- Queues in seconds ------------------------------------------------------------------------


def test_a_worker_s_own_estimate_and_claims_since_make_its_queue(clock: Clock) -> None:
    tracker = a_tracker(clock)
    see(tracker, told(2, 1.5))

    tracker.claim(a_claim())
    waiting_s = prefill(tracker).pending_s
    tracker.prefill_done(a_claim())

    assert waiting_s == pytest.approx(1.9)
    assert prefill(tracker).pending_s == pytest.approx(1.5)


def test_the_next_beat_counts_the_claims_before_it(clock: Clock) -> None:
    tracker = a_tracker(clock)
    see(tracker, told(2, 1.5))
    tracker.claim(a_claim())

    see(tracker, told(3, 1.7))

    assert prefill(tracker).pending_s == pytest.approx(1.7)


def test_a_queue_is_never_less_than_nothing(clock: Clock) -> None:
    tracker = a_tracker(clock)
    see(tracker, told(2, 0.1))

    tracker.prefill_done(a_claim())

    assert prefill(tracker).pending_s == 0.0


def test_of_a_worker_that_tells_tokens_alone_tokens_count(clock: Clock) -> None:
    tracker = a_tracker(clock)
    see(tracker, told(2, None))

    tracker.claim(a_claim())

    assert (prefill(tracker).pending_s, prefill(tracker).pending_tokens) == (0.0, 600)


def test_the_quadratic_part_of_a_profile_is_seen(clock: Clock) -> None:
    tracker = a_tracker(clock)
    profile = Profile(prefill_s_per_token_squared=2.92e-10)

    see(tracker, a_beat(EAST_1, sequence=2, profile=profile))

    assert prefill(tracker).prefill_s_per_token_squared == 2.92e-10


# --- Scarce links -----------------------------------------------------------------------------


def test_a_link_with_much_promised_is_scarce_until_little_is(clock: Clock) -> None:
    """Of 8 Mbit/s: 3 MB are 3 s, 1 MB is 1 s, 0.4 MB are 0.4 s."""
    tracker = a_tracker(clock)
    seen = []
    for link_bytes in (1_000_000, 2_000_000, -2_000_000, -600_000):
        tracker.claim(a_claim(link_bytes=link_bytes))
        clock.now_s += 6.0
        seen.append(link(tracker).is_scarce)

    assert seen == [False, True, True, False]


def test_a_link_stays_scarce_for_a_while_and_time_alone_ends_it(clock: Clock) -> None:
    tracker = a_tracker(clock)
    tracker.claim(a_claim(link_bytes=3_000_000))
    assert link(tracker).is_scarce

    tracker.prefill_done(a_claim(link_bytes=3_000_000))
    at_once = link(tracker).is_scarce
    epoch = tracker.view().epoch
    clock.now_s += 5.5

    assert at_once
    assert not link(tracker).is_scarce
    assert tracker.view().epoch > epoch


# --- Prices -----------------------------------------------------------------------------------


def prices_of(clock: Clock, look: Callable[[], float]) -> list[float]:
    found = []
    for _ in range(24):
        found.append(look())
        clock.now_s += 3600.0
    return found


def test_a_link_has_the_price_of_the_hour(clock: Clock) -> None:
    config = a_link_config(
        prices=(
            {"from_hour": 0, "to_hour": 7, "price": 0.02},
            {"from_hour": 7, "to_hour": 24, "price": 0.09},
        )
    )
    tracker = a_tracker(clock, config)

    found = prices_of(clock, lambda: link(tracker).egress_price_per_gb)

    assert found == [0.02] * 7 + [0.09] * 17


def test_a_link_without_a_table_has_one_price(clock: Clock) -> None:
    tracker = a_tracker(clock, a_link_config(egress_price_per_gb=0.05))

    assert set(prices_of(clock, lambda: link(tracker).egress_price_per_gb)) == {0.05}
