"""Settings of the planner that do not fit together are refused."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from controlplane.config import DEFAULT_FLEET, FleetConfig
from controlplane.config_planner import PlannerConfig
from controlplane.router.rules import view_rules


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"lease_s": 9.0}, "one late call loses the lead"),
        ({"plan_s_max": 30.0}, "sends policies back to their parameters"),
        ({"lend_share_max": 0.6}, "less than or equal to 0.5"),
        ({"burst_factor": 1.0}, "greater than 1"),
        ({"plan_intervall_s": 5.0}, "Extra inputs are not permitted"),
    ],
)
def test_what_cannot_work_is_refused_with_its_reason(
    values: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValidationError, match=complaint):
        PlannerConfig(**values)


def test_routers_believe_a_plan_for_as_long_as_the_planner_section_says() -> None:
    fleet = FleetConfig.model_validate(
        DEFAULT_FLEET.model_dump() | {"planner": {"plan_s_max": 77.0}}
    )

    assert view_rules(fleet).plan_s_max == 77.0
