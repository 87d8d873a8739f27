"""Settings of the planner; a part of `controlplane/config.py`."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from controlplane.config_health import PositiveSeconds, Section


class PlannerConfig(Section):
    """How the slow loop watches traffic, and how slowly it lets thresholds and roles move."""

    #: Off: nobody plans, and policies go by their parameters, or by a plan that an operator publishes.
    enabled: bool = True
    #: The leader solves and publishes so often. Traffic shifts in minutes; what shifts faster is
    #: noticed between two plans, see `burst_factor` and `link_change`.
    plan_interval_s: PositiveSeconds = 20.0
    #: Each router tells its traffic, and asks for the lead, so often. Bursts are noticed as fast.
    report_interval_s: PositiveSeconds = 5.0
    #: A leader that says nothing for so long is followed by another router.
    lease_s: PositiveSeconds = 15.0
    #: A plan that no newer one has followed for so long is not believed any more: policies go back to
    #: their parameters.
    plan_s_max: PositiveSeconds = 300.0
    #: Arrivals and lengths fade by 1/e in so long: long enough for a few hundred requests.
    window_s: PositiveSeconds = 300.0
    #: The rate that shows a burst, likewise.
    burst_window_s: PositiveSeconds = 10.0
    #: Prefill times, likewise: hardware changes slower than traffic.
    profile_window_s: PositiveSeconds = 1800.0
    #: Fewer requests than this say nothing about lengths, and nothing is published.
    requests_min: Annotated[float, Field(ge=1, le=1e6)] = 30.0
    #: A worker's own profile counts like so many prefills that were seen.
    prior_requests: Annotated[float, Field(ge=0, le=1e6)] = 20.0
    #: And what was seen is believed up to this factor of it.
    profile_factor_max: Annotated[float, Field(ge=1, le=100)] = 4.0
    #: Requests come so many times as fast as planned for, or as slowly: solved at once.
    burst_factor: Annotated[float, Field(gt=1, le=100)] = 2.0
    #: A link gives so much more or less than planned for, as a part of it: solved at once.
    link_change: Annotated[float, Field(gt=0, le=1)] = 0.2
    #: But not more often than this.
    early_interval_s: PositiveSeconds = 5.0
    #: A threshold stands still unless it would move by this part of itself.
    threshold_step: Annotated[float, Field(ge=0, le=1)] = 0.1
    #: Or has differed by less for so long.
    threshold_dwell_s: PositiveSeconds = 120.0
    #: No threshold is below this: so short a prompt is computed before a request has crossed a link.
    threshold_tokens_min: Annotated[float, Field(ge=0, le=1 << 20)] = 32.0
    #: Workers are asked to change roles and to lend time. Off: the plan only says what would be best.
    changes_roles: bool = True
    #: A role changes only for so much more throughput, as a part of what there is.
    role_gain_min: Annotated[float, Field(ge=0, le=1)] = 0.05
    #: And not before so many requests were seen: of fewer, the mean length is uncertain by a tenth.
    role_requests_min: Annotated[float, Field(ge=1, le=1e6)] = 100.0
    #: Two plans in a row must want the change, and roles rest for so long once workers have taken them:
    #: they come to a new role with empty caches.
    role_dwell_s: PositiveSeconds = 60.0
    #: A worker that has not come back in its new role after this is not waited for any longer.
    role_change_s_max: PositiveSeconds = 120.0
    #: Shares of decode workers' time that are lent move in steps of this.
    lend_step: Annotated[float, Field(gt=0, le=0.5)] = 0.05
    #: And are never larger: the rest keeps the token rate within its objective.
    lend_share_max: Annotated[float, Field(ge=0, le=0.5)] = 0.25

    @model_validator(mode="after")
    def _leads_and_ages_fit(self) -> Self:
        if self.lease_s < 2 * self.report_interval_s:
            raise ValueError(
                f"lease_s = {self.lease_s:g} must be at least twice report_interval_s = "
                f"{self.report_interval_s:g}, or one late call loses the lead"
            )
        if self.plan_s_max < 2 * self.plan_interval_s:
            raise ValueError(
                f"plan_s_max = {self.plan_s_max:g} must be at least twice plan_interval_s = "
                f"{self.plan_interval_s:g}, or one missed plan sends policies back to their parameters"
            )
        return self
