"""What egress over a link costs by the time of the day. Pure: hours in, prices out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

HOURS: Final = 24.0
_DAY_S: Final = 86_400.0
_HOUR_S: Final = 3600.0


@dataclass(frozen=True, slots=True)
class PricePeriod:
    """A part of every day, in UTC, and its price."""

    #: It begins here, 0 <= from_hour < 24, and ends before `to_hour`, at most 24.
    from_hour: float
    to_hour: float
    price_per_gb: float


@dataclass(frozen=True, slots=True)
class Tariff:
    """One price, or one for each part of the day."""

    price_per_gb: float = 0.0
    #: Sorted, without gap or overlap, over the whole day; empty where the price is always the same.
    periods: tuple[PricePeriod, ...] = ()

    def price_at(self, unix_s: float) -> float:
        """Price of a gigabyte at a wall-clock time, in the fleet's currency."""
        if not self.periods:
            return self.price_per_gb
        hour = unix_s % _DAY_S / _HOUR_S
        return next(one.price_per_gb for one in self.periods if hour < one.to_hour)


FREE: Final = Tariff()


def fault_of(periods: Sequence[PricePeriod]) -> str | None:
    """What keeps periods from being a day, in words; None when they are one."""
    if not periods:
        return None
    ends = 0.0
    for number, period in enumerate(periods):
        where = f"prices[{number}] from {period.from_hour:g} to {period.to_hour:g}"
        if period.to_hour <= period.from_hour:
            return f"{where} ends before it begins"
        if period.from_hour < ends:
            return f"{where} begins before {ends:g}, where the one before it ends"
        if period.from_hour > ends:
            return f"{where} leaves a gap: it must begin at {ends:g}"
        ends = period.to_hour
    return None if ends == HOURS else f"prices end at {ends:g}, the day at {HOURS:g}"
