"""The router's picture: what beats say, what claims add, and what silence takes away."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from builders import a_beat
from router_builders import DECODE_1, EAST_1, WEST_1, a_busy_beat, a_link_config

from controlplane.domain.cluster import LinkView, WorkerView
from controlplane.domain.prefix import PrefixHit
from controlplane.router.claims import Claim
from controlplane.router.view import ViewTracker
from controlplane.store.api import StoreSnapshot, WorkerLeft, WorkerSeen
from controlplane.wire import Inventory, LinkReport, Load, WorkerBeat

TTL_S = 5.0
SUSPECT_S = 2.0
#: Blocks of a prompt, by their hash.
FIRST, SECOND = b"\1" * 16, b"\2" * 16


class Clock:
    """Seconds that a test decides about."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tracker(clock: Clock) -> ViewTracker:
    """A tracker that knows nothing yet."""
    return a_tracker(clock)


def a_tracker(clock: Callable[[], float], **overrides: Any) -> ViewTracker:
    """A router in west with the link that leads there."""
    values: dict[str, Any] = {
        "home_datacenter": "west",
        "links": (a_link_config(),),
        "ttl_s": TTL_S,
        "suspect_s": SUSPECT_S,
        "clock": clock,
    }
    return ViewTracker(**(values | overrides))


def a_snapshot(*beats: WorkerBeat) -> StoreSnapshot:
    """The store's picture of these workers."""
    return StoreSnapshot(beats=beats, loads={}, link_reserved_bytes={}, cursor="0-0")


def a_claim(**overrides: Any) -> Claim:
    """100 tokens at east, a place in west, 1,000 bytes between them."""
    values: dict[str, Any] = {
        "prefill_worker": EAST_1,
        "prefill_incarnation": "i1",
        "prefill_tokens": 100,
        "decode_worker": DECODE_1,
        "decode_incarnation": "i1",
        "link": "east>west",
        "link_bytes": 1000,
    }
    return Claim(**(values | overrides))


def see(tracker: ViewTracker, *beats: WorkerBeat) -> list[str]:
    """Beats from the event stream."""
    return tracker.apply_events([WorkerSeen(beat) for beat in beats])


def pass_time(tracker: ViewTracker, clock: Clock, seconds: float) -> None:
    """Let time pass while the store answers without news."""
    for _ in range(round(seconds * 10)):
        clock.now_s += 0.1
        tracker.apply_events([])


def names(tracker: ViewTracker) -> list[str]:
    """Workers in the view."""
    return [worker.worker_id for worker in tracker.view().workers]


def worker(tracker: ViewTracker, worker_id: str = EAST_1) -> WorkerView:
    """One worker in the view."""
    found = tracker.view().worker(worker_id)
    assert found is not None
    return found


def link(tracker: ViewTracker) -> LinkView:
    """The only link."""
    (found,) = tracker.view().links
    return found


def stored(**blocks: str) -> Inventory:
    """A change: blocks that were stored."""
    return Inventory.model_validate({"stored": {key[1:]: what for key, what in blocks.items()}})


def full(**blocks: str) -> Inventory:
    """All blocks there are."""
    return stored(**blocks).model_copy(update={"is_full": True})


def blocks(*what: str) -> dict[str, str]:
    """The first blocks of a prompt, each with what is there."""
    return {f"_{block.hex()}": mark for block, mark in zip((FIRST, SECOND), what, strict=False)}


def hit(tracker: ViewTracker, worker_id: str = EAST_1) -> PrefixHit | None:
    """What a worker holds of a prompt of two blocks."""
    return tracker.match((FIRST, SECOND), block_tokens=16).get(worker_id)


# --- Snapshots and events --------------------------------------------------------------------


def test_a_new_tracker_has_an_empty_view(tracker: ViewTracker) -> None:
    """Nobody has said anything, and the store counts as away until it did."""
    view = tracker.view()

    assert view.workers == ()
    assert view.home_datacenter == "west"
    assert [one.link_id for one in view.links] == ["east>west"]
    assert tracker.is_store_away


