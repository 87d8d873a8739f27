"""What one request holds of shared things, and how each of them is given back exactly once."""

from __future__ import annotations

import asyncio

from controlplane.domain import lifecycle as life
from controlplane.domain.cluster import WorkerView, link_id
from controlplane.domain.decision import Placement, Prediction
from controlplane.domain.prefix import BlockHash
from controlplane.domain.prefix_hits import resumable_tokens_max
from controlplane.errors import LinkDown, LinkStalled, StoreError, StoreTimeout
from controlplane.router.claims import Claim
from controlplane.router.coalescing import Lead
from controlplane.router.incoming import Incoming
from controlplane.router.prefixes import CopyStep
from controlplane.router.services import Services
from controlplane.wire import DecodeReport, Reservation, ReserveReply

#: The claim on prefill and link lives so many times the predicted time to the first token: by then
#: the worker's own heartbeats count what is left of it.
_PREFILL_TTL_FACTOR = 2.0

#: A prediction may be off by this much before the claim on prefill ends too early.
_PREFILL_TTL_SLACK_S = 5.0


#: Codes of copies that failed because of the way, not of what was to be copied.
_LINK_FAILURES = frozenset({LinkDown.code, LinkStalled.code})


class Holdings:
    """Claim in the view, reservation in the store, place in the retry budget, led prefix."""

    def __init__(self, services: Services, *, store_waited_s: float = 0.0) -> None:
        """
        Nothing is held.

        Args:
            services: Where everything is taken from.
            store_waited_s: What the request has waited for the store already.
        """
        self._services = services
        self._store_waited_s = store_waited_s
        self._claim: Claim | None = None
        self._is_prefill_claimed = False
        self._lead: Lead | None = None
        self._has_retry_place = False
        self.reservation: Reservation | None = None

    # --- Taking -------------------------------------------------------------------------------

    def claim(
        self,
        placement: Placement,
        prediction: Prediction,
        prefill: WorkerView,
        decode: WorkerView,
        copy_from: WorkerView | None = None,
    ) -> None:
        """Count an attempt in this router's own view."""
        link = None
        if placement.is_offloaded:
            link = link_id(placement.prefill_datacenter, placement.decode_datacenter)
        self._claim = Claim(
            prefill_worker=prefill.worker_id,
            prefill_incarnation=prefill.incarnation,
            prefill_tokens=prediction.uncached_tokens,
            decode_worker=decode.worker_id,
            decode_incarnation=decode.incarnation,
            link=link,
            link_bytes=prediction.transfer_bytes if link is not None else 0,
            copy_link=_copy_link(placement, copy_from),
            copy_bytes=prediction.copy_bytes,
            prefill_s=prediction.prefill_s,
        )
        self._services.tracker.claim(self._claim)
        self._is_prefill_claimed = True

    async def reserve(
        self, job_id: str, prediction: Prediction, prefill: WorkerView, decode: WorkerView
    ) -> ReserveReply | None:
        """Claim capacity in the store; its answer, or None when it is away and nobody can tell."""
        services = self._services
        # Held from here on: a call that is cancelled or times out may have been granted.
        self.reservation = self._asked(job_id, prediction, prefill, decode)
        try:
            reply = await self._ask(self.reservation)
        except StoreError:
            # Soft state only: without the store the workers themselves refuse what is too much.
            services.metrics.store_errors_total.labels("reserve").inc()
            services.tracker.store_lost()
            return None
        if self._claim is not None:
            services.tracker.reserved(self._claim, reply)
        if reply.refused_by is not None:
            self.reservation = None
            self._release_claims()
        return reply

    def _asked(
        self, job_id: str, prediction: Prediction, prefill: WorkerView, decode: WorkerView
    ) -> Reservation:
        assert self._claim is not None, "claimed first"
        ttl_s = self._services.limits.reservation_ttl_s
        return Reservation(
            reservation_id=job_id,
            owner=self._services.router_id,
            ttl_s=ttl_s,
            prefill_ttl_s=min(
                ttl_s, _PREFILL_TTL_FACTOR * prediction.ttft_s + _PREFILL_TTL_SLACK_S
            ),
            prefill_worker=prefill.worker_id,
            prefill_incarnation=prefill.incarnation,
            prefill_tokens=self._claim.prefill_tokens,
            prefill_requests_max=prefill.requests_max,
            decode_worker=decode.worker_id,
            decode_incarnation=decode.incarnation,
            decode_requests_max=decode.requests_max,
            link=self._claim.link,
            link_bytes=self._claim.link_bytes,
        )

    async def _ask(self, reservation: Reservation) -> ReserveReply:
        """Reserve within what is left of the request's wait for the store."""
        store = self._services.store
        if not self._store_waited_s:
            return await store.reserve(reservation)
        left_s = self._services.store_wait_s - self._store_waited_s
        # The next attempt waits anew: an attempt fails of other things than a slow store.
        self._store_waited_s = 0.0
        if left_s <= 0:
            raise StoreTimeout("the store has been waited for long enough")
        try:
            async with asyncio.timeout(left_s):
                return await store.reserve(reservation)
        except TimeoutError as error:
            raise StoreTimeout("the store did not answer within the rest of its time") from error

    def lead(self, hashes: tuple[BlockHash, ...], block_tokens: int, prefill_worker: str) -> None:
        """Compute a prefix that others may wait for."""
        self._lead = self._services.coalescing.lead(
            hashes, block_tokens=block_tokens, prefill_worker=prefill_worker
        )

    async def wait_for_prefix(self, incoming: Incoming) -> None:
        """Wait, within a bound, while another request computes a long part of this one's prefix."""
        services = self._services
        hits = services.hits(incoming.hashes, block_tokens=incoming.block_tokens)
        has_waited = await services.coalescing.wait(
            incoming.hashes,
            block_tokens=incoming.block_tokens,
            cached_tokens=resumable_tokens_max(hits),
            within_s=services.limits.coalesce_wait_s,
        )
        if has_waited:
            services.metrics.coalesced_total.inc()

    async def take_retry_place(self, within_s: float) -> bool:
        """A place for a further attempt."""
        self.give_back_retry_place()
        self._has_retry_place = await self._services.retry_budget.take(within_s)
        return self._has_retry_place

    # --- Giving back --------------------------------------------------------------------------

    def prefill_done(self) -> None:
        """The first token is there: prefill and link are used, and others may go on."""
        self._judge_link(is_ok=True)
        self._release_prefill_claim()
        self._end_lead(is_computed=True)
        self.give_back_retry_place()

    def with_verdict_on_link(self, event: life.Event) -> life.Event:
        """The event that ended an attempt, told to the view when it was the link that failed."""
        if isinstance(event, life.LinkDown | life.LinkStalled | life.PrefillTimedOut):
            self._judge_link(is_ok=False)
        return event

    def judge_copy(self, step: CopyStep | None, report: DecodeReport | None) -> None:
        """Tell the view how the copy of a prefix went, where it says something of a link."""
        if step is None or step.link is None or report is None:
            return
        prefill = report.prefill
        if prefill.copy_failure in _LINK_FAILURES:
            self._services.tracker.link_outcome(step.link, step.from_worker, is_ok=False)
        elif prefill.copied_bytes and not prefill.copy_failure:
            self._services.tracker.link_outcome(step.link, step.from_worker, is_ok=True)

    def _judge_link(self, *, is_ok: bool) -> None:
        claim = self._claim
        if claim is not None and claim.link is not None:
            self._services.tracker.link_outcome(claim.link, claim.prefill_worker, is_ok=is_ok)

    def give_back(self) -> None:
        """An attempt is over, and another one may follow."""
        self._release_claims()
        self.give_back_retry_place()
        if self.reservation is not None:
            self._services.recorder.release(self.reservation)
            self.reservation = None

    def finish(self) -> Reservation | None:
        """The request is over; its reservation, which is released with its record."""
        self._release_claims()
        self.give_back_retry_place()
        reservation, self.reservation = self.reservation, None
        return reservation

    def give_back_retry_place(self) -> None:
        """A further attempt is no more than a request now."""
        if self._has_retry_place:
            self._has_retry_place = False
            self._services.retry_budget.give_back()

    def _end_lead(self, *, is_computed: bool) -> None:
        if self._lead is not None:
            self._services.coalescing.over(self._lead, is_computed=is_computed)
            self._lead = None

    def _release_prefill_claim(self) -> None:
        if self._claim is not None and self._is_prefill_claimed:
            self._services.tracker.prefill_done(self._claim)
            self._is_prefill_claimed = False

    def _release_claims(self) -> None:
        self._end_lead(is_computed=False)
        self._release_prefill_claim()
        if self._claim is not None:
            self._services.tracker.decode_done(self._claim)
            self._claim = None


def _copy_link(placement: Placement, copy_from: WorkerView | None) -> str | None:
    """The link that a copy of a cached prefix crosses; None inside a datacenter, or without one."""
    if copy_from is None or copy_from.datacenter == placement.prefill_datacenter:
        return None
    return link_id(copy_from.datacenter, placement.prefill_datacenter)
