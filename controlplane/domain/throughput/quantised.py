"""
The shares of one datacenter's requests at given prices of pools, its links no fuller than they can be. Pure.

A link leads into one serving datacenter alone, so with prices of pools each of them can be asked by
itself. Lengths are taken in bins for that: an answer is a direction and not yet thresholds, and prices
that come of it bound the optimum as any others do.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from controlplane.domain.throughput.curves import Curve, expected
from controlplane.domain.throughput.effort import Effort
from controlplane.domain.throughput.lengths import LengthDistribution
from controlplane.domain.throughput.problem import Problem, Row

#: Bins of lengths, each as much longer than the one before.
BINS = 40
#: Steps (`effort.py`) that one bin of one option takes.
_BIN_STEPS = 12
#: A part of a bin below this is none.
_NOTHING = 1e-12


@dataclass(frozen=True, slots=True)
class Served:
    """How one datacenter's requests are served, by number of its option; per request of it."""

    #: What that costs at least, at these prices.
    value: float
    seconds: tuple[float, ...]
    sent: tuple[float, ...]
    #: Parts of the requests, and their tokens.
    parts: tuple[float, ...]
    tokens: tuple[float, ...]


@dataclass(slots=True)
class Bins:
    """Requests in bins of length: parts, tokens, bytes of KV, and by pool seconds."""

    lengths: LengthDistribution
    parts: list[float]
    tokens: list[float]
    sent: list[float]
    #: Bytes of all above the end of each bin; and the same below 0 for a search.
    sent_above: list[float]
    _ends: list[float]
    _falling: list[float]
    _seconds: dict[int, list[float]] = field(default_factory=dict)
    _seconds_above: dict[int, list[float]] = field(default_factory=dict)

    @classmethod
    def of(cls, lengths: LengthDistribution, kv: Curve) -> Bins:
        """Bins of a distribution."""
        low, high = max(1.0, lengths.shortest), lengths.longest
        ends = [lengths.shortest * (1 - 1e-9) - 1e-9]
        ends += [low * (high / low) ** (number / BINS) for number in range(1, BINS)]
        ends.append(high)
        moments = [lengths.moments(*edges) for edges in pairwise(ends)]
        sent = [expected(kv, lengths, *edges) for edges in pairwise(ends)]
        above = _summed_from_above(sent)
        return cls(
            lengths=lengths,
            parts=[share for share, _, _ in moments],
            tokens=[tokens for _, tokens, _ in moments],
            sent=sent,
            sent_above=above,
            _ends=ends,
            _falling=[-value for value in above],
        )

    def seconds(self, pool: int, time: Curve) -> list[float]:
        """Prefill time of each bin in a pool."""
        if pool not in self._seconds:
            self._seconds[pool] = [expected(time, self.lengths, *e) for e in pairwise(self._ends)]
            self._seconds_above[pool] = _summed_from_above(self._seconds[pool])
        return self._seconds[pool]

    def where(self, sent: float) -> float:
        """The place, counted in bins, above which so many bytes are; 0 for all there are."""
        if sent >= self.sent_above[0]:
            return 0.0
        after = max(1, bisect_left(self._falling, -sent))
        inside = self.sent_above[after - 1] - self.sent_above[after]
        part = (sent - self.sent_above[after]) / inside if inside > 0 else 0.0
        return after - part

    def seconds_above(self, pool: int, place: float) -> float:
        """Prefill time in a pool of all above a place."""
        line, whole = self._seconds_above[pool], int(place)
        part = place - whole
        return line[whole] + ((line[whole + 1] - line[whole]) * part if part else 0.0)


def _summed_from_above(values: Sequence[float]) -> list[float]:
    total, found = 0.0, [0.0]
    for value in reversed(values):
        total += value
        found.append(total)
    return found[::-1]


@dataclass(frozen=True, slots=True)
class Choice:
    """An option of a demand that has all its resources."""

    #: Its number among all options of the demand.
    option: int
    pool: int
    #: None inside the datacenter.
    link: int | None
    #: Of each bin.
    seconds: Sequence[float]


@dataclass(slots=True)
class Asked:
    """One demand, with prices of its links per byte that are kept from answer to answer. Mutable."""

    share: float
    bins: Bins
    choices: tuple[Choice, ...]
    link_prices: list[float]


