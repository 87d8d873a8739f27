"""
A linear program that shares out each demand over ways of serving it, grown column by column. Pure.

    minimise rho
    subject to   rho - sum(weight[c] * use[c][r]) >= fixed[r]      for each resource r
                 sum(weight[c] for c of demand d) = 1              for each demand d

`rho` is the highest utilisation of any resource, so its inverse is the traffic that fits. A column is
one way to serve all requests of one demand; there are endlessly many, and `balance.py` makes those
that lower rho.

Source:
    Dantzig and Wolfe, Decomposition Principle for Linear Programs (1960); the revised simplex method
    with an explicit inverse, which is small here: resources that could bind, and demands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from controlplane.domain.throughput.effort import Effort

#: Reduced costs above this are rounding; all rows are scaled to utilisations.
_GAIN_MIN = 1e-11
#: Smaller pivots would blow up rounding.
_PIVOT_MIN = 1e-10
#: Rows are moved apart by multiples of this, or equal datacenters could go round in circles.
_APART = 1e-11
#: Pivots of one solution; some ten per row are usual. What is reached then is valid, if not the best.
_PIVOTS_MAX = 20_000
#: Steps (`effort.py`) that looking at one column takes.
_TRIED_STEPS = 40
#: With fewer numbers than this part of a line, only those are touched that are not 0.
_SPARSE = 0.7


@dataclass(frozen=True, slots=True)
class Column:
    """One way to serve all requests of a demand."""

    demand: int
    #: By number of the resource: utilisation at one request per second of the whole traffic.
    use: Mapping[int, float]


@dataclass(slots=True)
class Master:
    """The program with the columns that are known so far. Mutable: `add` and `solve` change it."""

    fixed: Sequence[float]
    columns: list[Column]
    demands: int
    effort: Effort = field(default_factory=Effort)
    _basis: list[int] = field(init=False)
    _inverse: list[list[float]] = field(init=False)
    _values: list[float] = field(init=False)
    _rho_row: int = field(init=False)
    _pivots: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        """Begin with the first column of each demand."""
        rows, size = len(self.fixed), len(self.fixed) + self.demands
        first: dict[int, int] = {}
        for number, column in enumerate(self.columns):
            first.setdefault(column.demand, number)
        bound = [value + _APART * (row + 1) for row, value in enumerate(self.fixed)]
        used = list(bound)
        for number in first.values():
            for row, use in self.columns[number].use.items():
                used[row] += use
        tight = max(range(rows), key=used.__getitem__)
        self._rho_row = tight
        # Numbers in the basis: columns from 0, -1 - r for the slack of row r, and rho.
        self._basis = [-1 - row for row in range(rows)] + [first[d] for d in range(self.demands)]
        self._basis[tight] = -1 - rows
        rho = [0.0] * size
        rho[tight] = 1.0
        for demand, number in first.items():
            rho[rows + demand] = self.columns[number].use.get(tight, 0.0)
        self._inverse = []
        for row in range(rows):
            line = list(rho)
            if row != tight:
                line[row] -= 1.0
                for demand, number in first.items():
                    line[rows + demand] -= self.columns[number].use.get(row, 0.0)
            self._inverse.append(line)
        for demand in range(self.demands):
            self._inverse.append([float(place == rows + demand) for place in range(size)])
        self._values = [used[tight] - (used[row] if row != tight else 0.0) for row in range(rows)]
        self._values += [1.0] * self.demands

    @property
    def prices(self) -> list[float]:
        """What a unit of each resource's utilisation is worth; not negative at the optimum, sum 1."""
        return self._inverse[self._rho_row][: len(self.fixed)]

    @property
    def marginal(self) -> list[float]:
        """What serving each demand costs at these prices with the known columns."""
        return self._inverse[self._rho_row][len(self.fixed) :]

    def weights(self) -> dict[int, float]:
        """By number of the column: its part of its demand, above 0."""
        return {
            number: value
            for number, value in zip(self._basis, self._values, strict=True)
            if number >= 0 and value > 0
        }

    def add(self, column: Column) -> None:
        """Know one more way."""
        self.columns.append(column)

    def solve(self, newest: int = 0) -> None:
        """Lower rho as far as the known columns allow; the last `newest` ones are tried first."""
        tried = range(len(self.columns) - newest, len(self.columns))
        while self._pivots < _PIVOTS_MAX:
            self.effort.spend(len(tried) * _TRIED_STEPS)
            entering = self._best(tried)
            if entering is not None:
                if self.effort.stops():
                    return
                self._pivots += 1
                if not self._enter(entering):
                    return
            elif len(tried) == len(self.columns):
                return
            else:
                tried = range(len(self.columns))

    def _best(self, numbers: Sequence[int]) -> int | None:
        """The column or slack whose entry lowers rho fastest, if any does."""
        prices = self._inverse[self._rho_row]
        rows = len(self.fixed)
        best, gain = None, -_GAIN_MIN
        for row in range(rows):
            if prices[row] < gain:
                best, gain = -1 - row, prices[row]
        for number in numbers:
            column = self.columns[number]
            reduced = -prices[rows + column.demand]
            for row, use in column.use.items():
                reduced += prices[row] * use
            if reduced < gain:
                best, gain = number, reduced
        return best

    def _enter(self, entering: int) -> bool:
        """Take a column or slack into the basis; False when nothing would leave for it."""
        direction = self._direction(entering)
        leaving, step = None, 0.0
        for row, slope in enumerate(direction):
            if slope > _PIVOT_MIN and row != self._rho_row:
                ratio = max(0.0, self._values[row]) / slope
                if leaving is None or ratio < step:
                    leaving, step = row, ratio
        if leaving is None:
            return False
        pivot = direction[leaving]
        line = [value / pivot for value in self._inverse[leaving]]
        filled = [(place, value) for place, value in enumerate(line) if value]
        is_sparse = len(filled) < _SPARSE * len(line)
        changed = [row for row, slope in enumerate(direction) if slope and row != leaving]
        self.effort.spend(len(changed) * len(filled if is_sparse else line))
        for row in changed:
            slope, old = direction[row], self._inverse[row]
            if is_sparse:
                for place, value in filled:
                    old[place] -= slope * value
            else:
                self._inverse[row] = [a - slope * b for a, b in zip(old, line, strict=True)]
            self._values[row] -= slope * step
        self._inverse[leaving] = line
        self._values[leaving] = step
        self._basis[leaving] = entering
        return True

    def _direction(self, entering: int) -> list[float]:
        """How much of each basic variable one unit of the entering one takes."""
        if entering < 0:
            place = -1 - entering
            return [-line[place] for line in self._inverse]
        column = self.columns[entering]
        place = len(self.fixed) + column.demand
        used = [*column.use.items()]
        return [line[place] - sum(line[row] * use for row, use in used) for line in self._inverse]
