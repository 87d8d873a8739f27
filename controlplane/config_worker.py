"""Settings of one worker process."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from controlplane.config_health import PositiveSeconds, Section


class WorkerConfig(Section):
    """One worker process."""

    #: Jobs get this long to end after SIGTERM or before another role, then what decodes moves to
    #: another worker. With two heartbeats, a second for goodbyes and three to close, the process is
    #: gone within 35 s.
    drain_s: Annotated[float, Field(gt=0, le=28, allow_inf_nan=False)] = 28.0
    #: Jobs wait for an engine that has finished nothing for so long: it hangs. A unit of work (a
    #: block of prefill, a step of decode) takes 0.02 s at the longest context, and shared
    #: processors make it ten times that.
    engine_stall_s: PositiveSeconds = 5.0
    #: A copy of a cached prefix gets so long, and half of what is left of its request at most, before
    #: the prefill computes instead. At 200 Mbit/s it is 125 MB; a policy asks for what it expects to
    #: come sooner than computing would.
    prefix_copy_s: PositiveSeconds = 5.0
