from __future__ import annotations

import pytest

from workers.kv.striping import connections_for

GBIT = 1e9


def needed(capacity_bps: float, rtt_s: float, *, transfers: int = 1, least: int = 2) -> int:
    return connections_for(
        capacity_bps=capacity_bps, rtt_s=rtt_s, transfers=transfers, connections_min=least
    )


@pytest.mark.parametrize(
    ("capacity_bps", "rtt_s", "count"),
    [
        (0.2 * GBIT, 0.04, 2),
        (1 * GBIT, 0.04, 2),
        (1 * GBIT, 0.1, 5),
        (5 * GBIT, 0.04, 10),
        (5 * GBIT, 0.1, 24),
        (100 * GBIT, 0.1, 32),
    ],
)
def test_connections_hold_what_the_link_holds(
    capacity_bps: float, rtt_s: float, count: int
) -> None:
    assert needed(capacity_bps, rtt_s) == count


def test_transfers_that_run_together_share_them() -> None:
    assert needed(5 * GBIT, 0.1, transfers=10) == 3


def test_a_link_that_nothing_has_crossed_is_taken_for_a_middling_one() -> None:
    assert needed(5 * GBIT, 0.0) == needed(5 * GBIT, 0.04)


def test_what_the_operator_asks_for_is_the_least() -> None:
    assert needed(5 * GBIT, 0.1, least=50) == 50