def test_a_snapshot_brings_its_workers(tracker: ViewTracker) -> None:
    """What a worker says of itself is what policies see of it."""
    tracker.apply_snapshot(a_snapshot(a_busy_beat(WEST_1), a_busy_beat(EAST_1)))

    seen = worker(tracker)
    assert names(tracker) == [EAST_1, WEST_1]
    assert (seen.role, seen.datacenter, seen.incarnation) == ("prefill", "east", "i1")
    assert (seen.pending_requests, seen.pending_tokens) == (3, 5000)
    assert (seen.prefill_s_per_token, seen.kv_state_bytes) == (0.001, 50_000)
    assert not seen.is_suspect
    assert not tracker.is_store_away


def test_a_worker_that_a_snapshot_lacks_is_not_dropped_at_once(tracker: ViewTracker) -> None:
    """After a flush of the store every worker is missing until its next heartbeat."""
    tracker.apply_snapshot(a_snapshot(a_beat(EAST_1)))

    tracker.apply_snapshot(a_snapshot())

    assert names(tracker) == [EAST_1]


def test_events_tell_which_workers_are_new(tracker: ViewTracker) -> None:
    """For the log: each process life once."""
    first = see(tracker, a_beat(EAST_1), a_beat(WEST_1))
    again = see(tracker, a_beat(EAST_1, sequence=2))
    restarted = see(tracker, a_beat(EAST_1, incarnation="i2"))

    assert first == [EAST_1, WEST_1]
    assert again == []
    assert restarted == [EAST_1]


def test_a_worker_that_says_goodbye_is_gone_with_all_it_held(tracker: ViewTracker) -> None:
    """No request goes there, and no prefix is looked for there."""
    see(tracker, a_beat(EAST_1, inventory=full(**blocks("as"))))

    tracker.apply_events([WorkerLeft(EAST_1, "i1")])

    assert names(tracker) == []
    assert hit(tracker) is None
    assert tracker.beat(EAST_1) is None


def test_the_goodbye_of_an_earlier_life_says_nothing_of_this_one(tracker: ViewTracker) -> None:
    """A worker restarted before the goodbye of its old process was read."""
    see(tracker, a_beat(EAST_1, incarnation="i2"))

    tracker.apply_events([WorkerLeft(EAST_1, "i1"), WorkerLeft("nobody", "i1")])

    assert names(tracker) == [EAST_1]


def test_a_beat_that_comes_late_changes_nothing(tracker: ViewTracker) -> None:
    """The newest word counts, whatever order they are read in."""
    see(tracker, a_busy_beat(EAST_1, sequence=5, requests=9))

    see(tracker, a_busy_beat(EAST_1, sequence=4, requests=1))

    assert worker(tracker).pending_requests == 9


def test_a_beat_that_comes_twice_changes_nothing(tracker: ViewTracker) -> None:
    """The snapshot and the event stream tell the same thing; a delta is applied once."""
    see(tracker, a_beat(EAST_1, inventory=full(**blocks("as"))))
    change = a_beat(EAST_1, sequence=2, inventory=Inventory(removed=(FIRST.hex(),)))
    see(tracker, change)
    see(tracker, a_beat(EAST_1, sequence=3, inventory=stored(**blocks("as"))))

    see(tracker, change)

    assert hit(tracker) == PrefixHit(16, 16)


def test_draining_is_seen(tracker: ViewTracker) -> None:
    """Policies give such a worker nothing new."""
    see(tracker, a_beat(EAST_1, is_draining=True))

    assert worker(tracker).is_draining


# --- Prefixes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "part"),
    [
        pytest.param({}, 1.0, id="a worker of its own"),
        pytest.param({"lend_share": 0.2}, 1.0, id="one that lends: its role is whole"),
        pytest.param({"lent_by": "west/d1", "lend_share": 0.2}, 0.2, id="what it lends"),
        pytest.param({"lent_by": "west/d1"}, 1.0, id="lent time that does not tell how much"),
    ],
)
def test_lent_time_is_a_part_of_a_worker(
    tracker: ViewTracker, said: dict[str, Any], part: float
) -> None:
    see(tracker, a_beat(WEST_1, **said))

    assert worker(tracker, WEST_1).lent_part == part


