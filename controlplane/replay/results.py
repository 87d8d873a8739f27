"""What a replay under one policy came to, and how its figures are gathered as requests end."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final

from controlplane.domain.cluster import link_id
from controlplane.replay.quantiles import Quantiles
from controlplane.replay.series import Series
from controlplane.router.records import DecisionRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """What a client expects; None expects nothing."""

    ttft_s: float | None = None
    tpot_s: float | None = None

    def is_met(self, ttft_s: float, tpot_s: float) -> bool:
        """Whether a request was as fast as it should be."""
        return (self.ttft_s is None or ttft_s <= self.ttft_s) and (
            self.tpot_s is None or tpot_s <= self.tpot_s
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """A distribution of times, seconds."""

    mean: float
    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, quantiles: Quantiles) -> Latency:
        """Its four figures."""
        return cls(
            mean=quantiles.mean,
            p50=quantiles.at(0.5),
            p90=quantiles.at(0.9),
            p99=quantiles.at(0.99),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkUse:
    """One link over the whole replay."""

    bytes_total: int
    #: Part of what it could have carried.
    utilisation: float
    #: What these bytes cost, in the currency of the fleet.
    egress_cost: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleUse:
    """The workers of one role in one datacenter."""

    #: On average over the replay: some may have changed their role.
    workers: float
    #: Part of their time (prefill) or of their slots (decode) that was used.
    utilisation: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyResult:
    """All figures of one policy."""

    policy: str
    requests: int
    #: By terminal outcome, and by code of those that were not served.
    done: int
    outcomes: dict[str, int]
    #: From the first arrival to the last, virtual seconds.
    arrivals_s: float
    #: Until the last request had ended.
    finished_s: float
    #: Requests that ended well between the first arrival (or the end of the warm-up) and the last,
    #: per second.
    throughput_per_s: float
    #: Requests within the objective, per second of arrivals.
    goodput_per_s: float
    #: Part of all requests that were within it.
    within_slo: float
    ttft_s: Latency
    #: Of a token after the first.
    tpot_s: Latency
    #: Waiting for a prefill worker, and for KV after the prefill.
    prefill_queue_s: Latency
    #: Part of all prompt tokens that were cached where they were prefilled.
    prefix_hit_ratio: float
    #: Part of the served requests that were prefilled in another datacenter, and of their tokens.
    offloaded: float
    offloaded_tokens: float
    #: Further attempts.
    retries: int
    links: dict[str, LinkUse]
    roles: dict[str, RoleUse]
    reasons: dict[str, int]
    #: Of everything that happened to every request: equal for equal runs.
    digest: str
    #: Sums by time, for charts: step in seconds, then one list for each quantity.
    step_s: float = 1.0
    series: dict[str, list[float]] = field(default_factory=dict)
    #: Points of the distribution of times to the first token.
    ttft_curve: tuple[tuple[float, float], ...] = ()

    @property
    def egress_cost(self) -> float:
        """Of all links, in the currency of the fleet."""
        return sum(link.egress_cost for link in self.links.values())


#: Quantities that are summed by time: `ttft_s` of those that had their first token then, whose
#: number is `started`.
_SERIES: Final = ("arrived", "started", "ttft_s", "done", "within", "offloaded")


class Tally:
    """Gathers figures as requests end; its size does not grow with their number."""

    def __init__(self, slo: Slo, *, step_s: float = 1.0, warmup_s: float = 0.0) -> None:
        """
        Args:
            slo: What goodput counts.
            step_s: Length of a step of the series, at first.
            warmup_s: Throughput is counted from then on.
        """
        self._slo = slo
        self._warmup_s = warmup_s
        self._digest = sha256()
        self.outcomes: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.ttft_s, self.tpot_s, self.queue_s = Quantiles(), Quantiles(), Quantiles()
        self.requests = self.ended = self.done = self.within = self.retries = 0
        self.offloaded = self.tokens = self.offloaded_tokens = 0
        self.prompt_tokens = self.cached_tokens = 0
        self.link_bytes: Counter[str] = Counter()
        self.series = Series(*_SERIES, step_s=step_s)
        self.last_arrival_s = self.last_end_s = 0.0

    def __repr__(self) -> str:
        return f"<Tally {self.ended} of {self.requests} requests>"

    def arrived(self, now_s: float) -> None:
        """A request is here."""
        self.requests += 1
        self.last_arrival_s = now_s
        self.series.add(now_s, "arrived")

    def refused(self, request_id: str, code: str, now_s: float) -> None:
        """A request was not let in."""
        self._end(now_s)
        self.outcomes[code] += 1
        self._digest.update(f"{request_id} {code} {now_s:.9f}\n".encode())

    def finished(self, record: DecisionRecord, now_s: float) -> None:
        """
        A request is over.

        Args:
            record: All of it.
            now_s: Since the beginning of the replay.
        """
        self._end(now_s)
        placement = record.attempts[-1].decision.placement if record.attempts else None
        where = (
            f"{placement.prefill_worker}>{placement.decode_worker}" if placement is not None else ""
        )
        first_s = record.timeline.first_token_s
        self._digest.update(
            f"{record.request_id} {record.code} {where} {first_s} {now_s:.9f}\n".encode()
        )
        self.retries += max(0, len(record.attempts) - 1)
        report = record.report
        if record.outcome != "done" or report is None or first_s is None or placement is None:
            self.outcomes[record.code or record.outcome] += 1
            return
        self.outcomes["done"] += 1
        self.done += 1
        self.reasons[record.attempts[-1].decision.reason] += 1
        self.series.add(now_s, "done")
        self.ttft_s.add(first_s)
        # When it was there, not when the request ended: that is what recovery is judged by.
        started_s = max(0.0, now_s - record.timeline.finished_s + first_s)
        self.series.add(started_s, "started")
        self.series.add(started_s, "ttft_s", first_s)
        after_first = report.output_tokens - 1
        tpot_s = (record.timeline.finished_s - first_s) / after_first if after_first > 0 else 0.0
        self.tpot_s.add(tpot_s)
        self.queue_s.add(report.prefill.queue_s)
        if self._slo.is_met(first_s, tpot_s):
            self.within += 1
            self.series.add(now_s, "within")
        computed, cached = report.prefill.computed_tokens, report.prefill.cached_tokens
        self.prompt_tokens += computed + cached
        self.cached_tokens += cached
        self.tokens += computed
        if placement.is_offloaded:
            self.offloaded += 1
            self.offloaded_tokens += computed
            self.series.add(now_s, "offloaded")
            name = link_id(placement.prefill_datacenter, placement.decode_datacenter)
            self.link_bytes[name] += report.transfer.bytes

    def _end(self, now_s: float) -> None:
        self.ended += 1
        self.last_end_s = now_s

    def result(
        self, policy: str, *, links: dict[str, LinkUse], roles: dict[str, RoleUse]
    ) -> PolicyResult:
        """All figures."""
        arrivals_s = max(self.last_arrival_s, 1e-9)
        begin_s = self._warmup_s if arrivals_s > self._warmup_s else 0.0
        in_time = min(self.done, self.series.between("done", begin_s, arrivals_s))
        digest = self._digest.copy()
        digest.update(repr((sorted(links.items()), sorted(roles.items()))).encode())
        return PolicyResult(
            policy=policy,
            requests=self.requests,
            done=self.done,
            outcomes=dict(sorted(self.outcomes.items())),
            arrivals_s=self.last_arrival_s,
            finished_s=self.last_end_s,
            throughput_per_s=in_time / (arrivals_s - begin_s),
            goodput_per_s=self.within / arrivals_s,
            within_slo=self.within / max(1, self.requests),
            ttft_s=Latency.of(self.ttft_s),
            tpot_s=Latency.of(self.tpot_s),
            prefill_queue_s=Latency.of(self.queue_s),
            prefix_hit_ratio=self.cached_tokens / max(1, self.prompt_tokens),
            offloaded=self.offloaded / max(1, self.done),
            offloaded_tokens=self.offloaded_tokens / max(1, self.tokens),
            retries=self.retries,
            links=links,
            roles=roles,
            reasons=dict(sorted(self.reasons.items())),
            digest=digest.hexdigest(),
            step_s=self.series.step_s,
            series={name: self.series.of(name) for name in _SERIES},
            ttft_curve=tuple(_thinned(list(self.ttft_s.curve()))),
        )


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most two hundred points of a curve, and its last."""
    every = max(1, len(points) // 200)
    return points[::every] + points[-1:] if points else []
