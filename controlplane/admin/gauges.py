"""Gauges that are set when somebody looks: what the router's view says now."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from controlplane.admin.state import queue
from controlplane.domain.cluster import ClusterView, Role
from controlplane.domain.health import WORKER_STATES, WorkerState
from controlplane.domain.modes import MODES
from controlplane.observe.metrics import RouterMetrics

_ROLES: tuple[Role, ...] = ("prefill", "decode")


def refresh_gauges(
    metrics: RouterMetrics,
    view: ClusterView,
    *,
    view_age_s: float,
    datacenters: Iterable[str],
    states: Iterable[WorkerState] = (),
) -> None:
    """
    Set view age, mode, workers, their states, queues and links.

    Args:
        metrics: Of this router.
        view: The current one.
        view_age_s: Seconds since the newest input from the store, now.
        datacenters: Configured ones: a site that has lost all its workers must say 0, not vanish.
        states: Of all known workers.
    """
    metrics.view_age_seconds.set(view_age_s)
    metrics.mode.set(MODES.index(view.mode))
    counts = Counter(states)
    for state in WORKER_STATES:
        metrics.worker_state.labels(state).set(counts[state])
    names = {*datacenters, *(worker.datacenter for worker in view.workers)}
    metrics.workers.clear()
    metrics.queue_tokens.clear()
    for name in sorted(names):
        for role in _ROLES:
            sums = queue(w for w in view.workers if (w.datacenter, w.role) == (name, role))
            metrics.workers.labels(name, role).set(sums["workers"])
            metrics.queue_tokens.labels(name, role).set(sums["pending_tokens"])
    for link in view.links:
        ends = (link.from_datacenter, link.to_datacenter)
        metrics.link_reserved_bytes.labels(*ends).set(link.reserved_bytes)
        metrics.link_goodput_bps.labels(*ends).set(link.goodput_bps)
