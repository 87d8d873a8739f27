"""What must stay true: looked at while a world runs, after its last answer, and at its end."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from random import Random
from typing import TYPE_CHECKING, Any

from sim.clients import Asked, read_answer
from sim.oracle import BLOCK
from sim.routers import (
    RouterNode,
    decides,
    index_of,
    known_workers,
    published_policy,
    troubles_with_policies,
)
from sim.workers import WorkerNode

from controlplane.domain.decision import Decision
from controlplane.router.records import Attempt, DecisionRecord, decode_record, encode_record
from policies.api import Policy
from policies.registry import load_policy

if TYPE_CHECKING:
    from sim.world import World

#: What a client may be told while there are faults. Anything else is a bug, `internal_error` above
#: all.
DOCUMENTED = frozenset({
    "shed_overload", "no_candidate", "draining", "worker_refused", "worker_lost", "worker_timeout",
    "link_down", "link_stalled", "segment_stale", "segment_failed", "chunk_corrupt",
    "deadline_exceeded", "request_quarantined", "idempotency_key_in_use",
})  # fmt: skip

#: Codes of requests that may fail after the faults, too: their own doing.
_OWN_DOING = frozenset({"deadline_exceeded", "request_quarantined", "idempotency_key_in_use"})

#: A calm request must be served so often.
_GOODPUT = 0.99

#: Violations of one invariant that are told.
_TOLD_MAX = 5

#: Decisions that are replayed in each run.
_REPLAYED = 6

#: Kinds of faults that keep messages back: what was given up may arrive later than its end.
_LATE = frozenset({
    "cut", "cut_one_way", "swizzle", "delay", "pause", "store_slow", "store_error",
    "store_lost_call", "store_pause", "store_kill", "store_failover", "store_split",
})  # fmt: skip

#: Those of them that keep a worker from hearing that it should stop.
_DEAF = frozenset({"cut", "cut_one_way", "swizzle", "delay", "pause", "duplicate"})

#: Kinds of faults after which the store has lost what it had said.
_FORGETFUL = frozenset({"store_flush", "store_kill", "store_failover", "store_split"})

#: A worker stops working for a client that left within this; messages and one look come on top.
_ABORT_S = 1.0

#: A claim is released so long after its request at most: once round the recorder, and a retry.
_RELEASE_S = 3.0

#: When what was late has been caught up with.
_AFTER_S = 7.0

#: Causes of an attempt's end that speak against its prefill worker, and its decode worker.
_PREFILL_FAILED = frozenset({
    "PrefillRefused", "PrefillWorkerLost", "PrefillTimedOut", "LinkDown", "LinkStalled",
    "KvChunkCorrupt", "LeaseExpired", "SegmentFailed",
})  # fmt: skip
_DECODE_FAILED = frozenset({
    "DecodeRefused", "DecodeWorkerLost", "DecodeTimedOut", "DecodeLeft",
})  # fmt: skip


class Judge:
    """Collects violations, each with its invariant."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.violations: list[tuple[str, str]] = []
        self._seen: Counter[str] = Counter()
        #: Records by router life and request.
        self.recorded: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.records: list[DecisionRecord] = []
        #: The largest generation that each owner's life has handed out.
        self.generations: Counter[str] = Counter()
        #: Requests that a router has taken, by its life.
        self.taken: defaultdict[str, set[str]] = defaultdict(set)
        self.dead_routers: set[str] = set()
        #: Which router recorded the end of a request, and when.
        self.recorded_at: dict[str, tuple[str, float]] = {}
        #: Running requests with an idempotency key.
        self.keys: dict[str, str] = {}
        #: Lives that poison has ended.
        self.poisoned: list[str] = []
        self._in_flight_max: Counter[str] = Counter()

    def violate(self, invariant: str, said: str) -> None:
        """Something is not as it must be."""
        self._seen[invariant] += 1
        if self._seen[invariant] <= _TOLD_MAX:
            self._world.story.tell(f"VIOLATION {invariant}: {said}")
            self.violations.append((invariant, said))

    def check(self, is_right: object, invariant: str, said: str) -> None:
        """Violated unless true."""
        if not is_right:
            self.violate(invariant, said)

    @contextmanager
    def running(self, request_id: str, key: str | None) -> Iterator[None]:
        """A request is being served; one idempotency key serves one at a time."""
        is_certain = not self._world.plan.kinds & (_LATE | {"store_flush", "kill_router"})
        other = self.keys.get(key) if key is not None else None
        if other is not None and is_certain:
            self.violate("P01", f"{request_id} runs beside {other} with the same key")
        if key is not None:
            self.keys[key] = request_id
        try:
            yield
        finally:
            if key is not None and self.keys.get(key) == request_id:
                del self.keys[key]

    # --- While it runs ------------------------------------------------------------------------

    def step(self) -> None:
        """Everything that must hold at any moment."""
        for node in tuple(self._world.nodes.values()):
            if isinstance(node, RouterNode):
                self._look_at_router(node)
            else:
                self._look_at_worker(node)

        self._look_for_leaks()

    def _look_for_leaks(self) -> None:
        """Nobody works, and nothing is claimed, for requests that are over."""
        now_s, healed_s = self._world.loop.now_s, self._world.healed_s
        if now_s < healed_s + _AFTER_S and self._world.plan.kinds & _DEAF:
            return
        self._look_for_work(now_s)
        if now_s < healed_s + _AFTER_S and self._world.plan.kinds & _LATE:
            return
        self._look_for_claims(now_s)

    def _look_for_work(self, now_s: float) -> None:
        """Nobody works for a client that has left."""
        left = {
            one.request_id
            for one in self._world.asked
            if one.end == "left" and now_s - (one.ended_s or now_s) > _ABORT_S
        }
        for node in self._world.nodes.values():
            if isinstance(node, WorkerNode) and node.engine.is_moving.is_set():
                at_work = left & {job.rpartition(".")[0] for job in node.jobs_of_requests()}
                name = node.process.name
                self.check(not at_work, "I5", f"{name} works for clients that left: {at_work}")
        for router_id, taken in self.taken.items():
            if router_id not in self.dead_routers:
                flying = left & (taken - set(self.recorded[router_id]))
                self.check(not flying, "I5", f"{router_id} serves clients that left: {flying}")

    def _look_for_claims(self, now_s: float) -> None:
        """Nothing is claimed for a request that is over."""
        ledger = self._world.shared.store.memory._ledger
        store_s = ledger._clock()
        for place, members in ledger._places.items():
            for member, (until_s, _) in members.items():
                if until_s <= store_s:
                    continue
                request_id = member.split(":", 2)[2].rpartition(".")[0]
                router_id, over_s = self.recorded_at.get(request_id, ("", now_s))
                if now_s - over_s > _RELEASE_S and router_id not in self.dead_routers:
                    self.violate("I5", f"{member} is claimed at {place}, {now_s - over_s:.1f} s on")

    def _look_at_router(self, node: RouterNode) -> None:
        dispatcher, limits = node.dispatcher, self._world.shared.fleet.limits
        services, name = dispatcher.services, node.process.name
        self._in_flight_max[node.router_id] = max(
            self._in_flight_max[node.router_id], dispatcher.in_flight
        )
        most = self._in_flight_max[node.router_id]
        bound = limits.requests_max + limits.queue_requests_max
        self.check(dispatcher.in_flight <= bound, "I10", f"{name} has {dispatcher.in_flight}")
        pending = len(node.recorder._pending)
        self.check(pending <= 500, "I10", f"{name} keeps {pending} records")
        errands = len(services._errands)
        self.check(errands <= 1024, "I10", f"{name} has {errands} errands")
        budget = services.retry_budget
        allowed = max(limits.retry_floor, int(limits.retry_share * most))
        self.check(budget.used <= allowed, "I9", f"{name}: {budget!r}, {most} in flight at most")
        self.check(budget.used >= 0, "I9", f"{name}: {budget!r}")
        for worker_id, known in known_workers(node):
            # One request claims one place at a worker; attempts that ended gave theirs back.
            delta = known.delta_requests
            self.check(
                delta <= dispatcher.in_flight,
                "I6",
                f"{name} counts {delta} claims at {worker_id} for {dispatcher.in_flight} requests",
            )

    def _look_at_worker(self, node: WorkerNode) -> None:
        name, limit = node.process.name, node.agent._requests_max
        self.check(node.parts.jobs() <= limit, "I7", f"{name} runs {node.parts.jobs()} jobs")
        if node.segments is not None:
            try:
                node.segments.check_integrity()
            except AssertionError as error:
                self.violate("I6", f"{name}: {error}")

    def died(self, node: RouterNode | WorkerNode) -> None:
        """A life has ended: what it had is no loss of ours."""
        if isinstance(node, RouterNode):
            self.dead_routers.add(node.router_id)

    def left(
        self, node: RouterNode | WorkerNode, took_s: float, leaving: asyncio.Task[None]
    ) -> None:
        """A process ends after SIGTERM."""
        name = node.process.name
        self.check(took_s <= 35.0, "I15", f"{name} took {took_s:.1f} s to leave")
        if not leaving.cancelled() and leaving.exception() is not None:
            self.violate("I15", f"{name} failed to leave: {leaving.exception()!r}")

    # --- After the last answer ----------------------------------------------------------------

    def settled(self) -> None:
        """Nothing runs any more: what clients saw, and what nobody may hold now."""
        for asked in self._world.asked:
            self._judge_answer(asked)
        self._judge_calm()
        self._judge_records()
        for node in self._world.nodes.values():
            if isinstance(node, RouterNode):
                self._judge_idle_router(node)
            else:
                self._judge_idle_worker(node)
        ledger = self._world.shared.store.memory._ledger
        claims = sum(len(ledger._amounts(place)) for place in tuple(ledger._places))
        self.check(claims == 0, "I5", f"all is over, but {claims} claims are in the store")
        self.check(len(self.poisoned) <= self._poison_max(), "P11", f"poison: {self.poisoned}")

    def _poison_max(self) -> int:
        """Lives that poison may end; more when routers could not tell each other, or restarted."""
        limits = self._world.shared.fleet.limits
        quiet = self._world.plan.kinds <= {"poison", "client_leaves", "client_slow", "version_skew"}
        return limits.quarantine_deaths * (1 if quiet else 4)

    def _judge_answer(self, asked: Asked) -> None:
        who = asked.request_id
        self.check(asked.end, "I1", f"{who} was lost: no end within its time")
        self.check(not asked.further_ends, "I1", f"{who} ended again: {asked.further_ends}")
        right = asked.expected
        try:
            seen = read_answer(asked)
        except (ValueError, KeyError, IndexError) as error:
            self.violate("I3", f"{who} got a malformed body: {error}")
            return
        if asked.end == "done":
            self.check(seen.is_whole, "I1", f"{who} ended without its end")
            if seen.text != right.text:
                self.violate(*_difference(who, seen.text, right.text))
            elif seen.finish_reason != right.finish_reason:
                self.violate("I3", f"{who} ended by {seen.finish_reason}")
        else:
            self.check(right.text.startswith(seen.text), *_difference(who, seen.text, right.text))
        if asked.end == "done" and not self._world.plan.kinds & {"pause", "client_slow"}:
            took_s = (asked.ended_s or 0.0) - asked.at_s
            allowed_s = 1.15 * asked.deadline_s + 1.0
            self.check(took_s <= allowed_s, "P40", f"{who} was served after {took_s:.2f} s")
        if asked.end in {"error", "status"}:
            self.check(asked.code in DOCUMENTED, "codes", f"{who} failed with {asked.code}")
            self.check(not seen.is_whole, "I1", f"{who} failed after its end")
            if asked.code == "deadline_exceeded" and asked.ended_s is not None:
                took_s = asked.ended_s - asked.at_s
                self.check(
                    took_s >= 0.85 * asked.deadline_s,
                    "codes",
                    f"{who} was told that its {asked.deadline_s} s were over after {took_s:.2f} s",
                )
        if asked.end == "broken":
            died = any(name.startswith(f"{asked.router}-") for name in self.dead_routers)
            self.check(died, "I1", f"{who}: its connection broke, its router lives")

    def _judge_calm(self) -> None:
        calm = [one for one in self._world.asked if one.request_id.startswith("calm")]
        good = [one for one in calm if one.end == "done" or one.code in _OWN_DOING]
        if len(good) < _GOODPUT * len(calm):
            bad = [f"{one.request_id} {one.end} {one.code}" for one in calm if one not in good]
            self.violate("I14", f"10 s after the faults {len(bad)} of {len(calm)} failed: {bad}")
        if not self._world.plan.kinds:
            bad = [f"{one.request_id} {one.code}" for one in self._world.asked if one.end != "done"]
            short = {one.request_id for one in self._world.asked if one.deadline_s < 10}
            bad = [said for said in bad if said.split()[0] not in short and "in_use" not in said]
            self.check(not bad, "I14", f"without any fault: {bad}")

    def _judge_records(self) -> None:
        for router_id, counts in self.recorded.items():
            twice = {who: count for who, count in counts.items() if count > 1}
            self.check(not twice, "I1", f"{router_id} finished more than once: {twice}")
        for router_id, taken in self.taken.items():
            if router_id not in self.dead_routers:
                lost = sorted(taken - set(self.recorded[router_id]))
                self.check(not lost, "I1", f"{router_id} has no record of {lost}")
        for kept in self.records[:: max(1, len(self.records) // _REPLAYED)]:
            record = decode_record(encode_record(kept))
            for attempt in record.attempts:
                is_same = _replayed(attempt) == attempt.decision
                self.check(is_same, "I13", f"{record.request_id} is decided otherwise again")
        self._judge_attempts()
        self._judge_scopes()

    def _judge_attempts(self) -> None:
        limits = self._world.shared.fleet.limits
        most = (1 + limits.redispatch_max) * (1 + limits.migrations_max)
        for record in self.records:
            count = len(record.attempts)
            self._judge_exclusion(record)
            self.check(count <= most, "I9", f"{record.request_id} made {count} attempts")

    def _judge_exclusion(self, record: DecisionRecord) -> None:
        """The worker that failed an attempt does not get the next one."""
        if "NoPlacement" in record.story:
            return  # all have failed it, and are tried once more
        for one, two in itertools.pairwise(record.attempts):
            before, after = one.decision.placement, two.decision.placement
            if before is None or after is None:
                continue
            failed = before.prefill_worker if one.ended_by in _PREFILL_FAILED else ""
            failed = before.decode_worker if one.ended_by in _DECODE_FAILED else failed
            is_again = failed in {after.prefill_worker, after.decode_worker} and (
                one.view.worker(failed) is not None
                and two.view.worker(failed) is not None
                and one.view.worker(failed).incarnation == two.view.worker(failed).incarnation  # type: ignore[union-attr]
            )
            said = f"{record.request_id} goes to {failed} again, which has just failed it"
            self.check(not (failed and is_again), "I9", said)

    def _judge_scopes(self) -> None:
        """No prefix hit that no earlier request of the same scope can explain."""
        by_id = {one.request_id: one for one in self._world.asked}
        for record in self.records:
            asked = by_id.get(record.request_id)
            if record.report is None or asked is None:
                continue
            hit = record.report.prefill.cached_tokens
            if hit > len(asked.tokens):
                # Its own output, prefilled again after a move.
                continue
            known = max(
                (
                    _common(asked, other)
                    for other in self._world.asked
                    if other.scope == asked.scope
                    and (other is not asked or len(record.attempts) > 1)
                ),
                default=0,
            )
            self.check(
                hit <= known + BLOCK - 1 or len(record.attempts) > 1,
                "I11",
                f"{record.request_id} hit {hit} tokens, its scope had asked for {known} at most",
            )

    def _judge_idle_router(self, node: RouterNode) -> None:
        name, dispatcher = node.process.name, node.dispatcher
        services = dispatcher.services
        self.check(dispatcher.in_flight == 0, "I5", f"{name}: {dispatcher!r}")
        self.check(dispatcher._admission.running == 0, "I5", f"{name}: {dispatcher._admission!r}")
        self.check(dispatcher._admission.waiting == 0, "I5", f"{name}: {dispatcher._admission!r}")
        self.check(services.retry_budget.used == 0, "I5", f"{name}: {services.retry_budget!r}")
        self.check(services.retry_budget.waiting == 0, "I5", f"{name}: {services.retry_budget!r}")
        self.check(not services.keys._running, "I5", f"{name}: {services.keys!r}")
        self.check(not services.coalescing._leads, "I5", f"{name}: leads are left")
        self.check(services.coalescing._waiters == 0, "I5", f"{name}: waiters are left")
        self.check(not node.recorder._pending, "I5", f"{name}: {node.recorder!r}")
        self.check(not node.tracker.is_store_away, "I14", f"{name} has not found the store again")
        self._judge_policy(node)
        for other in self._world.nodes.values():
            if isinstance(other, WorkerNode):
                known = index_of(node, other.process.name)
                there = set(other.engine.cache.names())
                self.check(
                    known == there,
                    "P16",
                    f"{name} knows {len(known)} blocks of {other.process.name}, {len(there)} are "
                    f"there, {len(known & there)} in common",
                )
        for link_id, link in node.tracker._links.items():
            left = link.reserved_bytes
            self.check(left == 0, "I6", f"{name} counts {left} bytes on {link_id} for nobody")
        for worker_id, known in known_workers(node):
            left = known.delta_requests
            self.check(left == 0, "I6", f"{name} counts {left} claims at {worker_id} for nobody")

    def _judge_policy(self, node: RouterNode) -> None:
        """What was published last decides, and no policy has failed."""
        name, published = node.process.name, published_policy(self._world.shared)
        found = troubles_with_policies(node)
        self.check(not found, "policy", f"{name}: {found}")
        # A store that lost events, or went back in time, is looked at once in 30 s.
        if published is not None and not self._world.plan.kinds & _FORGETFUL:
            live = decides(node)
            said = f"{name} decides by {live}, {published} is published"
            self.check(live == published, "policy", said)

    def _judge_idle_worker(self, node: WorkerNode) -> None:
        name = node.process.name
        self.check(node.parts.jobs() == 0, "I5", f"{name} still has {node.parts.jobs()} jobs")
        try:
            node.engine.check_integrity()
        except AssertionError as error:
            self.violate("I5", f"{name}: {error}")

    # --- One time to live later ---------------------------------------------------------------

    def final(self) -> None:
        """Everything that had a time to live is over."""
        memory = self._world.shared.store.memory
        ledger: Any = memory._ledger
        claims = sum(len(ledger._amounts(place)) for place in tuple(ledger._places))
        self.check(claims == 0, "I5", f"{claims} claims in the store outlive their time")
        segments = memory._segments
        now_s = memory._clock()
        left = [name for name, (until_s, _) in segments.items() if until_s > now_s]
        self.check(not left, "I5", f"{len(left)} locations in the store outlive their lease")
        for node in self._world.nodes.values():
            if isinstance(node, WorkerNode) and node.segments is not None:
                held = node.segments.held_bytes
                self.check(held == 0, "I5", f"{node.process.name} holds {held} bytes for nobody")
            names = [task.get_name() for task in self._world.loop.tasks(node.process.host)]
            left = [name for name in names if name.partition(" ")[0] in _OF_REQUESTS]
            self.check(not left, "I5", f"{node.process.name} has tasks for nobody: {left}")

    def uncaught(self, found: list[dict[str, Any]]) -> None:
        """What no task has caught."""
        for one in found:
            self.violate("bug", f"{one.get('message')}: {one.get('exception')!r}")


#: First words of the names of tasks that belong to one request.
_OF_REQUESTS = frozenset({"decode", "http", "kv", "prefill", "accept", "abort"})


@cache
def _policy(name: str, parameters: str) -> Policy:
    """Found once: looking for it reads the metadata of all packages."""
    return load_policy(name, json.loads(parameters))


def _replayed(attempt: Attempt) -> Decision:
    """What `router.records.replay` says, without looking for the policy each time."""
    policy = _policy(attempt.policy, json.dumps(dict(attempt.parameters)))
    return policy.decide(attempt.features, attempt.view, Random(attempt.seed))


def _difference(who: str, seen: str, right: str) -> tuple[str, str]:
    """The invariant that a wrong text breaks: a gap or repeat, or another text altogether."""
    common = 0
    while common < min(len(seen), len(right)) and seen[common] == right[common]:
        common += 1
    rest = seen[common:]
    said = f"{who} got {seen!r} instead of {right!r}, the same up to {common}"
    is_shifted = common > 0 and any(
        right[at:].startswith(rest[:4]) for at in range(max(0, common - 4), common + 5)
    )
    return ("I2" if is_shifted else "I3"), said


def _common(asked: Asked, other: Asked) -> int:
    """Tokens of the longest common prefix, of requests that had begun."""
    if other.at_s > asked.at_s and other is not asked:
        # It may have overtaken; its prefix counts all the same.
        pass
    one, two = asked.tokens.data, other.tokens.data
    if one == two and other is not asked:
        return len(asked.tokens)
    low, high = 0, min(len(one), len(two))
    while low < high:
        middle = (low + high + 1) // 2
        if one[:middle] == two[:middle]:
            low = middle
        else:
            high = middle - 1
    return low // asked.tokens.width_bytes