def test_deltas_add_up(tracker: ViewTracker) -> None:
    """What is stored and what is removed, in the order of the beats."""
    see(
        tracker,
        a_beat(EAST_1, inventory=full(**blocks("as"))),
        a_beat(EAST_1, sequence=2, inventory=stored(**blocks("as", "a"))),
    )
    with_both = hit(tracker)

    see(tracker, a_beat(EAST_1, sequence=3, inventory=Inventory(removed=(SECOND.hex(),))))

    assert with_both == PrefixHit(32, 16)
    assert hit(tracker) == PrefixHit(16, 16)
    assert tracker.held_blocks(EAST_1) == 1


def test_a_full_inventory_replaces_what_was_known(tracker: ViewTracker) -> None:
    """Also from a snapshot that tells of the same beat."""
    see(tracker, a_beat(EAST_1, inventory=full(**blocks("as", "as"))))

    tracker.apply_snapshot(a_snapshot(a_beat(EAST_1, inventory=full(**blocks("a")))))

    assert hit(tracker) == PrefixHit(16, 0)


def test_a_new_life_begins_with_an_empty_cache(tracker: ViewTracker) -> None:
    """KV of a process dies with it."""
    see(tracker, a_beat(EAST_1, inventory=full(**blocks("as"))))

    see(tracker, a_beat(EAST_1, incarnation="i2"))

    assert hit(tracker) is None


# --- Silence ---------------------------------------------------------------------------------


def test_a_worker_that_is_silent_for_its_time_is_dropped(
    tracker: ViewTracker, clock: Clock
) -> None:
    """Not a moment before."""
    see(tracker, a_beat(EAST_1), a_beat(WEST_1))
    pass_time(tracker, clock, TTL_S - 0.1)
    at_the_limit = tracker.expire()
    see(tracker, a_beat(WEST_1, sequence=2))
    pass_time(tracker, clock, 0.2)

    gone = tracker.expire()

    assert at_the_limit == []
    assert gone == [EAST_1]
    assert names(tracker) == [WEST_1]
    assert tracker.expire() == []


def test_while_the_store_is_away_silence_says_nothing(tracker: ViewTracker, clock: Clock) -> None:
    """The last view is the best there is."""
    see(tracker, a_beat(EAST_1))
    tracker.store_lost()
    clock.now_s += 100

    gone = tracker.expire()

    assert gone == []
    assert names(tracker) == [EAST_1]
    assert tracker.age_s() == 100


def test_when_the_store_is_back_every_worker_gets_its_time_again(
    tracker: ViewTracker, clock: Clock
) -> None:
    """A store that was flushed knows nobody until the next heartbeats."""
    see(tracker, a_beat(EAST_1), a_beat(WEST_1))
    tracker.store_lost()
    clock.now_s += 100

    tracker.apply_snapshot(a_snapshot())
    at_once = tracker.expire()
    pass_time(tracker, clock, TTL_S + 0.1)
    see(tracker, a_beat(WEST_1, sequence=3))

    assert at_once == []
    assert tracker.expire() == [EAST_1]


def test_a_snapshot_is_no_sign_of_life_of_a_worker_it_has_nothing_new_of(
    tracker: ViewTracker, clock: Clock
) -> None:
    """The store keeps the last word of a dead worker for its time to live, too."""
    see(tracker, a_beat(EAST_1))
    pass_time(tracker, clock, TTL_S - 0.1)

    tracker.apply_snapshot(a_snapshot(a_beat(EAST_1, inventory=full())))
    pass_time(tracker, clock, 0.2)

    assert tracker.expire() == [EAST_1]


def test_age_counts_from_the_newest_word_of_the_store(tracker: ViewTracker, clock: Clock) -> None:
    """An answer without news is a word too."""
    tracker.apply_snapshot(a_snapshot())
    clock.now_s += 3
    old = tracker.age_s()

    tracker.apply_events([])

    assert (old, tracker.age_s()) == (3, 0)


