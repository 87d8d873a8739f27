"""
Changes of links and workers from a file: capacity steps, outages, losses.

    [[steps]]                    [[losses]]
    at_s = 600                   at_s = 900
    link = "east>west"           workers = ["east/p1", "east/p2"]
    capacity_gbit_per_s = 10     back_after_s = 120
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from controlplane.errors import ConfigError
from controlplane.planfile_toml import read_toml
from controlplane.replay.spec import Change, LinkStep, Loss, WorldSpec

AtSeconds = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Step(_Section):
    at_s: AtSeconds
    link: Annotated[str, Field(max_length=256)]
    #: 0 is an outage: KV and messages stop.
    capacity_gbit_per_s: Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]


class _Loss(_Section):
    at_s: AtSeconds
    workers: Annotated[tuple[str, ...], Field(min_length=1, max_length=100_000)]
    back_after_s: AtSeconds | None = None


class _Changes(_Section):
    steps: Annotated[tuple[_Step, ...], Field(max_length=100_000)] = ()
    losses: Annotated[tuple[_Loss, ...], Field(max_length=100_000)] = ()


def load_changes(path: Path) -> tuple[Change, ...]:
    """
    Read and check a file of changes.

    Raises:
        ConfigError: Not readable, not TOML, or a field is wrong; with file, line and field.
    """
    changes = read_toml(path, _Changes)
    return (
        *(
            LinkStep(at_s=one.at_s, link=one.link, capacity_bps=one.capacity_gbit_per_s * 1e9)
            for one in changes.steps
        ),
        *(
            Loss(at_s=one.at_s, workers=one.workers, back_after_s=one.back_after_s)
            for one in changes.losses
        ),
    )


def check_changes(world: WorldSpec, source: object) -> None:
    """
    Whether all links and workers that change are there.

    Raises:
        ConfigError: One is not.
    """
    links = sorted(link.link_id for link in world.links)
    workers = {worker.worker_id for worker in world.workers}
    for change in world.changes:
        if isinstance(change, LinkStep):
            _check(source, "link", change.link, links)
        else:
            for name in change.workers:
                _check(source, "worker", name, workers)


def _check(source: object, kind: str, name: str, known: Collection[str]) -> None:
    if name not in known:
        listed = ", ".join(sorted(known)[:20])
        raise ConfigError(f"{source}: {kind} {name!r} is not in the fleet; known are {listed}")
