"""Small parts that scenarios are made of."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, Final

from chaos.scenario import Check, Event, Form, Plan

#: Faults end so long before the load does, so that what follows them is seen too.
_CALM_S: Final = 2.0


def check(name: str, bound: float, promise: str, *, needs: int = 1, **options: Any) -> Check:
    """A check of `chaos.checks`; see `Check`."""
    return Check(name=name, bound=bound, promise=promise, needs=needs, options=options)


def sure(form: Form) -> int:
    """What a check must see that only a long run is sure to meet."""
    return 1 if form == "long" else 0


def correct(promise: str) -> tuple[Check, ...]:
    """What holds whatever happens."""
    return (
        check("lost", 0, promise),
        check("wrong", 0, promise),
        check("repeated", 0, promise),
        check("crashes", 0, promise),
    )


def within(form: Form, figure_s: float) -> float:
    """
    The bound of a time: what is promised, or five times that in a short form.

    The short form shows that something is bounded at all, on any machine, beside any other work;
    what the figure is, the long one measures.
    """
    return figure_s if form == "long" else 5 * figure_s


def share_of_times(form: Form) -> float:
    """Which share of all times a bound holds for: nearly all, or half of those of a short form."""
    return 0.99 if form == "long" else 0.5


def always(events: tuple[Event, ...]) -> Plan:
    """These events, whatever the load."""
    return lambda _seconds, _random: events


def every(pause_s: float, make: Callable[[float, Random], Event]) -> Plan:
    """An event every so many seconds, as long as the load lasts."""

    def plan(seconds: float, random: Random) -> tuple[Event, ...]:
        count = max(1, int((seconds - _CALM_S) / pause_s))
        return tuple(make(pause_s * (number + 0.5), random) for number in range(count))

    return plan
