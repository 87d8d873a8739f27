"""A planning file as a fleet to replay on: workers with roles, links, the router's datacenter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Final

from controlplane.domain.cluster import Role
from controlplane.domain.throughput.fleet import TrafficModel
from controlplane.domain.throughput.layout import InfeasibleError
from controlplane.domain.throughput.lengths import empirical
from controlplane.domain.throughput.solve import solve
from controlplane.errors import ConfigError
from controlplane.planfile import GroupSpec, HardwareSpec, PlanningDatacenter, PlanningFleet
from controlplane.replay.spec import Change, Hardware, LinkSpec, WorkerSpec, WorldSpec
from controlplane.replay.traces.request import TraceRequest

#: A state is kept at every so many blocks of 512 tokens of a hybrid model's prompt.
_SNAPSHOT_BLOCKS: Final = 8


def world_of(
    fleet: PlanningFleet,
    *,
    block_tokens: int,
    roles: Mapping[str, tuple[int, int]] | None = None,
    home: str | None = None,
    changes: Sequence[Change] = (),
) -> WorldSpec:
    """
    The workers and links of a planning file.

    Args:
        fleet: The file.
        block_tokens: Of the trace.
        roles: By datacenter, how many of its workers that can do both prefill and how many decode;
            where nothing is said, half and half.
        home: The router's datacenter; None is the one with the most workers that can decode.
        changes: Of links and workers.

    Raises:
        ConfigError: No worker decodes or none prefills, or a name or number does not fit.
    """
    workers = [
        worker
        for site in fleet.datacenters
        for worker in _workers(fleet, site, (roles or {}).get(site.name), block_tokens)
    ]
    names = [site.name for site in fleet.datacenters]
    for given in (*(roles or {}), *((home,) if home else ())):
        if given not in names:
            raise ConfigError(f"datacenter {given!r} is not one of {names}")
    for role in ("prefill", "decode"):
        if not any(worker.role == role for worker in workers):
            raise ConfigError(f"fleet {fleet.name}: no worker has the role {role!r}")
    return WorldSpec(
        workers=tuple(workers),
        links=tuple(
            LinkSpec(
                from_datacenter=link.from_datacenter,
                to_datacenter=link.to_datacenter,
                capacity_bps=link.capacity_bps,
                rtt_s=link.rtt_ms / 1000,
                egress_price_per_gb=link.price_per_gb,
            )
            for link in fleet.links
        ),
        home=home or _home(workers),
        block_tokens=block_tokens,
        changes=tuple(changes),
    )


def solved_roles(
    fleet: PlanningFleet, requests: Sequence[TraceRequest]
) -> dict[str, tuple[int, int]]:
    """
    The roles that the throughput model finds best, by datacenter with workers that can do both.

    Args:
        fleet: The planning file.
        requests: A sample of the trace, at least one; whole lengths, as if nothing were cached.

    Raises:
        ConfigError: The fleet cannot serve any traffic; says what is missing.
    """
    traffic = TrafficModel(
        arrival_per_s=1.0,
        lengths=empirical([request.input_tokens for request in requests]),
        output_tokens=fmean(request.output_tokens for request in requests),
        kv=fleet.model.kv,
    )
    try:
        solution = solve(fleet.fleet_model(), traffic)
    except InfeasibleError as error:
        raise ConfigError(f"fleet {fleet.name}: {error}") from error
    return {
        name: (roles.prefill_workers, roles.decode_workers)
        for name, roles in solution.roles.items()
    }


def _home(workers: Sequence[WorkerSpec]) -> str:
    decoders: dict[str, int] = {}
    for worker in workers:
        if worker.role == "decode":
            decoders[worker.datacenter] = decoders.get(worker.datacenter, 0) + 1
    return max(sorted(decoders), key=lambda name: decoders[name])


def _workers(
    fleet: PlanningFleet,
    site: PlanningDatacenter,
    wanted: tuple[int, int] | None,
    block_tokens: int,
) -> Iterator[WorkerSpec]:
    able = [(group, _can(fleet, group)) for group in site.groups]
    free = sum(group.workers for group, can in able if len(can) > 1)
    if wanted is not None and sum(wanted) != free:
        raise ConfigError(
            f"datacenter {site.name} has {free} workers that can do both: roles "
            f"{wanted[0]}/{wanted[1]} are for {sum(wanted)}"
        )
    prefills = wanted[0] if wanted is not None else free // 2
    counts = {"prefill": 0, "decode": 0}
    for group, can in able:
        hardware = _hardware(fleet, fleet.hardware_of(group), can, block_tokens)
        for _ in range(group.workers):
            role = can[0]
            if len(can) > 1:
                role = "prefill" if prefills > 0 else "decode"
                prefills -= 1
            counts[role] += 1
            yield WorkerSpec(
                worker_id=f"{site.name}/{role[0]}{counts[role]}",
                datacenter=site.name,
                role=role,
                hardware=hardware,
            )


def _can(fleet: PlanningFleet, group: GroupSpec) -> tuple[Role, ...]:
    kind = fleet.hardware_of(group)
    roles: tuple[Role, ...] = ("prefill", "decode")
    return tuple(
        role for role in roles if getattr(kind, role) is not None and group.role in {role, "either"}
    )


def _hardware(
    fleet: PlanningFleet, kind: HardwareSpec, can: tuple[Role, ...], block_tokens: int
) -> Hardware:
    return Hardware(
        prefill=kind.prefill.profile() if kind.prefill is not None else None,
        decode=kind.decode.profile() if kind.decode is not None else None,
        kv=fleet.model.kv,
        cache_blocks=kind.cache_tokens // block_tokens,
        snapshot_blocks=_SNAPSHOT_BLOCKS if fleet.model.kv_state_bytes else 0,
        roles=can if len(can) > 1 else (),
    )