# --- Claims ----------------------------------------------------------------------------------


def test_a_claim_counts_at_both_workers_and_on_the_link(tracker: ViewTracker) -> None:
    """On top of what the workers say themselves."""
    see(tracker, a_busy_beat(EAST_1), a_busy_beat(DECODE_1))

    tracker.claim(a_claim())

    assert (worker(tracker).pending_requests, worker(tracker).pending_tokens) == (4, 5100)
    assert worker(tracker, DECODE_1).pending_requests == 4
    assert link(tracker).reserved_bytes == 1000


def test_prefill_is_over_before_decode(tracker: ViewTracker) -> None:
    """Its worker and the link are free while tokens are still coming."""
    see(tracker, a_busy_beat(EAST_1), a_busy_beat(DECODE_1))
    tracker.claim(a_claim())

    tracker.prefill_done(a_claim())
    between = worker(tracker, DECODE_1).pending_requests
    tracker.decode_done(a_claim())

    assert (worker(tracker).pending_requests, worker(tracker).pending_tokens) == (3, 5000)
    assert link(tracker).reserved_bytes == 0
    assert between == 4
    assert worker(tracker, DECODE_1).pending_requests == 3


def test_a_claim_inside_a_datacenter_uses_no_link(tracker: ViewTracker) -> None:
    """There is nothing to budget."""
    see(tracker, a_beat(WEST_1), a_beat(DECODE_1))

    tracker.claim(a_claim(prefill_worker=WEST_1, link=None, link_bytes=0))

    assert link(tracker).reserved_bytes == 0


def test_a_claim_counts_until_the_worker_counts_it_itself(tracker: ViewTracker) -> None:
    """The next beat has it in its own load."""
    see(tracker, a_busy_beat(EAST_1))
    tracker.claim(a_claim())

    see(tracker, a_busy_beat(EAST_1, sequence=2, requests=4, tokens=5060))

    assert (worker(tracker).pending_requests, worker(tracker).pending_tokens) == (4, 5060)


def test_a_claim_outlives_a_snapshot_of_the_beat_before_it(tracker: ViewTracker) -> None:
    """A snapshot that says nothing new of a worker cannot have counted the claim."""
    beat = a_busy_beat(EAST_1)
    see(tracker, beat)
    tracker.claim(a_claim())

    tracker.apply_snapshot(a_snapshot(beat))

    assert (worker(tracker).pending_requests, worker(tracker).pending_tokens) == (4, 5100)


def test_what_a_beat_has_counted_is_taken_off_until_the_next_one(tracker: ViewTracker) -> None:
    """Claimed, counted by the worker, then done: its load is known to be one less."""
    see(tracker, a_busy_beat(EAST_1), a_busy_beat(DECODE_1))
    tracker.claim(a_claim())
    see(tracker, a_busy_beat(EAST_1, sequence=2, requests=4, tokens=5100))

    tracker.prefill_done(a_claim())

    assert (worker(tracker).pending_requests, worker(tracker).pending_tokens) == (3, 5000)


def test_counts_never_fall_below_nothing(tracker: ViewTracker) -> None:
    """A worker may have finished before the router heard of it."""
    see(tracker, a_beat(EAST_1, load=Load()), a_beat(DECODE_1, load=Load()))

    tracker.prefill_done(a_claim())
    tracker.decode_done(a_claim())

    assert (worker(tracker).pending_requests, worker(tracker).pending_tokens) == (0, 0)
    assert worker(tracker, DECODE_1).pending_requests == 0
    assert link(tracker).reserved_bytes == 0


def test_claims_of_workers_that_left_meanwhile_harm_nobody(tracker: ViewTracker) -> None:
    """The link is free again, whatever became of its ends."""
    see(tracker, a_beat(EAST_1), a_beat(DECODE_1))
    tracker.claim(a_claim())
    tracker.apply_events([WorkerLeft(EAST_1, "i1"), WorkerLeft(DECODE_1, "i1")])

    tracker.prefill_done(a_claim())
    tracker.decode_done(a_claim())

    assert names(tracker) == []
    assert link(tracker).reserved_bytes == 0


