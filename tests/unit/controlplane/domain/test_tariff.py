from __future__ import annotations

import pytest

from controlplane.domain.tariff import FREE, PricePeriod, Tariff, fault_of

NIGHT, DAY, EVENING = (
    PricePeriod(0, 7, 0.02),
    PricePeriod(7, 19.5, 0.09),
    PricePeriod(19.5, 24, 0.05),
)
HOUR_S = 3600
#: A day long ago, at midnight UTC.
MIDNIGHT_S = 20_000 * 86_400


@pytest.mark.parametrize(
    ("hour", "price"),
    [(0, 0.02), (6.999, 0.02), (7, 0.09), (19.499, 0.09), (19.5, 0.05), (23.999, 0.05)],
)
def test_each_period_has_its_price_from_its_first_instant_on(hour: float, price: float) -> None:
    tariff = Tariff(0.0, (NIGHT, DAY, EVENING))

    assert tariff.price_at(MIDNIGHT_S + hour * HOUR_S) == price


def test_the_day_begins_anew_at_midnight() -> None:
    tariff = Tariff(0.0, (NIGHT, DAY, EVENING))

    assert tariff.price_at(MIDNIGHT_S - 1) == 0.05
    assert tariff.price_at(MIDNIGHT_S) == 0.02


def test_without_periods_the_price_is_always_the_same() -> None:
    assert {Tariff(0.08).price_at(hour * HOUR_S) for hour in range(48)} == {0.08}
    assert FREE.price_at(MIDNIGHT_S) == 0.0


@pytest.mark.parametrize(
    ("periods", "fault"),
    [
        pytest.param((), None, id="none"),
        pytest.param((PricePeriod(0, 24, 1),), None, id="a whole day"),
        pytest.param((NIGHT, DAY, EVENING), None, id="three"),
        pytest.param(
            (PricePeriod(1, 24, 1),),
            "prices[0] from 1 to 24 leaves a gap: it must begin at 0",
            id="a late beginning",
        ),
        pytest.param((NIGHT,), "prices end at 7, the day at 24", id="an early end"),
        pytest.param(
            (NIGHT, EVENING),
            "prices[1] from 19.5 to 24 leaves a gap: it must begin at 7",
            id="a gap",
        ),
        pytest.param(
            (NIGHT, PricePeriod(6, 24, 1)),
            "prices[1] from 6 to 24 begins before 7, where the one before it ends",
            id="an overlap",
        ),
        pytest.param(
            (DAY, NIGHT),
            "prices[0] from 7 to 19.5 leaves a gap: it must begin at 0",
            id="unsorted",
        ),
        pytest.param(
            (PricePeriod(0, 0, 1),), "prices[0] from 0 to 0 ends before it begins", id="empty"
        ),
    ],
)
def test_periods_make_a_day_or_it_is_said_what_is_wrong(
    periods: tuple[PricePeriod, ...], fault: str | None
) -> None:
    assert fault_of(periods) == fault
