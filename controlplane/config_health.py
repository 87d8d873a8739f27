"""Settings of what a router makes of its workers; a part of `controlplane/config.py`."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

PositiveSeconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]


class Section(BaseModel):
    """Base of all sections: a misspelt key is an error, not a default."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class HealthConfig(Section):
    """What a router makes of failing, silent and new workers, and of an old view."""

    #: Failed requests in a row that eject a worker; fewer may be one broken connection.
    failures_max: Annotated[int, Field(ge=1, le=1000)] = 5
    #: Or this part of its requests of the last `window_s`, from `requests_min` on.
    failure_ratio: Annotated[float, Field(gt=0, le=1)] = 0.5
    window_s: PositiveSeconds = 10.0
    requests_min: Annotated[int, Field(ge=1, le=100_000)] = 10
    #: Corrupt transfers that eject their source: one may be the network, three are a bad buffer.
    corrupt_max: Annotated[int, Field(ge=1, le=1000)] = 3
    #: The first time out of a worker, doubled each further time up to the bound, so that one that
    #: never recovers costs a request every five minutes.
    eject_s: PositiveSeconds = 10.0
    eject_s_max: PositiveSeconds = 300.0
    #: Part by which a time out is longer or shorter by chance: routers should not try it together.
    eject_jitter: Annotated[float, Field(ge=0, lt=1)] = 0.2
    #: Part of the workers of a kind that may be out at the same time; one always may.
    ejected_share_max: Annotated[float, Field(gt=0, le=1)] = 1 / 3
    #: With less than this part of a kind available, the doubt is the likelier error: all are used.
    panic_share: Annotated[float, Field(ge=0, le=1)] = 0.5
    #: A new worker gets its full share of work after this; caches and profiles have to fill.
    warm_s: PositiveSeconds = 10.0
    #: And this part of it at first.
    warm_share_min: Annotated[float, Field(gt=0, le=1)] = 0.1
    #: The store is down when calls fail and nothing was heard of it for so long: two waits of the
    #: feed, so that one slow call changes nothing.
    store_away_s: PositiveSeconds = 1.0
    #: A view that is older counts prefix hits less and offloads only what it must.
    view_stale_s: PositiveSeconds = 2.0
    #: And one that is older than this, with workers that do not answer, keeps to its datacenter.
    view_blind_s: PositiveSeconds = 30.0
    #: Workers do not answer when less than this part of them does.
    answering_share: Annotated[float, Field(ge=0, le=1)] = 0.5
    #: Prefill workers whose transfers fail, one after the other, that hold a link down; for how
    #: long, and up to how long: doubled each time, so that a link that comes and goes does not take
    #: requests with it.
    link_sources_max: Annotated[int, Field(ge=1, le=100)] = 2
    link_hold_s: PositiveSeconds = 2.0
    link_hold_s_max: PositiveSeconds = 60.0
    #: Links into the router's datacenter, and others in use, are probed so often, +- 20 %: a cut is
    #: found within one such time and one timeout, in less than 2 s.
    link_probe_interval_s: PositiveSeconds = 0.5
    #: Connecting and one answer over a link; three round trips of the longest there is.
    link_probe_timeout_s: Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)] = 1.0
    #: After a hold, a link of which no probe says anything for so long is tried by a request.
    link_untold_s: PositiveSeconds = 3.0
    #: Without the store, a link over which nothing moved for so long is not trusted.
    link_measured_s: PositiveSeconds = 10.0
    #: A link whose bandwidth is used by this part is scarce: caches are judged apart and nothing is
    #: copied over it. It is abundant again below the lower mark, so that the choice does not flap.
    link_scarce_utilisation: Annotated[float, Field(gt=0, le=1)] = 0.9
    link_abundant_utilisation: Annotated[float, Field(ge=0, lt=1)] = 0.7
    #: So is one whose promised bytes need so many seconds, until they need no more than the second:
    #: transfers that long are seen in the time to the first token.
    link_scarce_backlog_s: PositiveSeconds = 2.0
    link_abundant_backlog_s: PositiveSeconds = 0.5
    #: It stays what it has become for so long: several transfers, and a few heartbeats.
    link_scarce_dwell_s: Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)] = 5.0
    #: While the store is away, each worker is asked so often; +- 20 %, so that routers spread.
    probe_interval_s: PositiveSeconds = 1.0
    #: An answer that takes longer is none.
    probe_timeout_s: PositiveSeconds = 0.5
    #: Workers asked at the same time.
    probes_max: Annotated[int, Field(ge=1, le=1024)] = 32

    @model_validator(mode="after")
    def _scarcity_does_not_flap(self) -> Self:
        for lower, upper in (
            ("link_abundant_utilisation", "link_scarce_utilisation"),
            ("link_abundant_backlog_s", "link_scarce_backlog_s"),
        ):
            if getattr(self, lower) >= getattr(self, upper):
                raise ValueError(
                    f"{lower} = {getattr(self, lower):g} must be less than {upper} = "
                    f"{getattr(self, upper):g}, or a link is scarce and abundant by turns"
                )
        return self
