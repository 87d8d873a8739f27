"""
Thresholds from a spread: how many bytes each link gets, moved until pools are used alike. Pure.

Of a mix of ways only the bytes of each link and the order of links by length can be said in thresholds,
so pools do not come out as full as in the mix. Pools that are fuller than others give, round by round.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from controlplane.domain.throughput.quantised import BINS, Bins, Choice, Quantised
from controlplane.domain.throughput.spread import Spread

_ROUNDS = 60
#: Of the first round; later ones move less: half of it after so many.
_STEP = 1.0
_HALF_AFTER = 10
#: A target moves by this factor at most, as a logarithm.
_MOVE_MAX = 0.5
#: An option with less than this part of a demand's requests gets none.
_PART_MIN = 1e-4
#: Pools that are used less than this part count as used so much.
_USED_MIN = 1e-3


@dataclass(slots=True)
class _Line:
    """A demand: who takes its longest, its next longest and so on, and who takes the rest."""

    share: float
    bins: Bins
    order: list[Choice]
    #: Bytes per request of each of these.
    sent: list[float]
    rest: Choice


def settle(
    quantised: Quantised, found: Spread, rate: float
) -> tuple[float, list[list[tuple[int, float]]]]:
    """
    Bytes for each link that let most traffic fit.

    Args:
        quantised: The problem.
        found: Its spread at about this rate.
        rate: Requests per second that decode can take: there is no use in more.

    Returns:
        About what fits, requests per second, and for each demand its options from the shortest
        requests to the longest, with the bytes per request that they get; the first takes the rest.
    """
    lines = [_line(quantised, found, number) for number in range(len(quantised.asked))]
    best, best_sent = 0.0, [list(line.sent) for line in lines]
    aim = rate
    for number in range(_ROUNDS):
        used = _used(quantised, lines)
        full = max(*used.values(), _fullest_link(quantised, lines))
        if 1 / full > best:
            best, best_sent = 1 / full, [list(line.sent) for line in lines]
        if best >= rate:
            break
        aim = min(rate, max(best, len(used) / math.fsum(used.values())))
        step = _STEP / (1 + number / _HALF_AFTER)
        for line in lines:
            _move(quantised, line, used, aim, step)
    return min(best, rate), [
        [(line.rest.option, 0.0)]
        + [(c.option, s) for c, s in zip(reversed(line.order), reversed(sent), strict=True)]
        for line, sent in zip(lines, best_sent, strict=True)
    ]


def _line(quantised: Quantised, found: Spread, number: int) -> _Line:
    asked, parts = quantised.asked[number], found.parts[number]
    tokens, sent = found.tokens[number], found.sent[number]
    some = [n for n in range(len(parts)) if parts[n] > _PART_MIN]
    some.sort(key=lambda n: -tokens[n] / parts[n])
    local = [n for n in range(len(parts)) if asked.choices[n].link is None]
    rest = local[0] if local else some[-1]
    order = [n for n in some if n != rest]
    return _Line(
        asked.share,
        asked.bins,
        [asked.choices[n] for n in order],
        [sent[n] for n in order],
        asked.choices[rest],
    )


def _used(quantised: Quantised, lines: Sequence[_Line]) -> dict[int, float]:
    """By pool, how far one request per second of all uses it: the fullest of its rows."""
    seconds: dict[int, float] = {}
    for line in lines:
        above, top = 0.0, float(BINS)
        for choice, sent in zip(line.order, line.sent, strict=True):
            above += sent
            place = line.bins.where(above)
            takes = line.bins.seconds_above(choice.pool, place)
            takes -= line.bins.seconds_above(choice.pool, top)
            seconds[choice.pool] = seconds.get(choice.pool, 0.0) + line.share * takes
            top = place
        pool = line.rest.pool
        takes = line.bins.seconds_above(pool, 0.0) - line.bins.seconds_above(pool, top)
        seconds[pool] = seconds.get(pool, 0.0) + line.share * takes
    return {
        pool: max(
            (seconds.get(pool, 0.0) + quantised.rows[row].fixed) / quantised.rows[row].capacity
            for row in rows
        )
        for pool, rows in quantised.rows_of.items()
    }


def _fullest_link(quantised: Quantised, lines: Sequence[_Line]) -> float:
    """How far one request per second of all uses the fullest link."""
    fullest = 0.0
    for line in lines:
        left = line.bins.sent_above[0]
        for choice, sent in zip(line.order, line.sent, strict=True):
            assert choice.link is not None, "the one inside takes the rest"
            fullest = max(fullest, line.share * min(sent, left) / quantised.room[choice.link])
            left = max(0.0, left - sent)
        if line.rest.link is not None:
            fullest = max(fullest, line.share * left / quantised.room[line.rest.link])
    return fullest


def _move(
    quantised: Quantised, line: _Line, used: dict[int, float], aim: float, step: float
) -> None:
    """More to pools that are less used than the one that takes the rest, as far as links carry it."""
    own = max(used[line.rest.pool], _USED_MIN / aim)
    for number, choice in enumerate(line.order):
        assert choice.link is not None, "the one inside takes the rest"
        far = max(used[choice.pool], _USED_MIN / aim)
        by = max(-_MOVE_MAX, min(_MOVE_MAX, step * math.log(own / far)))
        room = quantised.room[choice.link] / line.share / aim
        line.sent[number] = min(room, line.sent[number] * math.exp(by))
