"""
Bands of lengths that a router can follow, made of the shares that a solution has. Pure.

A solution weighs several ways of serving the same requests against each other; a router wants one
threshold per link. So the pools of a demand are put in order, local ones first, and the length axis
is cut from the top such that each keeps the prefill time that the solution gives it. Pools whose costs
are alike at all lengths share one band: which of them takes a request is left to their queues.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from controlplane.domain.throughput.curves import Curve, expected, piece_at
from controlplane.domain.throughput.lengths import LengthDistribution
from controlplane.domain.throughput.problem import DemandOptions, Way

#: Costs that differ by less than this part are alike; it is the throughput that may be lost by it.
_ALIKE = 0.003
#: A pool that gets less than this part of a demand's requests gets none.
_PART_MIN = 1e-4
_ROUNDS_MAX = 80
#: A cut is found when it fills a group but for this part, or is known but for this part of itself.
_FILLED = 1e-9
_CLOSE = 1e-9
#: The lowest band may be overfull by this part before the others stretch, in so many halvings.
_OVERFULL = 1e-4
_STRETCHINGS = 10
#: Time that is more than any prompt takes; finite, because it is divided by.
_ENDLESS_S = 1e30
#: Quantiles of a band at which costs are compared.
_COMPARED = (0.02, 0.25, 0.5, 0.75, 0.98)


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """Lengths above one and up to another, and who takes which part of them."""

    above: float
    up_to: float
    #: By position of the option; parts sum to 1.
    parts: Mapping[int, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Got:
    """What an option gets in a solution."""

    option: int
    is_local: bool
    #: Part of the requests.
    part: float
    #: Mean prefill time per request of the demand, seconds.
    seconds: float
    #: Mean KV sent per request of the demand, bytes; 0 inside a datacenter.
    sent: float
    mean_tokens: float


def bands_of(
    demand: DemandOptions,
    ways: Sequence[tuple[Way, float]],
    costs: Sequence[Curve],
    kv: Curve,
    *,
    by_bytes: bool,
) -> tuple[Band, ...]:
    """
    Bands in growing order, without gaps, that use each pool as much as weighed ways do.

    Args:
        demand: Its lengths and options.
        ways: With their weights.
        costs: Of each option by length, at the prices of the solution.
        kv: Bytes by length.
        by_bytes: A band ends where the solution's time or its bytes are used up, whichever comes
            first; otherwise by time alone. Which is better depends on how scarce links are.
    """
    got = _got(demand, ways, kv)
    if not by_bytes:
        got = [replace(each, sent=math.inf) for each in got]
    groups = _alike(got, costs, demand.lengths)
    bands = _stack(demand, groups, kv)
    over = _time_part(demand, groups[0], kv, -math.inf, bands[0].up_to) - 1
    if over <= _OVERFULL or len(groups) == 1:
        return bands
    # Cuts do not fill everybody exactly. What is left over must not all fall on the lowest band: the
    # others stretch alike, as little as is enough.
    low, high = 0.0, over
    for _ in range(_STRETCHINGS):
        middle = (low + high) / 2
        longer = _stack(demand, [[_more(each, middle) for each in group] for group in groups], kv)
        left = _time_part(demand, groups[0], kv, -math.inf, longer[0].up_to) - 1
        if left > middle:
            low = middle
        else:
            high, bands = middle, longer
    return bands


def bands_by_bytes(
    demand: DemandOptions, sent: Sequence[tuple[int, float]], kv: Curve
) -> tuple[Band, ...]:
    """
    Bands in growing order in which each option gets so many bytes per request, the first the rest.

    Args:
        demand: Its lengths and options.
        sent: Options from the shortest requests to the longest, with their bytes.
        kv: Bytes by length.
    """
    groups = [
        [
            _Got(
                option=option,
                is_local=demand.options[option].link is None,
                part=1.0,
                seconds=_ENDLESS_S,
                sent=each,
                mean_tokens=0.0,
            )
        ]
        for option, each in sent
    ]
    return _stack(demand, groups, kv)


def _more(got: _Got, part: float) -> _Got:
    """An option that gets a part more of everything."""
    return replace(got, seconds=got.seconds * (1 + part), sent=got.sent * (1 + part))


def _stack(demand: DemandOptions, groups: Sequence[Sequence[_Got]], kv: Curve) -> tuple[Band, ...]:
    """Bands from the top: each group takes what it has time and bytes for, the lowest the rest."""
    top, found = demand.lengths.longest, list[Band]()
    for position in range(len(groups) - 1, 0, -1):
        group, below = groups[position], groups[position - 1]
        cut, step = _cut(demand, group, kv, top)
        if cut < top:
            found.append(Band(above=cut, up_to=top, parts=_parts(demand, group, cut, top)))
        if step is not None:
            inside = _parts(demand, group, step.above, step.up_to)
            rest = _parts(demand, below, step.above, step.up_to)
            mixed = {option: part * step.part for option, part in inside.items()}
            for option, part in rest.items():
                mixed[option] = mixed.get(option, 0.0) + part * (1 - step.part)
            found.append(Band(above=step.above, up_to=step.up_to, parts=mixed))
            cut = step.above
        top = cut
    lowest = _parts(demand, groups[0], -math.inf, top)
    found.append(Band(above=-math.inf, up_to=top, parts=lowest))
    return tuple(reversed([band for band in found if band.up_to > band.above]))


def _got(demand: DemandOptions, ways: Sequence[tuple[Way, float]], kv: Curve) -> list[_Got]:
    """What each option gets, local ones first and shorter prompts before longer ones."""
    sums: dict[int, list[float]] = {}
    for way, weight in ways:
        for stretch in way.stretches:
            part, tokens, _ = demand.lengths.moments(stretch.above, stretch.up_to)
            seconds = expected(
                demand.options[stretch.option].time, demand.lengths, stretch.above, stretch.up_to
            )
            total = sums.setdefault(stretch.option, [0.0, 0.0, 0.0])
            total[0] += weight * part
            total[1] += weight * tokens
            total[2] += weight * seconds
    found = [
        _Got(
            option=option,
            is_local=demand.options[option].link is None,
            part=part,
            seconds=seconds,
            sent=0.0 if demand.options[option].link is None else _bytes(kv, part, tokens),
            mean_tokens=tokens / part,
        )
        for option, (part, tokens, seconds) in sums.items()
        if part > _PART_MIN
    ]
    return sorted(found, key=lambda each: (not each.is_local, each.mean_tokens, each.option))


def _bytes(kv: Curve, part: float, tokens: float) -> float:
    """KV of a part of the requests with so many tokens together."""
    return kv[0].c0 * part + kv[0].c1 * tokens


def _alike(
    got: Sequence[_Got], costs: Sequence[Curve], lengths: LengthDistribution
) -> list[list[_Got]]:
    """Neighbours put together whose costs are alike wherever either of them works."""
    points = [lengths.quantile(share) for share in _COMPARED]
    groups: list[list[_Got]] = []
    for each in got:
        before = groups[-1][0] if groups else None
        if before and before.is_local == each.is_local and _same(before, each, costs, points):
            groups[-1].append(each)
        else:
            groups.append([each])
    return groups


def _same(a: _Got, b: _Got, costs: Sequence[Curve], points: Sequence[float]) -> bool:
    """Whether two options cost the same at all these lengths, or nearly."""
    one, other = costs[a.option], costs[b.option]
    return all(
        math.isclose(piece_at(one, p).at(p), piece_at(other, p).at(p), rel_tol=_ALIKE)
        for p in points
    )


@dataclass(frozen=True, slots=True)
class _Step:
    """A length that many prompts have, of which only a part is above the cut."""

    above: float
    up_to: float
    part: float


def _filled(
    demand: DemandOptions, group: Sequence[_Got], kv: Curve, above: float, up_to: float
) -> float:
    """How much of a range a group can take: 1 when its time, or its links, are just enough."""
    by_time = 0.0
    for each in group:
        takes = expected(demand.options[each.option].time, demand.lengths, above, up_to)
        if takes <= 0:
            return math.inf
        by_time += each.seconds / takes
    sent = expected(kv, demand.lengths, above, up_to)
    by_bytes = sum(each.sent for each in group) / sent if sent > 0 else math.inf
    return by_time if group[0].is_local else min(by_time, by_bytes)


def _cut(
    demand: DemandOptions, group: Sequence[_Got], kv: Curve, top: float
) -> tuple[float, _Step | None]:
    """
    The length above which a group takes all up to `top` with the time that it has.

    Observed lengths come in steps: when one length is too much as a whole, the second value says
    which part of it the group takes too.
    """
    low, high = _bracket(demand, group, kv, top)
    left = 1 - _time_part(demand, group, kv, high, top)
    share = demand.lengths.moments(low, high)[0]
    if share <= _PART_MIN or left <= 0:
        return high, None
    whole = _time_part(demand, group, kv, low, high)
    return high, _Step(low, high, min(1.0, left / whole) if whole > 0 else 0.0)


def _bracket(
    demand: DemandOptions, group: Sequence[_Got], kv: Curve, top: float
) -> tuple[float, float]:
    """
    Lengths close together between which a group's time up to `top` is used up.

    By halves and by the straight line between both ends in turns: lengths may come in steps.
    """
    low, high = demand.lengths.shortest * (1 - 1e-9) - 1e-9, top
    over, under = _time_part(demand, group, kv, low, top) - 1, -1.0
    if over < 0:
        return low, low
    for number in range(_ROUNDS_MAX):
        part = over / (over - under) if number % 2 and over < math.inf else 0.5
        middle = low + (high - low) * part
        now = _time_part(demand, group, kv, middle, top) - 1
        if abs(now) <= _FILLED:
            return middle, middle
        if now < 0:
            high, under = middle, now
        else:
            low, over = middle, now
        if high - low <= _CLOSE * high:
            break
    return low, high


def _time_part(
    demand: DemandOptions, group: Sequence[_Got], kv: Curve, above: float, up_to: float
) -> float:
    """The part of a group's time that a range of lengths takes."""
    filled = _filled(demand, group, kv, above, up_to)
    return 1 / filled if filled > 0 else math.inf


def _parts(
    demand: DemandOptions, group: Sequence[_Got], above: float, up_to: float
) -> dict[int, float]:
    """Who takes which part of a band, by the time that each has."""
    raw = {}
    for each in group:
        takes = expected(demand.options[each.option].time, demand.lengths, above, up_to)
        raw[each.option] = each.seconds / takes if takes > 0 else each.part
    total = sum(raw.values())
    return {option: value / total for option, value in raw.items()}
