"""
The router's picture of the cluster, kept up to date by events and by its own claims.

Routing reads this and nothing else: no request waits for the store to be routed. All methods are
synchronous and take their time from an injected clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Final

from controlplane.config import LinkConfig
from controlplane.domain.cluster import ClusterView, LinkView
from controlplane.domain.health import Outcome, WorkerState, suspected
from controlplane.domain.modes import Mode, mode_of, prefix_trust
from controlplane.domain.plan import Plan
from controlplane.domain.prefix import BlockHash
from controlplane.domain.prefix_hits import Hits
from controlplane.router.beats import BeatRefusal, refusal_of
from controlplane.router.claims import Claim, ClaimBook
from controlplane.router.inventories import Inventories
from controlplane.router.known import KnownWorker
from controlplane.router.known_links import KnownLinks
from controlplane.router.members import Members, OnState
from controlplane.router.rules import ViewRules
from controlplane.store.api import StoreEvent, StoreSnapshot, WorkerLeft, WorkerSeen
from controlplane.wire import ReserveReply, WorkerBeat

#: What time alone changes (a suspicion ends, a worker is warm) is looked for so often.
_TICK_S: Final = 0.25

#: When most workers are silent at once it is likely the store that does not take their heartbeats:
#: they are asked themselves, and get so many times their time to live.
_PATIENCE: Final = 3


class ViewTracker:
    """Workers, links and prefix index of one router."""

    def __init__(
        self,
        *,
        home_datacenter: str,
        links: Sequence[LinkConfig],
        ttl_s: float,
        clock: Callable[[], float],
        suspect_s: float | None = None,
        rules: ViewRules | None = None,
        rng: Random | None = None,
        on_state: OnState | None = None,
        on_refused: Callable[[BeatRefusal], None] | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """
        Nobody is known yet.

        Args:
            home_datacenter: Of the router.
            links: Configured ones; what workers say cannot make a link.
            ttl_s: A worker that is silent for longer is dropped.
            clock: Monotonic seconds.
            suspect_s: In place of that of the rules.
            rules: For health, modes and links.
            rng: Spreads the ends of ejections.
            on_state: Told of every change of a worker's state.
            on_refused: Told of every beat that was not believed.
            wall_clock: Unix seconds, for prices that change with the time of the day.
        """
        self._home = home_datacenter
        self._ttl_s = ttl_s
        self._clock = clock
        self._rules = rules or ViewRules()
        health = self._rules.health
        if suspect_s is not None:
            health = replace(health, suspect_s=suspect_s)
        self._members = Members(health, rng or Random(), on_state)
        self._on_refused = on_refused
        self._links = KnownLinks(
            links,
            rules=self._rules.links,
            measured_within_s=self._rules.measured_within_s,
            scarcity=self._rules.scarcity,
            wall_clock=wall_clock,
        )
        self._claims = ClaimBook(self._members, self._links, clock, self._changed)
        self._inventories = Inventories()
        self._epoch = 0
        self._cached: ClusterView | None = None
        self._plan: Plan | None = None
        self._plan_end_s = clock()
        self._answering = 0
        self._tick_s = clock()
        self._heard_s = clock()
        self._is_store_away = True
        #: Nobody's time to live is over before then: what was heard since only makes it later.
        self._first_end_s = clock()
        #: Beats that were taken.
        self.beats_total = 0

    def __repr__(self) -> str:
        return f"<ViewTracker epoch {self._epoch}, {len(self._members)} workers, {self._inventories!r}>"

    # --- What the store says ------------------------------------------------------------------

    def apply_snapshot(self, snapshot: StoreSnapshot) -> None:
        """
        Take the whole picture, or a part of it.

        Workers that are missing in it are not dropped at once: after a flush of the store they
        need one heartbeat to be there again, and a live worker must not vanish meanwhile.
        """
        now_s = self._clock()
        self._hear(now_s)
        self._inventories.read_anew()
        for beat in snapshot.beats:
            self._see(beat, now_s)
        self._links.seed(snapshot.link_reserved_bytes, now_s)
        self._changed()

    def apply_events(self, events: Sequence[StoreEvent]) -> list[str]:
        """
        Take events in order.

        Returns:
            Workers that are new, by id, for the log.
        """
        now_s = self._clock()
        is_changed = self._hear(now_s)
        fresh: list[str] = []
        for event in events:
            if isinstance(event, WorkerSeen):
                is_changed = True
                if self._see(event.beat, now_s):
                    fresh.append(event.beat.worker_id)
            elif isinstance(event, WorkerLeft):
                is_changed = True
                self._forget_life(event.worker_id, event.incarnation)
        if is_changed:
            self._changed()
        return fresh

    def follow_plan(self, plan: Plan) -> None:
        """Show policies this plan, until another one comes or it is too old to be believed."""
        self._plan = plan
        self._plan_end_s = self._clock() + self._rules.plan_s_max
        self._changed()

    def store_lost(self) -> None:
        """Nothing is heard any more: keep the last view, and expire nobody by silence."""
        self._is_store_away = True

    def expire(self) -> list[str]:
        """Drop workers that have not been heard of for their time to live; their ids."""
        if self._is_store_away:
            return []
        now_s = self._clock()
        if now_s <= self._first_end_s:
            return []
        patience = _PATIENCE if self._is_silent_as_a_whole() else 1
        oldest_s = now_s - patience * self._ttl_s
        gone = [known.beat.worker_id for known in self._members if known.seen_s < oldest_s]
        for worker_id in gone:
            self._forget(worker_id)
        if gone:
            self._changed()
        first_s = min((known.seen_s for known in self._members), default=now_s)
        self._first_end_s = first_s + self._ttl_s
        return gone

    def needs_snapshot(self) -> bool:
        """A change of some inventory was missed and has not come again by itself."""
        return self._inventories.has_missed(self._clock())

    # --- What workers answer themselves -------------------------------------------------------

    def probed(self, worker_id: str, beat: WorkerBeat) -> bool:
        """
        Take a worker's answer to a probe: life, load and draining, but no inventory.

        Args:
            worker_id: Who was asked.
            beat: What the process at its address says of itself.

        Returns:
            Whether a new process life stands there.
        """
        now_s = self._clock()
        if beat.worker_id != worker_id:
            self._forget(worker_id)
            self._changed()
            return False
        is_new = self._see(beat, now_s, is_probe=True)
        self._changed()
        return is_new

    def probe_failed(self, worker_id: str, incarnation: str, *, is_refused: bool) -> bool:
        """
        A worker did not answer a probe.

        Args:
            worker_id: Who was asked.
            incarnation: The life that was known.
            is_refused: Its machine said that nobody listens there; silence says less.

        Returns:
            Whether it was dropped: refused, and not heard of for its time to live.
        """
        known = self._members.living(worker_id, incarnation)
        if known is None:
            return False
        now_s = self._clock()
        if is_refused and now_s - known.seen_s > self._ttl_s:
            return self.forget_incarnation(worker_id, incarnation)
        self._suspect(known, now_s)
        return False

    def alive(self, worker_id: str, incarnation: str) -> None:
        """Somebody answers at a worker's address who cannot tell more; it is taken for the worker."""
        known = self._members.living(worker_id, incarnation)
        if known is not None:
            known.seen_s = self._clock()
            self._members.touch(worker_id)
            self._changed()

    # --- What this router does ----------------------------------------------------------------

    def claim(self, claim: Claim) -> None:
        """Count a claim until the workers count it themselves."""
        self._claims.take(claim)

    def reserved(self, claim: Claim, reply: ReserveReply) -> None:
        """Correct the view by what the store said of a reservation."""
        self._claims.correct(claim, reply)

    def prefill_done(self, claim: Claim) -> None:
        """The prefill part is over and its bytes have moved; decode goes on."""
        self._claims.end_prefill(claim)

    def decode_done(self, claim: Claim) -> None:
        """The decode part is over."""
        self._claims.end_decode(claim)

    def outcome(self, worker_id: str, incarnation: str, kind: Outcome) -> None:
        """How a part of a request ended at a worker; see `domain/health.py` for what counts."""
        known = self._members.living(worker_id, incarnation)
        if known is not None and self._members.judge(known, kind, self._clock()):
            self._changed()

    def suspect(self, worker_id: str) -> None:
        """Give a worker no new work for a while."""
        known = self._members.get(worker_id)
        if known is not None:
            self._suspect(known, self._clock())

    def link_outcome(self, link: str, prefill_worker: str, *, is_ok: bool) -> None:
        """How a transfer over a link ended; see `domain/holddown.py` for what that makes of it."""
        if self._links.judge(link, prefill_worker, self._clock(), is_ok=is_ok):
            self._changed()

    def links_to_probe(self) -> list[LinkView]:
        """Links that a cut would concern: into this datacenter, in use lately, or held down."""
        now_s = self._clock()
        return [
            link
            for link in self.view().links
            if link.is_down
            or link.to_datacenter == self._home
            or self._links.is_in_use(link.link_id, now_s)
        ]

    def link_probed(self, link: str, *, is_answered: bool, asked_s: float) -> None:
        """What probes over a link found; see `domain/holddown.py`."""
        if self._links.probed(link, self._clock(), is_answered=is_answered, asked_s=asked_s):
            self._changed()

    def forget_incarnation(self, worker_id: str, incarnation: str) -> bool:
        """The store or the worker itself says that this process life is over; whether it was known."""
        is_gone = self._forget_life(worker_id, incarnation)
        if is_gone:
            self._changed()
        return is_gone

    # --- What policies see --------------------------------------------------------------------

    def view(self) -> ClusterView:
        """The current picture; the same object until something changes."""
        now_s = self._clock()
        if now_s >= self._tick_s:
            self._tick(now_s)
        if self._plan is not None and now_s >= self._plan_end_s:
            self._plan = None
            self._changed()
        age_s = max(0.0, now_s - self._heard_s)
        mode, trust = self._trusted(age_s)
        cached = self._cached
        if cached is not None and (cached.mode, cached.prefix_trust) == (mode, trust):
            return cached
        if cached is not None:
            self._epoch += 1
        self._cached = ClusterView.of_sites(
            self._members.sites(now_s, self._heard_s),
            self._links.views(now_s),
            epoch=self._epoch,
            age_s=age_s,
            home_datacenter=self._home,
            mode=mode,
            prefix_trust=trust,
            plan=self._plan,
            keeper=self._members.keeper,
            link_places=self._links.places,
        )
        return self._cached

    def match(self, hashes: Sequence[BlockHash], *, block_tokens: int) -> Hits:
        """Prefix hits of a prompt at every worker that has any."""
        return self._inventories.match(hashes, block_tokens=block_tokens)

    @property
    def mode(self) -> Mode:
        """Step of the degraded ladder, now."""
        return self.view().mode

    def age_s(self) -> float:
        """Seconds since the newest input from the store."""
        return max(0.0, self._clock() - self._heard_s)

    @property
    def is_store_away(self) -> bool:
        """The last call to the store failed."""
        return self._is_store_away

    @property
    def is_store_down(self) -> bool:
        """Calls to it fail, and it has not been heard for longer than a slow one takes."""
        return self._is_store_away and self.age_s() > self._rules.modes.away_s

    @property
    def needs_probes(self) -> bool:
        """The store does not tell how workers are: it is down, or most of them cannot reach it."""
        return self.is_store_down or self._is_silent_as_a_whole()

    @property
    def generation(self) -> int:
        """Grows when a worker comes, goes, or is another one than before."""
        return self._members.generation

    def beats(self) -> list[WorkerBeat]:
        """What all workers last said of themselves, in no order."""
        return [known.beat for known in self._members]

    def beat(self, worker_id: str) -> WorkerBeat | None:
        """What a worker last said of itself."""
        known = self._members.get(worker_id)
        return known.beat if known else None

    def states(self) -> dict[str, WorkerState]:
        """The one word for each worker, by id."""
        self.view()
        return {known.beat.worker_id: known.state for known in self._members}

    def silence_s(self, worker_id: str) -> float | None:
        """Seconds since a worker was heard, through the store or directly."""
        known = self._members.get(worker_id)
        return None if known is None else max(0.0, self._clock() - known.seen_s)

    def held_blocks(self, worker_id: str) -> int:
        """Blocks in a worker's prefix cache, as far as it is known."""
        return self._inventories.held_blocks(worker_id)

    def link_bytes_total(self) -> Mapping[str, int]:
        """Bytes received over each link since the live receivers started."""
        return self._links.bytes_total()

    # --- Inside -------------------------------------------------------------------------------

    def _hear(self, now_s: float) -> bool:
        """The store has answered; whether that is another picture by itself."""
        is_gap = now_s - self._heard_s > self._members.rules.silent_s / 2
        if is_gap:
            # Nobody could be heard meanwhile: the store was away, or this process stood still.
            for known in self._members:
                known.seen_s = now_s
            self._members.touch_all()
        self._heard_s = now_s
        self._is_store_away = False
        return is_gap

    def _tick(self, now_s: float) -> None:
        """What time alone has changed."""
        self._tick_s = now_s + _TICK_S
        is_due = self._members.touch_due(now_s)
        is_changed = self._links.tick(now_s) or is_due
        if now_s - self._heard_s > self._rules.modes.blind_s:
            oldest_s = now_s - self._ttl_s
            self._answering = sum(known.seen_s >= oldest_s for known in self._members)
        if is_changed:
            self._changed()

    def _is_silent_as_a_whole(self) -> bool:
        """More than half of the workers, and more than one, are silent while the store is heard."""
        oldest_s = self._heard_s - self._members.rules.silent_s
        silent = sum(known.seen_s <= oldest_s for known in self._members)
        return silent > 1 and silent * 2 > len(self._members)

    def _trusted(self, age_s: float) -> tuple[Mode, float]:
        """Step of the degraded ladder, and part of each prefix hit that is counted."""
        rules = self._rules.modes
        if age_s <= rules.stale_s <= rules.blind_s and not self._is_store_away:
            # Nearly always, and this is asked several times for each request.
            return "normal", 1.0
        return self._mode(age_s), prefix_trust(age_s, rules)

    def _mode(self, age_s: float) -> Mode:
        return mode_of(
            view_age_s=age_s,
            is_store_away=self._is_store_away,
            known=len(self._members),
            answering=self._answering,
            rules=self._rules.modes,
        )

    def _see(self, beat: WorkerBeat, now_s: float, *, is_probe: bool = False) -> bool:
        """Take a beat; true when its process life is new here."""
        refusal = refusal_of(beat)
        if refusal is not None:
            if self._on_refused is not None:
                self._on_refused(refusal)
            return False
        known = self._members.living(beat.worker_id, beat.incarnation)
        is_new = known is None
        if known is None:
            self._forget(beat.worker_id)
            born_s = None if beat.age_s is None else now_s - beat.age_s
            known = KnownWorker(beat, now_s, born_s)
            self._members.add(known)
        if not is_probe:
            self._inventories.take(known, beat, now_s)
        is_old = beat.sequence < known.beat.sequence
        if not is_new and (is_old or (not is_probe and beat.sequence == known.beat.sequence)):
            # The snapshot and the event stream told the same thing: it is no new sign of life, and
            # no claim made since is in it. An answer to a probe is a sign of life and a new count,
            # with the number of the worker's last heartbeat.
            if is_probe:
                known.seen_s = now_s
                self._members.touch(beat.worker_id)
            return False
        self._take_load(known, beat, now_s)
        return is_new

    def _take_load(self, known: KnownWorker, beat: WorkerBeat, now_s: float) -> None:
        self.beats_total += 1
        before = known.pool
        known.beat, known.seen_s = beat, now_s
        known.delta_requests = known.delta_tokens = known.reserved_requests = 0
        known.delta_s = 0.0
        if known.pool != before:
            self._members.moved_pool(known, before)
        self._members.touch(beat.worker_id)
        self._links.report(beat, now_s)

    def _forget_life(self, worker_id: str, incarnation: str) -> bool:
        known = self._members.living(worker_id, incarnation)
        if known is not None:
            self._forget(worker_id)
        return known is not None

    def _forget(self, worker_id: str) -> None:
        if self._members.remove(worker_id):
            self._inventories.forget(worker_id)
            self._links.forget(worker_id)

    def _suspect(self, known: KnownWorker, now_s: float) -> None:
        known.health = suspected(known.health, now_s, self._members.rules)
        self._members.touch(known.beat.worker_id)
        self._changed()

    def _changed(self) -> None:
        self._epoch += 1
        self._cached = None
