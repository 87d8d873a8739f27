"""Runs all cells in rounds, in a new order each time, and takes medians over the rounds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from random import Random
from statistics import median
from typing import Final, TypeVar

from benchmarks.cells import SYSTEMS, Cell, System, cells_of
from benchmarks.children import Child, cpu_s, rss_bytes
from benchmarks.deployment import Deployment
from benchmarks.load import Job

#: What was begun in a measured time and ends behind it, such as writing records, is counted too.
_SETTLE_S: Final = 0.06
#: Above a job's own time.
_ANSWER_S: Final = 20.0

_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How long and how often."""

    rounds: int
    seconds: float
    warm_s: float
    seed: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One system in one cell of one round."""

    requests: int
    errors: int
    example: str
    requests_per_s: float
    p50_ms: float
    p99_ms: float
    cpu_us: float
    redis_cpu_us: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One system in one cell: medians over the rounds."""

    cell: str
    system: System
    requests: int
    errors: int
    example: str
    requests_per_s: float
    #: Of the requests per second of `direct` in the same round.
    ratio: float
    p50_ms: float
    p99_ms: float
    #: Above the p50 of `direct` in the same round.
    added_p50_ms: float
    #: Of the system's own process, for each request; 0 for `direct`, which has none.
    cpu_us: float
    redis_cpu_us: float


def measure(
    deployment: Deployment, load: Child, plan: Plan, progress: Callable[[str], None]
) -> tuple[list[Row], int]:
    """The rows of one deployment's cells, and the number of requests its router has answered."""
    rng = Random(plan.seed)
    samples: dict[tuple[Cell, System], list[Sample]] = {}
    answered = 0
    for number in range(plan.rounds):
        for cell in _shuffled(rng, cells_of(deployment.size)):
            for system in _shuffled(rng, SYSTEMS):
                progress(f"round {number + 1} of {plan.rounds}: {cell.name} {system}")
                warm = _run(deployment, load, cell, system, plan.warm_s)
                sample = _run(deployment, load, cell, system, plan.seconds)
                samples.setdefault((cell, system), []).append(sample)
                if system == "prfaas":
                    answered += warm.requests + sample.requests
    rows = [
        _row(cell, system, samples[cell, system], samples[cell, "direct"])
        for cell in cells_of(deployment.size)
        for system in SYSTEMS
    ]
    return rows, answered


def memory_mb(deployment: Deployment) -> dict[str, float]:
    """Resident memory of each system's process after the load, in megabytes."""
    return {system: rss_bytes(pid) / 1e6 for system, pid in deployment.pids.items()}


def _shuffled(rng: Random, items: Sequence[_Item]) -> list[_Item]:
    return rng.sample(items, len(items))


def _run(deployment: Deployment, load: Child, cell: Cell, system: System, seconds: float) -> Sample:
    job = Job(
        port=deployment.ports[system],
        model=deployment.model,
        size=cell.size.name,
        is_stream=cell.is_stream,
        connections=cell.connections,
        seconds=seconds,
    )
    pid = deployment.pids.get(system)
    before_s = cpu_s(pid) if pid else 0.0
    redis_before_s = cpu_s(deployment.redis_pid)
    said = load.ask(asdict(job), seconds + _ANSWER_S)
    time.sleep(_SETTLE_S)
    used_s = (cpu_s(pid) if pid else 0.0) - before_s
    redis_used_s = cpu_s(deployment.redis_pid) - redis_before_s
    requests = max(1, said["requests"])
    return Sample(
        requests=said["requests"],
        errors=said["errors"],
        example=said["example"],
        requests_per_s=said["requests"] / said["elapsed_s"],
        p50_ms=said["p50_ms"],
        p99_ms=said["p99_ms"],
        cpu_us=used_s / requests * 1e6,
        redis_cpu_us=redis_used_s / requests * 1e6 if system == "prfaas" else 0.0,
    )


def _row(cell: Cell, system: System, samples: list[Sample], direct: list[Sample]) -> Row:
    pairs = list(zip(samples, direct, strict=True))
    return Row(
        cell=cell.name,
        system=system,
        requests=sum(sample.requests for sample in samples),
        errors=sum(sample.errors for sample in samples),
        example=next((sample.example for sample in samples if sample.example), ""),
        requests_per_s=median(sample.requests_per_s for sample in samples),
        ratio=median(one.requests_per_s / other.requests_per_s for one, other in pairs),
        p50_ms=median(sample.p50_ms for sample in samples),
        p99_ms=median(sample.p99_ms for sample in samples),
        added_p50_ms=median(one.p50_ms - other.p50_ms for one, other in pairs),
        cpu_us=median(sample.cpu_us for sample in samples),
        redis_cpu_us=median(sample.redis_cpu_us for sample in samples),
    )
