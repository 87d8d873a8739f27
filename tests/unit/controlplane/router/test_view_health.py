"""What the router's picture makes of failures, silence, youth, and of hearing less and less."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from builders import a_beat, a_request
from router_builders import DECODE_1, DECODE_2, EAST_1, EAST_2, WEST_1, a_link_config

from controlplane.domain.cluster import LinkView, WorkerView
from controlplane.domain.health import HealthRules, Outcome, WorkerState
from controlplane.router.claims import Claim
from controlplane.router.rules import ViewRules
from controlplane.router.view import ViewTracker
from controlplane.store.api import StoreSnapshot, WorkerLeft, WorkerSeen
from controlplane.wire import Inventory, LinkReport, Load, ReserveReply, WorkerBeat
from policies.api import Parameters
from policies.local_only import LocalOnlyPolicy

TTL_S = 5.0
BLOCK = b"\1" * 16
PREFILLS = (EAST_1, EAST_2, WEST_1)


class World:
    """A router in west, its clock, and what it was told to say."""

    def __init__(self, *beats: WorkerBeat, **rules: Any) -> None:
        self.now_s = 1000.0
        self.states: list[tuple[str, WorkerState, WorkerState]] = []
        self.refused: list[str] = []
        self.tracker = ViewTracker(
            home_datacenter="west",
            links=(a_link_config(),),
            ttl_s=TTL_S,
            clock=lambda: self.now_s,
            rules=ViewRules(health=HealthRules(eject_jitter=0.0, **rules)),
            rng=Random(0),
            on_state=lambda worker_id, _, before, after: self.states.append(
                (worker_id, before, after)
            ),
            on_refused=self.refused.append,
        )
        self._sequences: dict[str, int] = {}
        self.beat(*beats)

    def beat(self, *beats: WorkerBeat) -> None:
        """Workers report through the store."""
        self.tracker.apply_events([WorkerSeen(beat) for beat in beats])
        self._sequences |= {beat.worker_id: beat.sequence for beat in beats}

    def live(self, seconds: float, *silent: str) -> None:
        """Time passes; the store answers, and all workers beat but the silent ones."""
        for tenth in range(round(seconds * 10)):
            self.now_s += 0.1
            if tenth % 10 == 9:
                self.beat(
                    *(
                        beat.model_copy(update={"sequence": beat.sequence + 1})
                        for beat in self.tracker.beats()
                        if beat.worker_id not in silent
                    )
                )
            else:
                self.tracker.apply_events([])

    def be_deaf(self, seconds: float) -> None:
        """Time passes, and the store does not answer."""
        self.tracker.store_lost()
        self.now_s += seconds

    def fail(self, worker_id: str, times: int = 1, kind: Outcome = "lost") -> None:
        for _ in range(times):
            self.tracker.outcome(worker_id, "i1", kind)

    def worker(self, worker_id: str = EAST_1) -> WorkerView:
        found = self.tracker.view().worker(worker_id)
        assert found is not None
        return found

    def link(self) -> LinkView:
        (found,) = self.tracker.view().links
        return found

    def names(self) -> list[str]:
        return [worker.worker_id for worker in self.tracker.view().workers]

    def state(self, worker_id: str = EAST_1) -> WorkerState:
        return self.tracker.states()[worker_id]

    def probe_all(self, *silent: str) -> None:
        """Everybody answers a probe but the silent ones."""
        for beat in self.tracker.beats():
            if beat.worker_id in silent:
                self.tracker.probe_failed(beat.worker_id, beat.incarnation, is_refused=False)
            else:
                self.tracker.probed(beat.worker_id, beat)


def a_world(**rules: Any) -> World:
    """Three prefill and two decode workers."""
    return World(*(a_beat(name) for name in (*PREFILLS, DECODE_1, DECODE_2)), **rules)


# --- Failures --------------------------------------------------------------------------------


def test_a_worker_that_failed_is_suspect_and_recovers() -> None:
    world = a_world()

    world.fail(EAST_1)
    at_once = world.worker().is_suspect
    world.live(2)

    assert at_once
    assert not world.worker().is_suspect
    assert world.states == [(EAST_1, "healthy", "suspect"), (EAST_1, "suspect", "healthy")]


def test_failures_of_an_earlier_life_are_not_held_against_this_one() -> None:
    world = a_world()

    world.tracker.outcome(EAST_1, "i0", "lost")
    world.tracker.outcome("nobody", "i1", "lost")

    assert not world.worker().is_suspect


def test_a_worker_that_goes_on_failing_is_ejected_and_comes_back() -> None:
    world = a_world()

    world.fail(EAST_1, 5)
    world.live(9.8)
    still = world.worker().is_ejected
    world.live(0.6)

    assert still
    assert not world.worker().is_ejected
    assert world.state() == "healthy"


def test_a_source_of_corrupt_chunks_is_ejected() -> None:
    world = a_world()

    world.fail(EAST_1, 2, "corrupt")
    before = world.state()
    world.fail(EAST_1, 1, "corrupt")

    assert (before, world.state()) == ("healthy", "ejected")


def test_of_three_only_one_is_ejected() -> None:
    """The others stay suspects: those are forgiven in two seconds."""
    world = a_world()

    world.fail(EAST_1, 5)
    world.fail(EAST_2, 5)

    assert (world.state(EAST_1), world.state(EAST_2)) == ("ejected", "suspect")


def test_when_most_of_a_pool_is_doubted_all_of_it_is_used() -> None:
    world = a_world()

    world.fail(EAST_1)
    with_one = world.worker(EAST_1).is_needed
    world.fail(EAST_2)
    with_two = [world.worker(name).is_needed for name in PREFILLS]
    world.live(2)

    assert not with_one
    assert with_two == [True, True, True]
    assert not world.worker(EAST_1).is_needed
    assert not world.worker(DECODE_1).is_needed


def test_draining_workers_do_not_count_for_a_pool() -> None:
    world = a_world()

    world.beat(a_beat(EAST_1, sequence=2, is_draining=True))
    world.fail(EAST_2)

    assert not world.worker(EAST_2).is_needed, "one of two is half"
    assert world.state(EAST_1) == "draining"


def test_another_fingerprint_is_another_pool() -> None:
    """Its workers cannot stand in for these."""
    world = a_world()

    world.beat(a_beat(WEST_1, sequence=2, fingerprint="g"))
    world.fail(EAST_1)
    world.fail(EAST_2)

    assert world.worker(EAST_1).is_needed
    assert not world.worker(WEST_1).is_needed


# --- Silence ---------------------------------------------------------------------------------


def test_a_worker_that_stands_still_for_a_moment_is_never_dropped() -> None:
    """A pause of 1.5 s ends in time for its next heartbeat."""
    world = a_world()
    world.live(3)

    world.live(2, EAST_1)
    gone = world.tracker.expire()
    world.live(1)

    assert gone == []
    assert EAST_1 in world.names()
    assert world.state() == "healthy"


def test_silence_makes_a_suspect_and_then_an_end() -> None:
    world = a_world()

    world.live(2.4, EAST_1)
    doubted = (world.state(), world.tracker.expire())
    world.live(3, EAST_1)

    assert doubted == ("suspect", [])
    assert world.tracker.expire() == [EAST_1]


def test_a_fleet_that_falls_silent_as_a_whole_is_asked_and_not_dropped() -> None:
    """A store that is too slow for heartbeats, and still answers this router."""
    world = a_world()
    everybody = (*PREFILLS, DECODE_1, DECODE_2)
    world.live(1)
    before = world.tracker.needs_probes

    world.live(6, *everybody)
    asked, gone = world.tracker.needs_probes, world.tracker.expire()
    decision = LocalOnlyPolicy(Parameters()).decide(a_request(), world.tracker.view(), Random(0))
    world.probe_all()

    assert (before, asked, gone) == (False, True, [])
    assert decision.placement is not None
    assert not world.tracker.needs_probes
    world.live(16, *everybody)
    assert sorted(world.tracker.expire()) == sorted(everybody)


def test_a_worker_that_wakes_with_the_same_incarnation_comes_back() -> None:
    """With its claims as it counts them, and its cache as it reports it."""
    world = a_world()
    world.live(6, EAST_1)
    gone = world.tracker.expire()

    world.beat(a_beat(EAST_1, sequence=50, inventory=Inventory(is_full=True)))

    assert gone == [EAST_1]
    assert world.state() == "healthy"
    assert not world.tracker.needs_snapshot()


def test_a_router_that_stood_still_itself_suspects_nobody() -> None:
    """Nobody can be heard by a process that does not run."""
    world = a_world()
    world.live(1)
    world.now_s += 60

    before = [world.state(name) for name in PREFILLS]
    world.tracker.apply_events([])

    assert before == ["healthy"] * 3
    assert [world.state(name) for name in PREFILLS] == ["healthy"] * 3
    assert world.tracker.expire() == []


# --- Youth -----------------------------------------------------------------------------------


def test_a_new_worker_warms_up() -> None:
    world = World(a_beat(EAST_1, age_s=0.0))
    shares = [world.worker().share]

    for _ in range(12):
        world.live(1)
        shares.append(world.worker().share)

    assert shares[0] == 0.1
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert world.states == [(EAST_1, "healthy", "warming"), (EAST_1, "warming", "healthy")]


@pytest.mark.parametrize("age_s", [None, 3600.0, 1e18])
def test_an_old_worker_is_warm(age_s: float | None) -> None:
    """Also one of a version that does not tell, and one whose clock is off."""
    assert World(a_beat(EAST_1, age_s=age_s)).worker().share == 1.0


# --- Hearing less and less -------------------------------------------------------------------


def test_the_ladder_is_climbed_down_and_up_again() -> None:
    world = a_world()
    world.tracker.apply_events([])
    modes = [world.tracker.mode]
    world.now_s += 2.5
    modes.append(world.tracker.mode)
    world.tracker.store_lost()
    modes.append(world.tracker.mode)
    world.now_s += 30
    modes.append(world.tracker.mode)
    world.probe_all(*PREFILLS)
    world.now_s += 0.3
    modes.append(world.tracker.mode)
    world.tracker.apply_events([])
    modes.append(world.tracker.mode)

    assert modes == ["normal", "stale_view", "store_down", "shed", "local_only", "normal"]


def test_workers_that_answer_keep_a_router_going() -> None:
    world = a_world()

    for _ in range(60):
        world.be_deaf(1)
        world.probe_all()
        decision = LocalOnlyPolicy(Parameters()).decide(
            a_request(), world.tracker.view(), Random(0)
        )
        assert decision.placement is not None

    assert world.tracker.mode == "store_down"


def test_every_step_is_another_view_with_another_epoch() -> None:
    """A record says which picture it was decided on."""
    world = a_world()
    first = world.tracker.view()

    world.now_s += 2.5
    stale = world.tracker.view()
    world.now_s += 1
    staler = world.tracker.view()

    assert first.epoch < stale.epoch < staler.epoch
    assert (first.prefix_trust, stale.prefix_trust, staler.prefix_trust) == (1.0, 0.5, 0.25)
    assert world.tracker.view() is staler


# --- Probes ----------------------------------------------------------------------------------


def test_an_answer_to_a_probe_tells_load_and_draining() -> None:
    world = a_world()
    world.be_deaf(1)

    busy = a_beat(EAST_1, load=Load(queue_requests=3, queue_tokens=70), is_draining=True)
    world.tracker.probed(EAST_1, busy)

    seen = world.worker()
    assert (seen.pending_requests, seen.pending_tokens, seen.is_draining) == (3, 70, True)


def test_an_answer_to_a_probe_leaves_the_inventory_to_the_store() -> None:
    """It has none in it; the heartbeat of the same number has the change that it lacks."""
    world = World(a_beat(EAST_1, inventory=Inventory(is_full=True)))
    change = Inventory.model_validate({"stored": {BLOCK.hex(): "as"}})

    world.tracker.probed(EAST_1, a_beat(EAST_1, sequence=2))
    world.beat(a_beat(EAST_1, sequence=2, inventory=change))

    assert world.tracker.held_blocks(EAST_1) == 1


def test_what_was_cached_is_kept_while_the_worker_lives() -> None:
    stored = Inventory.model_validate({"is_full": True, "stored": {BLOCK.hex(): "as"}})
    world = World(a_beat(EAST_1, inventory=stored))
    world.be_deaf(1)

    world.tracker.probed(EAST_1, a_beat(EAST_1, sequence=9))
    same_life = world.tracker.held_blocks(EAST_1)
    is_new = world.tracker.probed(EAST_1, a_beat(EAST_1, incarnation="i2"))

    assert same_life == 1
    assert is_new
    assert world.tracker.held_blocks(EAST_1) == 0


def test_where_another_worker_answers_the_known_one_is_gone() -> None:
    world = a_world()

    world.tracker.probed(EAST_1, a_beat("east/p9"))

    assert EAST_1 not in world.names()


def test_a_worker_that_does_not_answer_is_suspect() -> None:
    world = a_world()
    world.be_deaf(1)

    world.tracker.probe_failed(EAST_1, "i1", is_refused=False)

    assert world.state() == "suspect"


def test_where_nobody_listens_any_more_the_worker_is_dropped() -> None:
    """After its time to live; silence alone may be the way between."""
    world = a_world()
    dropped = []
    for _ in range(7):
        world.be_deaf(1)
        refused = world.tracker.probe_failed(EAST_1, "i1", is_refused=True)
        silent = world.tracker.probe_failed(EAST_2, "i1", is_refused=False)
        dropped.append((refused, silent))

    assert dropped.index((True, False)) == 5
    assert EAST_1 not in world.names()
    assert world.state(EAST_2) == "suspect"


def test_somebody_who_cannot_tell_is_alive() -> None:
    world = a_world()
    world.be_deaf(4)

    world.tracker.alive(EAST_1, "i1")
    world.tracker.alive(EAST_2, "i0")

    assert world.tracker.silence_s(EAST_1) == 0
    assert world.tracker.silence_s(EAST_2) == 4
    assert world.tracker.silence_s("nobody") is None


def test_an_old_answer_is_a_sign_of_life_and_no_more() -> None:
    world = World(a_beat(EAST_1, sequence=5, load=Load(queue_requests=2)))
    world.be_deaf(1)

    world.tracker.probed(EAST_1, a_beat(EAST_1, sequence=4))

    assert world.worker().pending_requests == 2
    assert world.tracker.silence_s(EAST_1) == 0


# --- Changes that were missed ----------------------------------------------------------------


def test_a_missed_change_is_asked_for_when_it_does_not_come_by_itself() -> None:
    """The event stream was trimmed, or lost."""
    world = World(a_beat(EAST_1, inventory=Inventory(is_full=True)))

    world.beat(a_beat(EAST_1, sequence=3))
    at_once = world.tracker.needs_snapshot()
    world.now_s += 2
    later = world.tracker.needs_snapshot()
    world.tracker.apply_snapshot(
        StoreSnapshot(
            beats=(a_beat(EAST_1, sequence=3, inventory=Inventory(is_full=True)),),
            loads={},
            link_reserved_bytes={},
            cursor="0-0",
        )
    )

    assert (at_once, later) == (False, True)
    assert not world.tracker.needs_snapshot()


@pytest.mark.parametrize(
    "news",
    [
        WorkerSeen(a_beat(EAST_1, sequence=4, inventory=Inventory(is_full=True))),
        WorkerLeft(EAST_1, "i1"),
    ],
    ids=["it came in full", "it left"],
)
def test_a_missed_change_may_come_by_itself(news: WorkerSeen | WorkerLeft) -> None:
    world = World(a_beat(EAST_1, inventory=Inventory(is_full=True)))

    world.beat(a_beat(EAST_1, sequence=3))
    world.tracker.apply_events([news])
    world.now_s += 2

    assert not world.tracker.needs_snapshot()


# --- Beats that nobody can have sent ---------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ({"requests_max": 10**9}, "capacity"),
        ({"context_tokens_max": 1 << 50}, "capacity"),
        ({"sequence": 1 << 50}, "capacity"),
        ({"load": {"queue_tokens": 1 << 60}}, "load"),
        ({"load": {"queue_requests": 10**9}}, "load"),
        ({"profile": {"prefill_s_per_token": 1e17}}, "profile"),
        ({"profile": {"kv_bytes_per_token": 1 << 60}}, "profile"),
        (
            {"links": [{"from_datacenter": "east", "to_datacenter": "west", "goodput_bps": 1e17}]},
            "link",
        ),
    ],
)
def test_an_absurd_beat_is_refused_and_counted(overrides: dict[str, Any], reason: str) -> None:
    """It would draw all requests to itself, or push all away from a link."""
    world = a_world()
    beat = WorkerBeat.model_validate({**a_beat(EAST_1, sequence=2).model_dump(), **overrides})

    world.beat(beat)

    assert world.refused == [reason]
    known = world.tracker.beat(EAST_1)
    assert known is not None
    assert known.sequence == 1
    policy = LocalOnlyPolicy(Parameters())
    assert policy.decide(a_request(), world.tracker.view(), Random(0)).placement is not None


# --- Links -----------------------------------------------------------------------------------


def a_report(bytes_total: int) -> LinkReport:
    return LinkReport(
        from_datacenter="east", to_datacenter="west", goodput_bps=4e6, bytes_total=bytes_total
    )


def test_a_link_that_fails_is_held_down() -> None:
    world = a_world()

    world.tracker.link_outcome("east>west", EAST_1, is_ok=False)
    once = world.link().is_down
    world.tracker.link_outcome("east>west", EAST_2, is_ok=False)
    twice = world.link().is_down
    world.live(2.3)
    world.tracker.link_outcome("nowhere>west", EAST_1, is_ok=False)
    after = world.link().is_down
    world.tracker.link_probed("east>west", is_answered=True, asked_s=world.now_s)

    assert (once, twice, after, world.link().is_down) == (False, True, True, False)


def test_a_link_is_measured_while_bytes_move() -> None:
    world = a_world()
    never = world.link().is_measured

    world.beat(a_beat(DECODE_1, sequence=2, links=(a_report(1000),)))
    moved = world.link().is_measured
    world.live(10.5)

    assert (never, moved, world.link().is_measured) == (False, True, False)


def a_count(age_s: float, mbit: float, busy_s: float) -> WorkerBeat:
    """What a decode worker has counted when it is so old: a link of 8 Mbit/s leads to it."""
    report = LinkReport(
        from_datacenter="east",
        to_datacenter="west",
        arrived_bytes_total=int(mbit * 1e6 / 8),
        busy_s_total=busy_s,
    )
    return a_beat(DECODE_1, sequence=100 + round(age_s), age_s=age_s, links=(report,))


def counted(world: World, *counts: tuple[float, float, float]) -> LinkView:
    """A second passes before each of these heartbeats."""
    for count in counts:
        world.now_s += 1.0
        world.beat(a_count(*count))
    return world.link()


def test_a_link_gives_what_its_receivers_get_while_it_is_busy() -> None:
    world = a_world()
    before = world.link().rate_bps

    link = counted(world, (1, 8, 1), (2, 9, 2), (3, 10, 3), (4, 11, 4))

    assert (before, link.rate_bps, link.utilisation) == (8e6, 1e6, 1.0)


def test_a_link_that_is_hardly_used_gives_its_budget() -> None:
    link = counted(a_world(), (1, 0.8, 0.1), (2, 0.9, 0.12), (3, 1.0, 0.14))

    assert link.rate_bps == 8e6
    assert link.utilisation == pytest.approx(0.1 / 8)


def test_bytes_of_a_transfer_under_way_show_that_a_link_works() -> None:
    world = a_world()
    world.live(10.5)

    link = counted(world, (1, 0.0, 0.0), (2, 0.1, 0.1))

    assert link.is_measured


def test_an_estimate_rises_again_while_nothing_is_told() -> None:
    world = a_world()
    low = counted(world, (1, 1, 1), (2, 2, 2), (3, 3, 3)).rate_bps

    world.live(12.0)
    later = world.link().rate_bps
    world.live(30.0)

    assert low == 1e6
    assert 2e6 <= later <= 4e6
    assert world.link().rate_bps == 8e6


def test_what_a_receiver_used_is_forgotten_with_it() -> None:
    world = a_world()
    counted(world, (1, 1, 1), (2, 2, 2), (3, 3, 3))

    world.tracker.forget_incarnation(DECODE_1, "i1")
    world.now_s += 1.0

    assert world.link().utilisation == 0.0


def test_bytes_that_others_promised_drain_at_the_links_rate() -> None:
    """The store keeps their reservations longer than their transfers take."""
    world = a_world()
    snapshot = StoreSnapshot(
        beats=(), loads={}, link_reserved_bytes={"east>west": 3_000_000}, cursor="0-0"
    )

    world.tracker.apply_snapshot(snapshot)
    at_first = world.link().reserved_bytes
    world.live(1.1)
    later = world.link().reserved_bytes
    world.live(3)

    assert at_first == 3_000_000
    assert later == pytest.approx(1_900_000, rel=0.1)
    assert world.link().reserved_bytes == 0


# --- Claims of others ------------------------------------------------------------------------

CLAIM = Claim(
    prefill_worker=EAST_1,
    prefill_incarnation="i1",
    prefill_tokens=100,
    decode_worker=DECODE_1,
    decode_incarnation="i1",
)


def test_what_other_routers_reserved_is_seen_at_once() -> None:
    """Before the decode worker's next heartbeat; with what this router does meanwhile."""
    world = a_world()
    world.tracker.claim(CLAIM)

    world.tracker.reserved(CLAIM, ReserveReply(decode_reserved_requests=7))
    told = world.worker(DECODE_1).pending_requests
    world.tracker.claim(CLAIM)
    more = world.worker(DECODE_1).pending_requests
    world.beat(a_beat(DECODE_1, sequence=2, load=Load(queue_requests=2)))

    assert (told, more) == (7, 8)
    assert world.worker(DECODE_1).pending_requests == 2


def test_a_prefill_worker_that_others_filled_is_full() -> None:
    """Their reservations outlive their prefills, so they are believed only when they refuse."""
    world = a_world()

    world.tracker.reserved(CLAIM, ReserveReply(prefill_reserved_requests=16))
    granted = world.worker(EAST_1).pending_requests
    world.tracker.reserved(
        CLAIM, ReserveReply(refused_by="prefill_full", prefill_reserved_requests=16)
    )

    assert (granted, world.worker(EAST_1).pending_requests) == (0, 16)
