"""
The router's picture of the cluster, kept up to date by events and by its own claims.

Routing reads this and nothing else: no request waits for the store to be routed. All methods are
synchronous and take their time from an injected clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from controlplane.config import LinkConfig
from controlplane.domain.cluster import ClusterView
from controlplane.domain.prefix import BlockHash, PrefixHit, PrefixIndex
from controlplane.router.known import KnownLink, KnownWorker
from controlplane.store.api import StoreEvent, StoreSnapshot, WorkerSeen
from controlplane.wire import WorkerBeat


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What one attempt of a request takes, as predicted when it was decided."""

    prefill_worker: str
    #: The life it was claimed of: a successor owes nothing for it.
    prefill_incarnation: str
    #: Uncached tokens.
    prefill_tokens: int
    decode_worker: str
    decode_incarnation: str
    #: None inside a datacenter.
    link: str | None = None
    link_bytes: int = 0


class ViewTracker:
    """Workers, links and prefix index of one router."""

    def __init__(
        self,
        *,
        home_datacenter: str,
        links: Sequence[LinkConfig],
        ttl_s: float,
        suspect_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._home = home_datacenter
        self._ttl_s = ttl_s
        self._suspect_s = suspect_s
        self._clock = clock
        self._known: dict[str, KnownWorker] = {}
        self._links = {link.link_id: KnownLink(link) for link in links}
        self._index = PrefixIndex()
        self._epoch = 0
        self._cached: ClusterView | None = None
        #: When the next suspicion ends, which is a change that nobody tells of.
        self._forgiven_s = math.inf
        self._heard_s = clock()
        self._is_store_away = True

    def __repr__(self) -> str:
        return f"<ViewTracker epoch {self._epoch}, {len(self._known)} workers, {self._index!r}>"

    # --- What the store says ------------------------------------------------------------------

    def apply_snapshot(self, snapshot: StoreSnapshot) -> None:
        """
        Take the whole picture.

        Workers that are missing in it are not dropped at once: after a flush of the store they
        need one heartbeat to be there again, and a live worker must not vanish meanwhile.
        """
        now_s = self._clock()
        for beat in snapshot.beats:
            self._see(beat, now_s)
        if self._is_store_away:
            for known in self._known.values():
                known.seen_s = now_s
        self._heard_s = now_s
        self._is_store_away = False
        self._changed()

    def apply_events(self, events: Sequence[StoreEvent]) -> list[str]:
        """
        Take events in order.

        Returns:
            Workers that are new, by id, for the log.
        """
        now_s = self._clock()
        self._heard_s = now_s
        self._is_store_away = False
        fresh: list[str] = []
        for event in events:
            if isinstance(event, WorkerSeen):
                if self._see(event.beat, now_s):
                    fresh.append(event.beat.worker_id)
            else:
                known = self._known.get(event.worker_id)
                if known is not None and known.beat.incarnation == event.incarnation:
                    self._forget(event.worker_id)
        if events:
            self._changed()
        return fresh

    def store_lost(self) -> None:
        """Nothing is heard any more: keep the last view, and expire nobody by silence."""
        self._is_store_away = True

    def expire(self) -> list[str]:
        """Drop workers that have not been heard of for their time to live; their ids."""
        if self._is_store_away:
            return []
        oldest_s = self._clock() - self._ttl_s
        gone = [name for name, known in self._known.items() if known.seen_s < oldest_s]
        for worker_id in gone:
            self._forget(worker_id)
        if gone:
            self._changed()
        return gone

    # --- What this router does ----------------------------------------------------------------

    def claim(self, claim: Claim) -> None:
        """Count a claim until the workers count it themselves."""
        self._add(claim.prefill_worker, claim.prefill_incarnation, 1, claim.prefill_tokens)
        self._add(claim.decode_worker, claim.decode_incarnation, 1, 0)
        self._add_link(claim.link, claim.link_bytes)

    def prefill_done(self, claim: Claim) -> None:
        """The prefill part is over and its bytes have moved; decode goes on."""
        self._add(claim.prefill_worker, claim.prefill_incarnation, -1, -claim.prefill_tokens)
        self._add_link(claim.link, -claim.link_bytes)

    def decode_done(self, claim: Claim) -> None:
        """The decode part is over."""
        self._add(claim.decode_worker, claim.decode_incarnation, -1, 0)

    def suspect(self, worker_id: str) -> None:
        """Give a worker no new work for a while."""
        known = self._known.get(worker_id)
        if known is not None:
            known.suspect_until_s = self._clock() + self._suspect_s
            self._forgiven_s = min(self._forgiven_s, known.suspect_until_s)
            known.view = None
            self._changed()

    def forget_incarnation(self, worker_id: str, incarnation: str) -> None:
        """The store or the worker itself says that this process life is over."""
        known = self._known.get(worker_id)
        if known is not None and known.beat.incarnation == incarnation:
            self._forget(worker_id)
            self._changed()

    # --- What policies see --------------------------------------------------------------------

    def view(self) -> ClusterView:
        """The current picture; the same tuple of workers until something changes."""
        now_s = self._clock()
        if now_s >= self._forgiven_s:
            self._forgive(now_s)
        cached = self._cached
        if cached is None:
            cached = self._cached = ClusterView(
                epoch=self._epoch,
                age_s=self.age_s(),
                home_datacenter=self._home,
                # A view that is there still holds; after most changes that is all but one or two.
                workers=tuple(
                    [known.view or known.look(now_s) for _, known in sorted(self._known.items())]
                ),
                links=tuple([link.view or link.look() for _, link in sorted(self._links.items())]),
            )
        return cached

    def match(self, hashes: Sequence[BlockHash], *, block_tokens: int) -> dict[str, PrefixHit]:
        """Prefix hits of a prompt at every worker that has any."""
        return self._index.match(hashes, block_tokens=block_tokens)

    def age_s(self) -> float:
        """Seconds since the newest input from the store."""
        return max(0.0, self._clock() - self._heard_s)

    @property
    def is_store_away(self) -> bool:
        """The last call to the store failed."""
        return self._is_store_away

    def beat(self, worker_id: str) -> WorkerBeat | None:
        """What a worker last said of itself."""
        known = self._known.get(worker_id)
        return known.beat if known else None

    def held_blocks(self, worker_id: str) -> int:
        """Blocks in a worker's prefix cache, as far as it is known."""
        return self._index.held_blocks(worker_id)

    def link_bytes_total(self) -> Mapping[str, int]:
        """Bytes received over each link since the live receivers started."""
        return {name: sum(link.bytes_total.values()) for name, link in self._links.items()}

    # --- Inside -------------------------------------------------------------------------------

    def _see(self, beat: WorkerBeat, now_s: float) -> bool:
        """Take a beat; true when its process life is new here."""
        known = self._known.get(beat.worker_id)
        is_new = known is None or known.beat.incarnation != beat.incarnation
        if known is None or is_new:
            self._forget(beat.worker_id)
            known = self._known[beat.worker_id] = KnownWorker(beat, now_s)
        elif beat.sequence < known.beat.sequence:
            return False
        elif beat.sequence == known.beat.sequence:
            # The snapshot and the event stream told the same thing: it is no new sign of life,
            # and no claim made since is in it. Only an inventory in full may say more.
            if beat.inventory.is_full:
                self._index.apply(beat.worker_id, beat.inventory.to_delta())
            return False
        known.beat, known.seen_s, known.view = beat, now_s, None
        known.delta_requests = known.delta_tokens = 0
        self._index.apply(beat.worker_id, beat.inventory.to_delta())
        for report in beat.links:
            link = self._links.get(f"{report.from_datacenter}>{report.to_datacenter}")
            if link is not None:
                link.goodput_bps[beat.worker_id] = report.goodput_bps
                link.rtt_s[beat.worker_id] = report.rtt_s
                link.bytes_total[beat.worker_id] = report.bytes_total
                link.view = None
        return is_new

    def _forget(self, worker_id: str) -> None:
        self._known.pop(worker_id, None)
        self._index.forget(worker_id)
        for link in self._links.values():
            link.goodput_bps.pop(worker_id, None)
            link.rtt_s.pop(worker_id, None)
            link.bytes_total.pop(worker_id, None)
            link.view = None

    def _forgive(self, now_s: float) -> None:
        """A suspicion is over: the picture is another one."""
        self._forgiven_s = math.inf
        for known in self._known.values():
            if known.suspect_until_s > now_s:
                self._forgiven_s = min(self._forgiven_s, known.suspect_until_s)
            elif known.view is not None and known.view.is_suspect:
                known.view = None
        self._changed()

    def _add(self, worker_id: str, incarnation: str, requests: int, tokens: int) -> None:
        known = self._known.get(worker_id)
        if known is not None and known.beat.incarnation == incarnation:
            known.delta_requests += requests
            known.delta_tokens += tokens
            known.view = None
            self._changed()

    def _add_link(self, name: str | None, link_bytes: int) -> None:
        link = self._links.get(name) if name else None
        if link is not None:
            link.reserved_bytes = max(0, link.reserved_bytes + link_bytes)
            link.view = None
            self._changed()

    def _changed(self) -> None:
        self._epoch += 1
        self._cached = None
