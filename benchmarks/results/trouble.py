"""A burst, the loss of half the prefill workers, the loss of the link: what is lost, how long it takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks.results.cells import (
    PLANS,
    Cell,
    case_study,
    known,
    run_all,
    solved,
    synthetic,
    world,
)
from benchmarks.results.limits import Disruption, out_at
from benchmarks.results.tables import table
from controlplane.domain.plan import SiteRoles
from controlplane.replay.results import PolicyResult
from controlplane.replay.run import NamedPolicy
from controlplane.replay.spec import Change, LinkStep, Loss
from controlplane.replay.traces.opening import open_trace

#: When trouble begins, and what times are compared with: those from a third of it on.
_AT_S: Final = 300.0
_BURST_S: Final = 30.0
#: Trouble of workers and links lasts so long.
_TROUBLE_S: Final = 120.0
#: Times are looked at in windows of this.
_WINDOW_S: Final = 10.0
#: Recovered: the mean time to the first token is at most so many times that of before.
_RECOVERED: Final = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """One scenario under one policy."""

    scenario: str
    result: PolicyResult
    #: From the end of the trouble until the times are what they were; None if never.
    recovery_s: float | None
    #: What the throughput model says it takes at least, by any policy; None if longer than was looked.
    least_s: float | None
    #: And what it takes where requests stay with the worker that they were placed on.
    placed_s: float | None

    @property
    def lost(self) -> int:
        """Requests without an answer."""
        return self.result.requests - self.result.done


def measure(
    *,
    rate: float = 2.0,
    tail_s: float = 700.0,
    at_s: float = _AT_S,
    lasts_s: float = _TROUBLE_S,
    policies: tuple[str, ...] = ("prfaas", "lookahead"),
    jobs: int | None = None,
) -> list[Trouble]:
    """
    Run every scenario.

    Args:
        rate: Requests per second before and after.
        tail_s: Virtual seconds after the trouble began.
        at_s: When it begins.
        lasts_s: How long workers and links are away.
        policies: By name.
        jobs: Replays at a time.
    """
    half = ("east/p1", "east/p2", "west/p1")
    plain = round(rate * (at_s + tail_s))
    burst = plain + round(9 * rate * _BURST_S)
    scenarios: list[tuple[str, str, int, Sequence[Change], float]] = [
        (
            "burst, 10x for 30 s",
            synthetic(rate, burst, burst=10, burst_at=at_s, burst_s=_BURST_S),
            burst,
            (),
            _BURST_S,
        ),
        (
            f"half the prefill workers lost for {lasts_s:g} s",
            synthetic(rate, plain),
            plain,
            (Loss(at_s=at_s, workers=half, back_after_s=lasts_s),),
            lasts_s,
        ),
        (
            f"link cut for {lasts_s:g} s",
            synthetic(rate, plain),
            plain,
            (
                LinkStep(at_s=at_s, link="east>west", capacity_bps=0.0),
                LinkStep(at_s=at_s + lasts_s, link="east>west", capacity_bps=100e9),
            ),
            lasts_s,
        ),
    ]
    prices = solved(
        case_study(), roles={"west": SiteRoles(prefill_workers=3, decode_workers=5)}
    ).prices
    cells, named = [], []
    for name, trace, requests, changes, length_s in scenarios:
        for policy in known(*policies):
            cells.append(
                Cell(
                    policy=NamedPolicy(name=policy),
                    trace=trace,
                    # Nobody is shed: what comes is to be served, however late.
                    world=world(
                        case_study(), roles={"west": (3, 5)}, changes=changes, queue_requests=512
                    ),
                    requests=requests,
                    planner=PLANS,
                )
            )
            disruption = Disruption(
                world=cells[-1].world,
                prices=prices,
                out=out_at(changes, at_s),
                began_s=at_s,
                ended_s=at_s + length_s,
            )
            named.append((name, disruption))
    return [
        _trouble(name, disruption, cell, result)
        for (name, disruption), cell, result in zip(
            named, cells, run_all(cells, jobs=jobs), strict=True
        )
    ]


def _trouble(name: str, disruption: Disruption, cell: Cell, result: PolicyResult) -> Trouble:
    """How long it took, and how long it had to take."""
    began_s, ended_s = disruption.began_s, disruption.ended_s
    requests = list(open_trace(cell.trace).requests(cell.seed))
    before_s = _mean_ttft_s(result, began_s / 3, began_s)
    least_s = disruption.least_s(requests, waits_s=_RECOVERED * (before_s or 0.0))
    return Trouble(
        scenario=name,
        result=result,
        recovery_s=_recovery_s(result, began_s, ended_s),
        least_s=least_s,
        # Moving requests is never slower.
        placed_s=None if least_s is None else max(least_s, disruption.placed_s(requests)),
    )


def _recovery_s(result: PolicyResult, began_s: float, ended_s: float) -> float | None:
    before_s = _mean_ttft_s(result, began_s / 3, began_s)
    looked_s = ended_s
    while looked_s + _WINDOW_S <= result.arrivals_s:
        now_s = _mean_ttft_s(result, looked_s, looked_s + _WINDOW_S)
        if now_s is not None and before_s is not None and now_s <= _RECOVERED * before_s:
            return looked_s - ended_s
        looked_s += _WINDOW_S / 2
    return None


def _mean_ttft_s(result: PolicyResult, from_s: float, until_s: float) -> float | None:
    first, last = round(from_s / result.step_s), round(until_s / result.step_s)
    count = sum(result.series["started"][first:last])
    return sum(result.series["ttft_s"][first:last]) / count if count else None


def page(found: Sequence[Trouble]) -> str:
    """As it stands in the document."""
    rows = [
        (
            one.scenario,
            one.result.policy,
            f"{one.result.requests:,}",
            f"{one.lost:,}",
            f"{one.result.retries:,}",
            f"{one.result.ttft_s.p99:.1f}",
            *map(_shown, (one.recovery_s, one.placed_s, one.least_s)),
        )
        for one in found
    ]
    heads = (
        "trouble", "policy", "requests", "lost", "tried again", "TTFT p99, s",
        "recovery, s", "least in place, s", "least, s",
    )  # fmt: skip
    return (
        "The case study's fleet at 2 requests/s. Recovery is from the end of the trouble until the "
        f"mean time to the first token, over {_WINDOW_S:g} s, is at most {_RECOVERED:g} times that "
        "of before. The last column is what it takes at least, whoever decides: the backlog over the "
        "capacity to spare, with the lengths that came valued at the throughput model's prices "
        "(`benchmarks/results/limits.py`). The one before it is the same where a request stays with "
        "the worker that it was placed on, as it does here: what came while the link was cut waits "
        "for the workers at home, although those behind the link are back.\n\n"
        f"{table(heads, rows)}"
    )


def _shown(seconds: float | None) -> str:
    return "not in time" if seconds is None else f"{seconds:.0f}"
