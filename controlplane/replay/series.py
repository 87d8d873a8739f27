"""What happened when, in bounded memory: sums by time, in steps that double when there are many."""

from __future__ import annotations

from typing import Final

#: Steps that are kept; two minutes at one second each, or a day at 11 minutes.
_STEPS_MAX: Final = 2048


class Series:
    """Sums of some quantities in each step of time."""

    __slots__ = ("_names", "_sums", "step_s")

    def __init__(self, *names: str, step_s: float = 1.0) -> None:
        """
        Nothing has happened.

        Args:
            names: Of the quantities.
            step_s: Length of a step at first, > 0.
        """
        self._names = {name: place for place, name in enumerate(names)}
        self._sums: list[list[float]] = []
        self.step_s = step_s

    def __repr__(self) -> str:
        return f"<Series of {len(self._sums)} steps of {self.step_s:g} s>"

    def add(self, at_s: float, name: str, amount: float = 1.0) -> None:
        """Count something at its time, >= 0."""
        step = int(at_s / self.step_s)
        while step >= _STEPS_MAX:
            self._halve()
            step = int(at_s / self.step_s)
        while len(self._sums) <= step:
            self._sums.append([0.0] * len(self._names))
        self._sums[step][self._names[name]] += amount

    def of(self, name: str) -> list[float]:
        """The sums of one quantity, by step."""
        place = self._names[name]
        return [sums[place] for sums in self._sums]

    def between(self, name: str, from_s: float, until_s: float) -> float:
        """The sum of the steps that begin within a time."""
        first, last = -(-from_s // self.step_s), -(-until_s // self.step_s)
        return sum(self.of(name)[int(first) : int(last)])

    def _halve(self) -> None:
        self.step_s *= 2
        pairs = [self._sums[place : place + 2] for place in range(0, len(self._sums), 2)]
        self._sums = [[sum(each) for each in zip(*pair, strict=True)] for pair in pairs]