# --- Suspicion and restarts ------------------------------------------------------------------


def test_a_suspect_is_one_for_a_while(tracker: ViewTracker, clock: Clock) -> None:
    """Long enough to be noticed as gone, short enough to be forgiven."""
    see(tracker, a_beat(EAST_1))

    tracker.suspect(EAST_1)
    at_once = worker(tracker).is_suspect
    clock.now_s += SUSPECT_S
    see(tracker, a_beat(EAST_1, sequence=2))

    assert at_once
    assert not worker(tracker).is_suspect


def test_suspicion_ends_by_itself(tracker: ViewTracker, clock: Clock) -> None:
    """Without any news: with the store away, an idle router would refuse for ever."""
    see(tracker, a_beat(EAST_1))
    tracker.store_lost()
    tracker.suspect(EAST_1)
    before = worker(tracker).is_suspect
    clock.now_s += SUSPECT_S / 2
    half_way = worker(tracker).is_suspect

    clock.now_s += SUSPECT_S / 2

    assert (before, half_way) == (True, True)
    assert not worker(tracker).is_suspect


def test_a_beat_does_not_clear_a_suspect(tracker: ViewTracker) -> None:
    """A process may send heartbeats and still fail every request."""
    see(tracker, a_beat(EAST_1))
    tracker.suspect(EAST_1)

    see(tracker, a_beat(EAST_1, sequence=2))

    assert worker(tracker).is_suspect


def test_suspecting_nobody_does_nothing(tracker: ViewTracker) -> None:
    """It left before its failure was noticed."""
    tracker.suspect("nobody")

    assert names(tracker) == []


def test_a_new_life_starts_with_nothing_of_the_old(tracker: ViewTracker) -> None:
    """No claims, no suspicion, no cache, and no measure of its links."""
    see(
        tracker,
        a_busy_beat(
            DECODE_1,
            inventory=full(**blocks("a")),
            links=(LinkReport(from_datacenter="east", to_datacenter="west", goodput_bps=5e6),),
        ),
    )
    tracker.claim(a_claim())
    tracker.suspect(DECODE_1)

    see(tracker, a_busy_beat(DECODE_1, incarnation="i2"))

    assert worker(tracker, DECODE_1).pending_requests == 3
    assert not worker(tracker, DECODE_1).is_suspect
    assert hit(tracker, DECODE_1) is None
    assert link(tracker).goodput_bps == 0


def test_what_an_old_life_owed_is_not_taken_off_the_new_one(tracker: ViewTracker) -> None:
    """Requests that a dead process had are not done by its successor."""
    see(tracker, a_busy_beat(EAST_1), a_busy_beat(DECODE_1))
    claim = a_claim()
    tracker.claim(claim)
    see(tracker, a_busy_beat(EAST_1, incarnation="i2"), a_busy_beat(DECODE_1, incarnation="i2"))

    tracker.prefill_done(claim)
    tracker.decode_done(claim)

    assert (worker(tracker).pending_requests, worker(tracker).pending_tokens) == (3, 5000)
    assert worker(tracker, DECODE_1).pending_requests == 3
    assert link(tracker).reserved_bytes == 0


def test_a_life_that_is_known_to_be_over_is_forgotten(tracker: ViewTracker) -> None:
    """The store or the worker itself has said so; its next life stays."""
    see(tracker, a_beat(EAST_1), a_beat(WEST_1, incarnation="i2"))

    tracker.forget_incarnation(EAST_1, "i1")
    tracker.forget_incarnation(WEST_1, "i1")
    tracker.forget_incarnation("nobody", "i1")

    assert names(tracker) == [WEST_1]


# --- Links -----------------------------------------------------------------------------------


def a_report(**overrides: Any) -> LinkReport:
    """What a receiver in west measured."""
    values: dict[str, Any] = {
        "from_datacenter": "east",
        "to_datacenter": "west",
        "goodput_bps": 4e6,
        "bytes_total": 1000,
        "rtt_s": 0.05,
    }
    return LinkReport(**(values | overrides))