class Quantised:
    """A problem in bins."""

    def __init__(self, problem: Problem, effort: Effort) -> None:
        """Links have one row, and one option of one demand each."""
        self._effort = effort
        links = {o.link for d in problem.demands for o in d.options if o.link is not None}
        #: Bytes per second, by link.
        self.room = {row.resource: row.capacity for row in problem.rows if row.resource in links}
        #: Rows of pools.
        self.rows: tuple[Row, ...] = tuple(r for r in problem.rows if r.resource not in links)
        self.rows_of: dict[int, list[int]] = {}
        for number, row in enumerate(self.rows):
            self.rows_of.setdefault(row.resource, []).append(number)
        bins: dict[int, Bins] = {}
        self.asked: list[Asked] = []
        for demand in problem.demands:
            known = bins.setdefault(id(demand.lengths), Bins.of(demand.lengths, problem.kv))
            choices = tuple(
                Choice(number, option.pool, option.link, known.seconds(option.pool, option.time))
                for number, option in enumerate(demand.options)
                if option.pool in self.rows_of and (option.link is None or option.link in self.room)
            )
            self.asked.append(Asked(demand.share, known, choices, [0.0] * len(choices)))

    def serve(self, number: int, prices: Mapping[int, float], rate: float, passes: int) -> Served:
        """
        How a demand is served best at prices of pools.

        Args:
            number: Of the demand.
            prices: Of one second of one worker, by pool.
            rate: Requests per second of all demands together; links carry this.
            passes: How often the price of each link is found anew.
        """
        asked = self.asked[number]
        self._effort.spend(_BIN_STEPS * passes * len(asked.choices) * BINS)
        rate *= asked.share
        base = [[prices[c.pool] * s for s in c.seconds] for c in asked.choices]
        # Links that are nearly alike bid each other up by little steps; from one price for all of them
        # there are few.
        starts = [
            (self._value(asked, costs, prices_of, rate), costs, prices_of)
            for prices_of in (asked.link_prices, self._one_price(asked, base, rate))
            for costs in [_with_links(base, prices_of, asked.bins.sent)]
        ]
        _, costs, asked.link_prices = max(starts, key=lambda start: start[0])
        for _ in range(passes):
            self._price_links(asked, base, costs, rate)
        value = self._value(asked, costs, asked.link_prices, rate)
        return self._fill(asked, costs, rate, value)

    def _value(
        self,
        asked: Asked,
        costs: Sequence[Sequence[float]],
        link_prices: Sequence[float],
        rate: float,
    ) -> float:
        """What serving a request costs at least, at any prices of links."""
        return math.fsum(map(min, *costs) if len(costs) > 1 else costs[0]) - sum(
            price * self.room[choice.link] / rate
            for choice, price in zip(asked.choices, link_prices, strict=True)
            if choice.link is not None
        )

    def _one_price(self, asked: Asked, base: Sequence[Sequence[float]], rate: float) -> list[float]:
        """The price of a byte, alike on all links, at which they get what they carry together."""
        local = [line for c, line in zip(asked.choices, base, strict=True) if c.link is None]
        remote = [line for c, line in zip(asked.choices, base, strict=True) if c.link is not None]
        if not local or not remote:
            return [0.0] * len(base)
        inside = [*map(min, *local)] if len(local) > 1 else local[0]
        outside = [*map(min, *remote)] if len(remote) > 1 else remote[0]
        room = sum(self.room[c.link] for c in asked.choices if c.link is not None) / rate
        price = _clearing(inside, outside, asked.bins.sent, room)
        return [0.0 if c.link is None else price for c in asked.choices]

    def _price_links(
        self, asked: Asked, base: Sequence[list[float]], costs: list[list[float]], rate: float
    ) -> None:
        """Prices at which links get what they can carry, one after the other."""
        sent = asked.bins.sent
        for number, choice in enumerate(asked.choices):
            if choice.link is None or len(costs) == 1:
                continue
            others = [line for other, line in enumerate(costs) if other != number]
            rest = list(map(min, *others)) if len(others) > 1 else others[0]
            price = _clearing(rest, base[number], sent, self.room[choice.link] / rate)
            if price != asked.link_prices[number]:
                asked.link_prices[number] = price
                costs[number] = [c + price * s for c, s in zip(base[number], sent, strict=True)]

    def _fill(
        self, asked: Asked, costs: Sequence[Sequence[float]], rate: float, value: float
    ) -> Served:
        """The longest first, each where it costs least and there is room."""
        choices, bins = asked.choices, asked.bins
        count = len(choices)
        room = [math.inf if c.link is None else self.room[c.link] / rate for c in choices]
        seconds, sent, parts, tokens = ([0.0] * count for _ in range(4))
        for place in range(BINS - 1, -1, -1):
            each, left = bins.sent[place], 1.0
            for number in sorted(range(count), key=lambda n: costs[n][place]):
                part = min(left, room[number] / each) if each > 0 else left
                if part <= 0:
                    continue
                seconds[number] += part * choices[number].seconds[place]
                sent[number] += part * each
                parts[number] += part * bins.parts[place]
                tokens[number] += part * bins.tokens[place]
                room[number] -= part * each
                left -= part
                if left <= _NOTHING:
                    break
        return Served(value, tuple(seconds), tuple(sent), tuple(parts), tuple(tokens))


def _with_links(
    base: Sequence[list[float]], link_prices: Sequence[float], sent: Sequence[float]
) -> list[list[float]]:
    """Costs of options by bin, with what their links cost."""
    return [
        [cost + price * each for cost, each in zip(line, sent, strict=True)] if price else line
        for line, price in zip(base, link_prices, strict=True)
    ]


def _clearing(
    others: Sequence[float], own: Sequence[float], sent: Sequence[float], room: float
) -> float:
    """The price of a byte at which no more is wanted than there is room for."""
    wanted = sorted(
        (
            ((other - cost) / each, each)
            for other, cost, each in zip(others, own, sent, strict=True)
            if other > cost and each > 0
        ),
        reverse=True,
    )
    for worth, each in wanted:
        room -= each
        if room < 0:
            return worth
    return 0.0
