"""What the baselines of load balancing share: who of some workers has the least to do."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from controlplane.domain.cluster import WorkerView
from controlplane.domain.estimate import queue_time_s
from controlplane.domain.sites import share_of
from policies.search import by_chance


def queue_of(worker: WorkerView) -> float:
    """Seconds of prefill before a worker, >= 0; one that warms up counts as busier than it is."""
    return queue_time_s(worker) / share_of(worker)


def least_of(workers: Sequence[WorkerView], rng: Random) -> WorkerView:
    """Who has the least to do, of one worker or more; equals by chance."""
    least_s = min(queue_of(worker) for worker in workers)
    tied = {worker.worker_id: worker for worker in workers if queue_of(worker) == least_s}
    return by_chance(tied, rng)


def waiting(worker: WorkerView) -> str:
    """Its queue in words."""
    return f"{worker.worker_id} has {queue_of(worker):.3f} s of prefill before it"
