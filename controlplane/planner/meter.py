"""
What one router tells of its traffic: it is told of each request when it comes, is placed and ends.

Constant time per request, but for the search of its prefix hits; memory bounded by datacenters and bins.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

from controlplane.domain.cluster import Role
from controlplane.domain.decision import Decision, RequestFeatures
from controlplane.domain.prefix_hits import longest_first
from controlplane.domain.throughput.profile_fit import Normals, seen
from controlplane.planner.fading import Fading, FadingHistogram
from controlplane.planner.traffic import Demand, SiteTraffic
from controlplane.router.records import Attempt, DecisionRecord

#: Datacenters that are kept: names come from workers, and are few.
_SITES_MAX: Final = 64
#: The one key of sums that have no other.
_ALL: Final = 0


#: Datacenter and role of a worker; None when it is not known any more.
RoleOf: TypeAlias = Callable[[str], tuple[str, Role] | None]


class _Site:
    """Requests that decode in one datacenter."""

    def __init__(self, window_s: float, now_s: float) -> None:
        self.uncached = FadingHistogram(window_s, now_s)
        self.output = FadingHistogram(window_s, now_s)


class TrafficMeter:
    """The traffic of one router, as it fades."""

    def __init__(
        self,
        *,
        home: str,
        role_of: RoleOf,
        window_s: float,
        burst_window_s: float,
        profile_window_s: float,
        clock: Callable[[], float],
    ) -> None:
        """
        Nothing was seen yet.

        Args:
            home: The router's datacenter, where requests count that were not placed yet.
            role_of: Tells who prefills where.
            window_s: Of rates and lengths, seconds > 0.
            burst_window_s: Of the rate that shows a burst, seconds > 0.
            profile_window_s: Of prefill times, seconds > 0.
            clock: Monotonic seconds.
        """
        now_s = clock()
        self._home = home
        self._role_of = role_of
        self._window_s = window_s
        self._profile_window_s = profile_window_s
        self._clock = clock
        self._arrivals = Fading(window_s, now_s)
        self._burst = Fading(burst_window_s, now_s)
        self._sites: dict[str, _Site] = {}
        self._prefills: dict[str, Fading] = {}

    def __repr__(self) -> str:
        return f"<TrafficMeter {sorted(self._sites)}>"

    def arrived(self) -> None:
        """A request is here, whatever becomes of it."""
        now_s = self._clock()
        self._arrivals.add(_ALL, now_s, 1.0)
        self._burst.add(_ALL, now_s, 1.0)

    def decided(self, features: RequestFeatures, decision: Decision) -> None:
        """
        A request is placed for the first time: its length.

        Not when it ends: short ones end first, and while traffic grows they would seem to be most.
        """
        now_s = self._clock()
        placement = decision.placement
        home = placement.decode_datacenter if placement is not None else self._home
        site = self._site(home, now_s)
        if site is not None:
            site.uncached.add(uncached_at(home, features, self._role_of), now_s)

    def observe(self, record: DecisionRecord) -> None:
        """A request is over: its output and its prefill, where it was answered."""
        report = record.report
        last = record.attempts[-1] if record.attempts else None
        placement = last.decision.placement if last is not None else None
        if report is None or last is None or placement is None:
            return
        now_s = self._clock()
        site = self._site(placement.decode_datacenter, now_s)
        if site is not None:
            site.output.add(report.output_tokens, now_s)
        if report.prefill.computed_tokens:
            self._prefilled(
                placement.prefill_datacenter,
                seen(
                    report.prefill.computed_tokens,
                    report.prefill.cached_tokens,
                    report.prefill.compute_s,
                    expected_s=_expected_s(last, report.prefill.computed_tokens),
                ),
                now_s,
            )

    def demand(self) -> Demand:
        """The summary as it stands now."""
        now_s = self._clock()
        histograms = {
            name: (site.uncached.read(now_s), site.output.read(now_s))
            for name, site in self._sites.items()
        }
        arrival_per_s = _rate(self._arrivals, now_s)
        burst_per_s = _rate(self._burst, now_s)
        weights = {name: uncached.weight for name, (uncached, _) in histograms.items()}
        whole = sum(weights.values())
        # What was not placed yet has no datacenter: it is shared out as the rest was.
        parts = {name: weight / whole for name, weight in weights.items()} if whole > 0 else {}
        sites = {
            name: SiteTraffic(
                arrival_per_s=arrival_per_s * parts.get(name, 0.0),
                burst_per_s=burst_per_s * parts.get(name, 0.0),
                uncached=uncached,
                output=output,
            )
            for name, (uncached, output) in histograms.items()
        }
        if not parts and arrival_per_s > 0:
            sites[self._home] = SiteTraffic(arrival_per_s=arrival_per_s, burst_per_s=burst_per_s)
        return Demand(
            sites=sites,
            prefills={
                name: Normals.of_numbers(fading.read(now_s)[_ALL])
                for name, fading in self._prefills.items()
            },
        )

    def _site(self, name: str, now_s: float) -> _Site | None:
        site = self._sites.get(name)
        if site is None and len(self._sites) < _SITES_MAX:
            site = self._sites[name] = _Site(self._window_s, now_s)
        return site

    def _prefilled(self, name: str, normals: Normals, now_s: float) -> None:
        fading = self._prefills.get(name)
        if fading is None:
            if len(self._prefills) >= _SITES_MAX:
                return
            fading = self._prefills[name] = Fading(self._profile_window_s, now_s)
        fading.add(_ALL, now_s, *normals.numbers())


def uncached_at(datacenter: str, features: RequestFeatures, role_of: RoleOf) -> int:
    """
    Tokens that a prefill inside a datacenter has to compute at least, >= 0.

    Judged before placement: all tokens of the prefill less the best hit of any prefill worker there. It
    is the length that thresholds are compared with, whoever prefills in the end.
    """
    best = next(
        (
            hit.resumable_tokens
            for worker_id, hit in longest_first(features.prefix_hits, datacenter)
            if role_of(worker_id) == (datacenter, "prefill")
        ),
        0,
    )
    return max(0, features.prefill_tokens - best)


def _expected_s(attempt: Attempt, computed_tokens: int) -> float:
    """What the worker's own profile says of so many tokens; 0 when it is not known."""
    prediction = attempt.decision.prediction
    if prediction is None or prediction.uncached_tokens <= 0:
        return 0.0
    # Near enough where the cache held a little more or less than it was thought to.
    return prediction.prefill_s * computed_tokens / prediction.uncached_tokens


def _rate(fading: Fading, now_s: float) -> float:
    seen_s = fading.seen_s(now_s)
    counted = fading.read(now_s).get(_ALL)
    return counted[0] / seen_s if counted is not None and seen_s > 0 else 0.0
