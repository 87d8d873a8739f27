"""What a router remembers of each worker and each link, and how policies see it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Final, TypeAlias

from controlplane.config import LinkConfig
from controlplane.domain.cluster import LinkView, WorkerView
from controlplane.domain.health import (
    UNKNOWN,
    Health,
    HealthRules,
    WorkerState,
    state_of,
    warm_share,
)
from controlplane.domain.holddown import UP, HoldDown, is_down
from controlplane.domain.link_rate import (
    LinkRate,
    LinkRateRules,
    Sample,
    extended,
    observed,
    rate_at,
    together,
    usage_of,
)
from controlplane.domain.scarcity import ABUNDANT, Scarcity, ScarcityRules, backlog_s, judged
from controlplane.wire import LinkReport, WorkerBeat

#: Workers that can stand in for each other: role, model, fingerprint.
Pool: TypeAlias = tuple[str, str, str]

_NEVER_S: Final = -math.inf
#: A warming worker is looked at twice for each step of its share.
_WARM_LOOK: Final = 0.05

_RATE: Final = LinkRateRules()
#: A link's rate and use are shown anew when they have changed by this part.
_RATE_STEP: Final = 0.05


@dataclass(slots=True)
class KnownWorker:
    """A worker: its last beat, what was seen of it, and own claims since that beat arrived."""

    beat: WorkerBeat
    #: When it was last heard, through the store or directly.
    seen_s: float
    #: When it could first take work; None for one that does not tell.
    born_s: float | None = None
    health: Health = UNKNOWN
    #: Number of the last beat whose change of inventory was taken.
    inventory_sequence: int = 0
    delta_requests: int = 0
    delta_tokens: int = 0
    delta_s: float = 0.0
    #: Requests that the store said are reserved by all routers, less own claims at that time.
    reserved_requests: int = 0
    #: So few of its pool are available that doubt does not keep it out.
    is_needed: bool = False
    #: Its view may be another one from then on, without any news.
    due_s: float = math.inf
    state: WorkerState = "healthy"
    #: As policies saw it last.
    view: WorkerView | None = None

    @property
    def pool(self) -> Pool:
        """Those that can stand in for it."""
        return (self.beat.role, self.beat.model, self.beat.fingerprint)

    def look(self, now_s: float, heard_s: float, rules: HealthRules) -> WorkerView:
        """
        Make the view anew.

        Args:
            now_s: Now.
            heard_s: When the store was last heard: before that nobody could be, and silence since
                then says nothing of the worker.
            rules: What makes a suspect.
        """
        beat, health = self.beat, self.health
        share = warm_share(None if self.born_s is None else now_s - self.born_s, rules)
        silence_s = heard_s - self.seen_s
        self.state = state_of(
            health,
            now_s=now_s,
            silence_s=silence_s,
            share=share,
            is_draining=beat.is_draining,
            rules=rules,
        )
        self.due_s = self._next_change_s(now_s, silence_s, share, rules)
        pending = beat.load.queue_requests + self.delta_requests
        self.view = WorkerView(
            worker_id=beat.worker_id,
            datacenter=beat.datacenter,
            role=beat.role,
            incarnation=beat.incarnation,
            url=beat.url,
            model=beat.model,
            fingerprint=beat.fingerprint,
            block_tokens=beat.block_tokens,
            context_tokens_max=beat.context_tokens_max,
            slots=beat.slots,
            requests_max=beat.requests_max,
            is_draining=beat.is_draining,
            can_resume=beat.can_resume,
            can_export_prefix=beat.can_export_prefix,
            has_guessed_prefixes=beat.load.has_guessed_prefixes,
            is_suspect=now_s < health.suspect_until_s or silence_s >= rules.silent_s,
            is_ejected=now_s < health.ejected_until_s,
            is_needed=self.is_needed,
            share=share,
            # Lent time that does not tell its share counts as whole: it is used less than it could be.
            lent_part=(beat.lend_share or 1.0) if beat.lent_by is not None else 1.0,
            pending_requests=max(0, pending, self.reserved_requests + self.delta_requests),
            pending_tokens=max(0, beat.load.queue_tokens + self.delta_tokens),
            pending_s=self._pending_s(),
            prefill_s_per_token=beat.profile.prefill_s_per_token,
            prefill_fixed_s=beat.profile.prefill_fixed_s,
            prefill_s_per_token_squared=beat.profile.prefill_s_per_token_squared,
            decode_step_s=beat.profile.decode_step_s,
            kv_bytes_per_token=beat.profile.kv_bytes_per_token,
            kv_state_bytes=beat.profile.kv_state_bytes,
        )
        return self.view

    def _pending_s(self) -> float:
        """Its own estimate of its queue and own claims since; 0 where it tells tokens alone."""
        queue_s = self.beat.load.queue_s
        return 0.0 if queue_s is None else max(0.0, queue_s + self.delta_s)

    def _next_change_s(
        self, now_s: float, silence_s: float, share: float, rules: HealthRules
    ) -> float:
        health = self.health
        due_s = self.seen_s + rules.silent_s if silence_s < rules.silent_s else math.inf
        for until_s in (health.suspect_until_s, health.ejected_until_s):
            if now_s < until_s < due_s:
                due_s = until_s
        return due_s if share >= 1 else min(due_s, now_s + rules.warm_s * _WARM_LOOK)


@dataclass(slots=True)
class KnownLink:
    """A link: what this router promised on it, and what receivers measured, by worker."""

    config: LinkConfig
    reserved_bytes: int = 0
    #: What other routers had promised when the store was last read, and when that was.
    foreign_bytes: int = 0
    foreign_s: float = _NEVER_S
    #: When the view was made.
    looked_s: float = _NEVER_S
    health: HoldDown = UP
    #: Whether its bandwidth binds.
    scarcity: Scarcity = ABUNDANT
    #: When a request was last sent over it.
    used_s: float = _NEVER_S
    #: When a receiver last said that bytes had moved.
    measured_s: float = _NEVER_S
    goodput_bps: dict[str, float] = field(default_factory=dict)
    rtt_s: dict[str, float] = field(default_factory=dict)
    bytes_total: dict[str, int] = field(default_factory=dict)
    #: What receivers have counted of late, and when each of them was heard.
    samples: dict[str, tuple[Sample, ...]] = field(default_factory=dict)
    sampled_s: dict[str, float] = field(default_factory=dict)
    #: What that says; None while no receiver tells.
    rate: LinkRate | None = None
    has_news: bool = False
    #: As policies see it; None when something has changed.
    view: LinkView | None = None

    def report(
        self, worker_id: str, report: LinkReport, now_s: float, *, age_s: float | None = None
    ) -> None:
        """
        Take what a receiver measured.

        Args:
            worker_id: Of the receiver.
            report: What it says.
            now_s: Now.
            age_s: How old it says it is, which is the time of its counts; None when it does not.
        """
        if report.bytes_total != self.bytes_total.get(worker_id, 0):
            self.measured_s = now_s
        if report.busy_s_total is not None and age_s is not None:
            self._sample(worker_id, report, age_s, report.busy_s_total, now_s)
        self.goodput_bps[worker_id] = report.goodput_bps
        self.rtt_s[worker_id] = report.rtt_s
        self.bytes_total[worker_id] = report.bytes_total
        self.view = None

    def _sample(
        self, worker_id: str, report: LinkReport, age_s: float, busy_s: float, now_s: float
    ) -> None:
        before = self.samples.get(worker_id, ())
        arrived_bytes, moved_bytes = report.arrived_bytes_total, report.moved_bytes_total
        newest = Sample(
            age_s=age_s,
            arrived_bytes=arrived_bytes,
            moved_bytes=arrived_bytes if moved_bytes is None else moved_bytes,
            busy_s=busy_s,
        )
        if before and newest.arrived_bytes > before[-1].arrived_bytes:
            self.measured_s = now_s
        self.samples[worker_id] = extended(before, newest, _RATE)
        self.sampled_s[worker_id] = now_s
        self.has_news = True

    def estimate(self, now_s: float) -> bool:
        """Judge what receivers have counted since the last time; whether that changes the view."""
        capacity_bps = self.config.capacity_bps
        if self.has_news:
            self.has_news = False
            heard = [
                usage_of(samples)
                for worker_id, samples in self.samples.items()
                if now_s - self.sampled_s[worker_id] <= _RATE.silent_s
            ]
            before = self.rate or LinkRate(rate_bps=capacity_bps)
            self.rate = observed(before, together(heard), capacity_bps, now_s, _RATE)
        seen = self.view
        if seen is None or self.rate is None:
            return False
        now_bps = rate_at(self.rate, capacity_bps, now_s, _RATE)
        return (
            abs(now_bps - seen.measured_bps) > _RATE_STEP * seen.measured_bps
            or abs(self.rate.utilisation - seen.utilisation) > _RATE_STEP
        )

    def forget(self, worker_id: str) -> None:
        """A receiver has gone; what it measured goes with it."""
        self.has_news = self.samples.pop(worker_id, None) is not None or self.has_news
        self.sampled_s.pop(worker_id, None)
        if worker_id in self.bytes_total:
            del self.goodput_bps[worker_id], self.rtt_s[worker_id], self.bytes_total[worker_id]
            self.view = None

    def is_down(self, now_s: float) -> bool:
        """It is held down after failed transfers."""
        return is_down(self.health, now_s)

    def is_measured(self, now_s: float, measured_within_s: float) -> bool:
        """Bytes have moved lately."""
        return now_s - self.measured_s <= measured_within_s

    def look(
        self, now_s: float, measured_within_s: float, rules: ScarcityRules, unix_s: float
    ) -> LinkView:
        """
        Make the view anew.

        Args:
            now_s: Now, monotonic.
            measured_within_s: Bytes that moved within this show that it works.
            rules: What makes it scarce.
            unix_s: Now, by the wall clock: for its price at this time of the day.
        """
        self.looked_s = now_s
        seen = LinkView(
            from_datacenter=self.config.from_datacenter,
            to_datacenter=self.config.to_datacenter,
            capacity_bps=self.config.capacity_bps,
            goodput_bps=max(self.goodput_bps.values(), default=0.0),
            measured_bps=self._measured_bps(now_s),
            utilisation=0.0 if self.rate is None else self.rate.utilisation,
            rtt_s=max(self.rtt_s.values(), default=0.0) or self.config.emulated_delay_ms / 1000,
            reserved_bytes=self.reserved_bytes + self._foreign_bytes_left(now_s),
            is_down=self.is_down(now_s),
            is_measured=self.is_measured(now_s, measured_within_s),
            egress_price_per_gb=self.config.tariff.price_at(unix_s),
        )
        self.scarcity = self.judged(seen, now_s, rules)
        self.view = replace(seen, is_scarce=True) if self.scarcity.is_scarce else seen
        return self.view

    def judged(self, seen: LinkView, now_s: float, rules: ScarcityRules) -> Scarcity:
        """Whether its bandwidth binds, by what is seen of it."""
        return judged(
            self.scarcity,
            utilisation=seen.utilisation,
            backlog_s=backlog_s(seen),
            now_s=now_s,
            rules=rules,
        )

    def _measured_bps(self, now_s: float) -> float:
        """What the link gives; 0 while nobody tells."""
        if self.rate is None:
            return 0.0
        return rate_at(self.rate, self.config.capacity_bps, now_s, _RATE)

    def _foreign_bytes_left(self, now_s: float) -> int:
        """Others' bytes move on meanwhile, at best at the link's rate."""
        if not self.foreign_bytes:
            return 0
        rate_bps = self._measured_bps(now_s) or self.config.capacity_bps
        moved_bytes = int((now_s - self.foreign_s) * rate_bps / 8)
        if moved_bytes >= self.foreign_bytes:
            self.foreign_bytes = 0
            return 0
        return self.foreign_bytes - moved_bytes
