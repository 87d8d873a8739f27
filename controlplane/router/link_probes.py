"""
Probes links, so that a cut is found before requests are lost to it, and its end without one.

A router offloads over a link by two ways: its own HTTP to the prefill worker, and KV from there to a
decode worker. So a probe has two parts: the router asks the prefill worker how it is, and has the
decode worker dial the prefill worker's KV port and wait for an answer. Both must come back: a link that
is cut one way answers neither. Links into the router's own datacenter are probed, where decode mostly
is, and others while they are used or held down.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final, Literal, Protocol, TypeAlias

from controlplane.config_health import HealthConfig
from controlplane.domain.cluster import ClusterView, LinkView, WorkerView
from controlplane.observe.logs import get_logger
from controlplane.observe.metrics import RouterMetrics
from controlplane.router.view import ViewTracker
from controlplane.wire import KvAddress

_log = get_logger()

#: Intervals differ by so much, up or down, so that routers do not probe in step.
_JITTER: Final = 0.2

#: What a probe of one way found: both parts came back; one of them met silence; nobody can tell,
#: because a worker is gone, cannot be asked, or is of a version that cannot probe.
WaySign: TypeAlias = Literal["answered", "silent", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """From a prefill worker over a link to a decode worker."""

    owner_url: str
    owner_kv: KvAddress
    reader_url: str


class LinkProber(Protocol):
    """Probes one way."""

    async def cross(self, way: Way, *, timeout_s: float) -> WaySign:
        """
        Whether a way is open in both directions; never raises for what it meets there.

        Bounded: half a second more than `timeout_s`.
        """

    async def close(self) -> None:
        """Close all connections; what is probed later is unknown."""


#: Workers by role and datacenter.
_Sites: TypeAlias = Mapping[tuple[str, str], Sequence[WorkerView]]


class LinkProbes:
    """The task that probes all links that matter to a router."""

    def __init__(
        self,
        prober: LinkProber,
        tracker: ViewTracker,
        metrics: RouterMetrics,
        config: HealthConfig,
        rng: Random,
        clock: Callable[[], float],
    ) -> None:
        self._prober = prober
        self._tracker = tracker
        self._metrics = metrics
        self._config = config
        self._rng = rng
        self._clock = clock
        #: Links whose last probes are still under way: one round each at a time.
        self._asking: set[str] = set()
        #: Links that were down when they were looked at last.
        self._down: frozenset[str] = frozenset()

    def __repr__(self) -> str:
        return f"<LinkProbes {len(self._asking)} under way>"

    async def run(self) -> None:
        """Probe until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                jitter = 1 + _JITTER * (2 * self._rng.random() - 1)
                await asyncio.sleep(self._config.link_probe_interval_s * jitter)
                view = self._tracker.view()
                self._tell(view)
                sites = _by_site(view)
                for link in self._tracker.links_to_probe():
                    ways = self._ways(link, sites)
                    if ways and link.link_id not in self._asking:
                        self._asking.add(link.link_id)
                        group.create_task(self._probe(link, ways))

    def _tell(self, view: ClusterView) -> None:
        """Log which links have gone down or come back, for whatever reason."""
        down = frozenset(link.link_id for link in view.links if link.is_down)
        for link_id in sorted(down - self._down):
            _log.warning("link.degraded", link=link_id)
        for link_id in sorted(self._down - down):
            _log.info("link.restored", link=link_id)
        self._down = down

    async def _probe(self, link: LinkView, ways: Sequence[Way]) -> None:
        timeout_s, asked_s = self._config.link_probe_timeout_s, self._clock()
        try:
            crossings = (self._prober.cross(way, timeout_s=timeout_s) for way in ways)
            signs = await asyncio.gather(*crossings)
        finally:
            self._asking.discard(link.link_id)
        ends = (link.from_datacenter, link.to_datacenter)
        for sign in signs:
            self._metrics.link_probes_total.labels(*ends, sign).inc()
        said = verdict_of(signs)
        if said != "unknown":
            self._tracker.link_probed(link.link_id, is_answered=said == "answered", asked_s=asked_s)

    def _ways(self, link: LinkView, sites: _Sites) -> list[Way]:
        """As many ways over a link as it takes failures to hold it down, by different workers."""
        owners = self._well_first(sites.get(("prefill", link.from_datacenter), ()))
        readers = self._well_first(sites.get(("decode", link.to_datacenter), ()))
        ways: list[Way] = []
        for owner in owners if readers else ():
            beat = self._tracker.beat(owner.worker_id)
            if beat is None or beat.kv is None:
                continue
            reader = readers[len(ways) % len(readers)]
            ways.append(Way(owner_url=owner.url, owner_kv=beat.kv, reader_url=reader.url))
            if len(ways) == self._config.link_sources_max:
                break
        return ways

    def _well_first(self, workers: Sequence[WorkerView]) -> list[WorkerView]:
        """Workers in no order, but those in doubt last: their silence is their own."""
        found = self._rng.sample(workers, len(workers))
        return sorted(found, key=lambda one: one.is_suspect or one.is_ejected or one.is_draining)


def _by_site(view: ClusterView) -> _Sites:
    sites: defaultdict[tuple[str, str], list[WorkerView]] = defaultdict(list)
    for worker in view.workers:
        sites[worker.role, worker.datacenter].append(worker)
    return sites


def verdict_of(signs: Sequence[WaySign]) -> WaySign:
    """
    What the ways over one link say of it.

    One answer shows that it is open. It is silent when all its ways are: as many as it takes, or all
    there are. A single prefill worker that is frozen looks like that too, and then nothing but that
    worker is behind the link.
    """
    if "answered" in signs:
        return "answered"
    return "unknown" if "unknown" in signs else "silent"
