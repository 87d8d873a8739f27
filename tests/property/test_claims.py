"""
Claims of a router and the counts of workers, in any order: what it believes is what is true.

Invariant I6: after all requests have ended nothing is charged to anybody. And before: as workers
count what has arrived, and this router what it claimed since, each request is counted once.
"""

from __future__ import annotations

from typing import Any

from builders import a_beat
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from router_builders import a_link_config

from controlplane.domain.health import Outcome
from controlplane.router.claims import Claim
from controlplane.router.view import ViewTracker
from controlplane.store.api import StoreSnapshot, WorkerLeft, WorkerSeen
from controlplane.wire import Load, ReserveReply, WorkerBeat

PREFILLS = ("east/p1", "east/p2", "west/p1")
DECODES = ("west/d1", "west/d2")
#: A power of two, so that sums of seconds are exact.
S_PER_TOKEN = 0.25
OUTCOMES: tuple[Outcome, ...] = ("ok", "lost", "timeout", "refused", "corrupt", "stalled")


class Claims(RuleBasedStateMachine):
    """One router; workers that count at once what they are given."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.tracker = ViewTracker(
            home_datacenter="west",
            links=(a_link_config(),),
            ttl_s=1e9,
            clock=lambda: self.now_s,
        )
        self.lives = dict.fromkeys((*PREFILLS, *DECODES), 1)
        self.sequences = dict.fromkeys((*PREFILLS, *DECODES), 0)
        self.gone: set[str] = set()
        #: Claims whose prefill goes on, and claims whose decode does; each of one life.
        self.prefilling: list[Claim] = []
        self.decoding: list[Claim] = []
        for worker_id in self.lives:
            self.beat(worker_id)

    def incarnation(self, worker_id: str) -> str:
        return f"i{self.lives[worker_id]}"

    def beat_of(self, worker_id: str, **overrides: Any) -> WorkerBeat:
        """What a worker counts now: everything that has been given to this life of it."""
        requests, tokens = self.truth(worker_id)
        self.sequences[worker_id] += 1
        values: dict[str, Any] = {
            "incarnation": self.incarnation(worker_id),
            "sequence": self.sequences[worker_id],
            "load": Load(
                queue_requests=requests, queue_tokens=tokens, queue_s=tokens * S_PER_TOKEN
            ),
        }
        return a_beat(worker_id, **(values | overrides))

    def truth(self, worker_id: str) -> tuple[int, int]:
        life = (worker_id, self.incarnation(worker_id))
        mine = [
            one.prefill_tokens
            for one in self.prefilling
            if (one.prefill_worker, one.prefill_incarnation) == life
        ]
        streams = [
            one for one in self.decoding if (one.decode_worker, one.decode_incarnation) == life
        ]
        return len(mine) + len(streams), sum(mine)

    # --- What happens -------------------------------------------------------------------------

    def beat(self, worker_id: str) -> None:
        self.gone.discard(worker_id)
        self.tracker.apply_events([WorkerSeen(self.beat_of(worker_id))])

    @rule(worker_id=st.sampled_from((*PREFILLS, *DECODES)))
    def a_worker_beats(self, worker_id: str) -> None:
        self.beat(worker_id)

    @rule(worker_id=st.sampled_from((*PREFILLS, *DECODES)))
    def a_worker_answers_a_probe(self, worker_id: str) -> None:
        self.gone.discard(worker_id)
        self.tracker.store_lost()
        self.tracker.probed(worker_id, self.beat_of(worker_id))

    @rule(worker_id=st.sampled_from((*PREFILLS, *DECODES)))
    def a_worker_starts_anew(self, worker_id: str) -> None:
        self.lives[worker_id] += 1
        self.sequences[worker_id] = 0
        self.beat(worker_id)

    @rule(worker_id=st.sampled_from((*PREFILLS, *DECODES)))
    def a_worker_leaves(self, worker_id: str) -> None:
        self.gone.add(worker_id)
        self.tracker.apply_events([WorkerLeft(worker_id, self.incarnation(worker_id))])

    @rule(
        prefill=st.sampled_from(PREFILLS), decode=st.sampled_from(DECODES), tokens=st.integers(0, 9)
    )
    def a_request_is_placed(self, prefill: str, decode: str, tokens: int) -> None:
        if {prefill, decode} & self.gone:
            return
        is_offloaded = prefill.startswith("east")
        claim = Claim(
            prefill_worker=prefill,
            prefill_incarnation=self.incarnation(prefill),
            prefill_tokens=tokens,
            decode_worker=decode,
            decode_incarnation=self.incarnation(decode),
            link="east>west" if is_offloaded else None,
            link_bytes=100 * tokens if is_offloaded else 0,
            prefill_s=tokens * S_PER_TOKEN,
        )
        self.tracker.claim(claim)
        self.prefilling.append(claim)
        self.decoding.append(claim)

    @precondition(lambda self: self.prefilling)
    @rule(data=st.data())
    def a_prefill_ends(self, data: st.DataObject) -> None:
        claim = self.prefilling.pop(data.draw(st.integers(0, len(self.prefilling) - 1)))
        self.tracker.prefill_done(claim)

    @precondition(lambda self: self.decoding)
    @rule(data=st.data())
    def a_decode_ends(self, data: st.DataObject) -> None:
        claim = self.decoding.pop(data.draw(st.integers(0, len(self.decoding) - 1)))
        self.tracker.decode_done(claim)

    @rule(worker_id=st.sampled_from((*PREFILLS, *DECODES)), kind=st.sampled_from(OUTCOMES))
    def something_is_said_of_a_worker(self, worker_id: str, kind: Outcome) -> None:
        self.tracker.outcome(worker_id, self.incarnation(worker_id), kind)

    @precondition(lambda self: self.decoding)
    @rule(data=st.data())
    def the_store_says_what_is_reserved(self, data: st.DataObject) -> None:
        """By this router alone, so it says nothing new."""
        claim = data.draw(st.sampled_from(self.decoding))
        requests, _ = self.truth(claim.decode_worker)
        self.tracker.reserved(claim, ReserveReply(decode_reserved_requests=requests))

    @rule()
    def the_store_is_read_anew(self) -> None:
        snapshot = StoreSnapshot(beats=(), loads={}, link_reserved_bytes={}, cursor="0-0")
        self.tracker.apply_snapshot(snapshot)

    @rule(seconds=st.sampled_from((0.1, 1.0, 3.0, 40.0)))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds

    # --- What holds ---------------------------------------------------------------------------

    @invariant()
    def each_request_is_counted_once(self) -> None:
        view = self.tracker.view()
        for worker in view.workers:
            counted = (worker.pending_requests, worker.pending_tokens)
            assert counted == self.truth(worker.worker_id), worker.worker_id
            assert worker.pending_s == counted[1] * S_PER_TOKEN, worker.worker_id
        promised = sum(claim.link_bytes for claim in self.prefilling)
        assert [link.reserved_bytes for link in view.links] == [promised]

    @invariant()
    def the_view_is_in_order_and_complete(self) -> None:
        view = self.tracker.view()
        names = [worker.worker_id for worker in view.workers]
        assert names == sorted(self.lives.keys() - self.gone)
        for worker in view.workers:
            assert worker.incarnation == self.incarnation(worker.worker_id)
            assert view.worker(worker.worker_id) is worker

    def teardown(self) -> None:
        """All requests end, and every worker says once more how it is."""
        for claim in self.prefilling:
            self.tracker.prefill_done(claim)
        for claim in self.decoding:
            self.tracker.decode_done(claim)
        self.prefilling, self.decoding = [], []
        self.each_request_is_counted_once()
        for worker_id in self.lives.keys() - self.gone:
            self.beat(worker_id)
        for known in self.tracker._members:
            assert (known.delta_requests, known.delta_tokens) == (0, 0)


Claims.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestClaims = Claims.TestCase