def test_a_link_is_as_good_as_its_best_receiver_measured(tracker: ViewTracker) -> None:
    """Others had to share it, or had too little to measure."""
    see(
        tracker,
        a_beat(DECODE_1, links=(a_report(),)),
        a_beat("west/d2", links=(a_report(goodput_bps=6e6, bytes_total=500),)),
    )

    assert link(tracker).capacity_bps == 8e6
    assert link(tracker).goodput_bps == 6e6
    assert link(tracker).rtt_s == 0.05
    assert tracker.link_bytes_total() == {"east>west": 1500}


def test_before_anything_was_measured_a_link_has_its_configured_delay(
    tracker: ViewTracker,
) -> None:
    """Better than taking the distance for nothing."""
    assert link(tracker).rtt_s == 0.02
    assert link(tracker).goodput_bps == 0


def test_a_link_that_is_not_configured_is_ignored(tracker: ViewTracker) -> None:
    """What a worker says cannot make a link."""
    see(tracker, a_beat(DECODE_1, links=(a_report(from_datacenter="north"),)))

    assert [one.link_id for one in tracker.view().links] == ["east>west"]
    assert tracker.link_bytes_total() == {"east>west": 0}


def test_a_receiver_that_left_measures_nothing_any_more(tracker: ViewTracker) -> None:
    """Neither does it count among the live receivers."""
    see(tracker, a_beat(DECODE_1, links=(a_report(),)))

    tracker.apply_events([WorkerLeft(DECODE_1, "i1")])

    assert link(tracker).goodput_bps == 0
    assert link(tracker).rtt_s == 0.02
    assert tracker.link_bytes_total() == {"east>west": 0}


# --- The view itself -------------------------------------------------------------------------


def test_a_view_is_shared_until_something_changes(tracker: ViewTracker) -> None:
    """Building one for each request would cost more than deciding."""
    see(tracker, a_beat(EAST_1), a_beat(WEST_1))

    first, second = tracker.view(), tracker.view()
    tracker.claim(a_claim())
    third = tracker.view()

    assert first is second
    assert third is not first
    assert third.worker(WEST_1) is first.worker(WEST_1)


@pytest.mark.parametrize(
    "change",
    [
        lambda tracker: tracker.apply_snapshot(a_snapshot(a_beat(WEST_1))),
        lambda tracker: see(tracker, a_beat(EAST_1, sequence=2)),
        lambda tracker: tracker.apply_events([WorkerLeft(EAST_1, "i1")]),
        lambda tracker: tracker.claim(a_claim()),
        lambda tracker: tracker.prefill_done(a_claim()),
        lambda tracker: tracker.decode_done(a_claim()),
        lambda tracker: tracker.suspect(EAST_1),
        lambda tracker: tracker.forget_incarnation(EAST_1, "i1"),
    ],
    ids=[
        "snapshot",
        "beat",
        "goodbye",
        "claim",
        "prefill done",
        "decode done",
        "suspicion",
        "forgotten",
    ],
)
def test_every_change_has_a_new_epoch(
    tracker: ViewTracker, change: Callable[[ViewTracker], object]
) -> None:
    """A record says which view it was decided on."""
    see(tracker, a_beat(EAST_1), a_beat(DECODE_1))
    before = tracker.view()

    change(tracker)

    assert tracker.view().epoch > before.epoch


def test_a_view_that_was_given_out_never_changes(tracker: ViewTracker) -> None:
    """A decision must replay on what it saw."""
    see(tracker, a_busy_beat(EAST_1))
    given = tracker.view()
    before = repr(given)

    tracker.claim(a_claim())
    tracker.suspect(EAST_1)
    tracker.view()

    assert repr(given) == before


def test_its_picture_in_words_counts(tracker: ViewTracker) -> None:
    """For a debugger."""
    see(tracker, a_beat(EAST_1, inventory=full(**blocks("a"))))

    assert repr(tracker) == ("<ViewTracker epoch 1, 1 workers, <PrefixIndex 1 blocks, 1 workers>>")
