from __future__ import annotations

import pytest

from controlplane.admin import text


@pytest.mark.parametrize(
    ("value", "said"),
    [(0, "0 B"), (999, "999 B"), (1_000, "1.0 kB"), (1_553_072, "1.6 MB"), (150_000_000, "150 MB")],
)
def test_sizes_have_decimal_units(value: float, said: str) -> None:
    assert text.size(value) == said


@pytest.mark.parametrize("value", [999.5, 999_500, 999_999_999])
def test_no_figure_is_rounded_to_a_thousand_of_its_unit(value: float) -> None:
    assert not text.size(value).startswith("1000")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.0, "0 ms"),
        (0.0004, "0.4 ms"),
        (0.00096, "1 ms"),
        (0.072, "72 ms"),
        (0.0996, "0.10 s"),
        (0.61, "0.61 s"),
        (9.996, "10.0 s"),
        (75.25, "75.2 s"),
    ],
)
def test_times_have_two_or_three_figures(value: float, said: str) -> None:
    assert text.seconds(value) == said


def test_rates_are_in_bits() -> None:
    assert text.rate(200e6) == "200 Mbit/s"


@pytest.mark.parametrize(
    ("ratio", "said"), [(0, "0 %"), (0.004, "0.4 %"), (0.0996, "10 %"), (1.37, "137 %")]
)
def test_small_shares_have_a_decimal(ratio: float, said: str) -> None:
    assert text.percent(ratio) == said


def test_times_of_day_are_utc() -> None:
    assert text.clock(1_760_000_000.25) == "08:53:20"
    assert text.date_and_clock(1_760_000_000.25) == "2025-10-09 08:53:20.250 UTC"


def test_codes_read_as_words() -> None:
    assert text.words("uncached_over_threshold") == "uncached over threshold"
