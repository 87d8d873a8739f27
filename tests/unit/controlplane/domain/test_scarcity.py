from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from random import Random

import pytest
from builders import a_link

from controlplane.domain.scarcity import ABUNDANT, Scarcity, ScarcityRules, backlog_s, judged

RULES = ScarcityRules(
    enter_utilisation=0.9,
    leave_utilisation=0.7,
    enter_backlog_s=2.0,
    leave_backlog_s=0.5,
    dwell_s=5.0,
)
SCARCE = Scarcity(is_scarce=True, since_s=0.0)


@pytest.mark.parametrize(
    ("utilisation", "backlog_s", "is_scarce"),
    [
        pytest.param(0.0, 0.0, False, id="idle"),
        pytest.param(0.89, 1.99, False, id="just below both marks"),
        pytest.param(0.9, 0.0, True, id="used"),
        pytest.param(0.0, 2.0, True, id="promised"),
        pytest.param(1.0, 9.0, True, id="both"),
    ],
)
def test_a_link_becomes_scarce_at_either_upper_mark(
    utilisation: float,
    backlog_s: float,
    is_scarce: bool,  # noqa: FBT001 - a table
) -> None:
    now = judged(ABUNDANT, utilisation=utilisation, backlog_s=backlog_s, now_s=1.0, rules=RULES)

    assert now == (Scarcity(is_scarce=True, since_s=1.0) if is_scarce else ABUNDANT)


@pytest.mark.parametrize(
    ("utilisation", "backlog_s", "is_scarce"),
    [
        pytest.param(0.71, 0.0, True, id="still used"),
        pytest.param(0.0, 0.51, True, id="still promised"),
        pytest.param(0.7, 0.5, False, id="at both lower marks"),
        pytest.param(0.0, 0.0, False, id="idle"),
    ],
)
def test_it_is_abundant_again_below_both_lower_marks(
    utilisation: float,
    backlog_s: float,
    is_scarce: bool,  # noqa: FBT001 - a table
) -> None:
    now = judged(SCARCE, utilisation=utilisation, backlog_s=backlog_s, now_s=60.0, rules=RULES)

    assert now == (SCARCE if is_scarce else Scarcity(is_scarce=False, since_s=60.0))


@pytest.mark.parametrize(("now_s", "is_scarce"), [(4.9, True), (5.0, False)])
def test_it_stays_what_it_has_become_for_a_while(
    now_s: float,
    is_scarce: bool,  # noqa: FBT001 - a table
) -> None:
    now = judged(SCARCE, utilisation=0.0, backlog_s=0.0, now_s=now_s, rules=RULES)

    assert now.is_scarce == is_scarce


def changes(measured: Sequence[float], step_s: float) -> list[float]:
    """When a link changed while its utilisation was measured every step."""
    state, found = ABUNDANT, []
    for number, utilisation in enumerate(measured):
        now_s = number * step_s
        after = judged(state, utilisation=utilisation, backlog_s=0.0, now_s=now_s, rules=RULES)
        if after.is_scarce != state.is_scarce:
            found.append(now_s)
        state = after
    return found


def test_noise_between_the_marks_changes_nothing() -> None:
    rng = Random(7)

    assert changes([rng.uniform(0.71, 0.89) for _ in range(1000)], 0.25) == []


def test_noise_over_both_marks_changes_it_no_more_often_than_the_dwell_allows() -> None:
    rng = Random(7)

    found = changes([rng.random() for _ in range(4000)], 0.25)

    gaps = [later - earlier for earlier, later in pairwise(found)]
    assert len(found) > 10
    assert min(gaps) >= RULES.dwell_s


def test_the_backlog_is_what_was_promised_at_the_link_s_rate() -> None:
    assert backlog_s(a_link(capacity_bps=8e6, reserved_bytes=3_000_000)) == pytest.approx(3.0)
