"""Bugs of routers: claims, retries, ends."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from sim.bugs.plant import Patch, bug

import controlplane.router.flight
from controlplane.domain.lifecycle import table
from controlplane.domain.lifecycle.instructions import AbortDecode, AbortPrefill
from controlplane.router.coalescing import Coalescing
from controlplane.router.dispatcher import Dispatcher
from controlplane.router.documents import DocumentFeed
from controlplane.router.flight import Flight
from controlplane.router.holdings import Holdings
from controlplane.router.keys import KeyKeeper
from controlplane.router.quarantine import Quarantine
from controlplane.router.recorder import Recorder
from controlplane.router.retry_budget import RetryBudget
from controlplane.router.services import Services
from controlplane.router.view import ViewTracker


@bug("the reservation of a finished request is not released")
def forget_release(patch: Patch) -> None:
    def change(real: Any) -> Any:
        def add(self: Recorder, record: Any, reservation: Any) -> None:
            del reservation
            real(self, record, None)

        return add

    patch.wrap(Recorder, "add", change)


@bug("the reservation of an attempt that was given up is not released", "kill")
def forget_release_of_attempt(patch: Patch) -> None:
    patch.set(Recorder, "release", lambda self, reservation: None)


@bug("a reserve call that failed is taken for one that was not done", "store_lost_answer")
def forget_lost_reserve(patch: Patch) -> None:
    def change(real: Any) -> Any:
        async def reserve(self: Holdings, *args: Any) -> Any:
            reply = await real(self, *args)
            if reply is None:
                self.reservation = None
            return reply

        return reserve

    patch.wrap(Holdings, "reserve", change)


@bug("claims in the view are never given back")
def forget_claim(patch: Patch) -> None:
    patch.set(ViewTracker, "decode_done", lambda self, claim: None)


@bug("claims in the view are counted twice")
def claim_twice(patch: Patch) -> None:
    def change(real: Any) -> Any:
        def claim(self: ViewTracker, claim: Any) -> None:
            real(self, claim)
            real(self, claim)

        return claim

    patch.wrap(ViewTracker, "claim", change)


@bug("a link's claimed bytes stay claimed")
def link_claim_stays(patch: Patch) -> None:
    def change(real: Any) -> Any:
        def prefill_done(self: ViewTracker, claim: Any) -> None:
            real(self, replace(claim, link=None, link_bytes=0))

        return prefill_done

    patch.wrap(ViewTracker, "prefill_done", change)


@bug("further attempts run without a budget", "kill")
def retry_without_budget(patch: Patch) -> None:
    async def take(self: RetryBudget, within_s: float) -> bool:
        del within_s
        self._used += 1
        return True

    patch.set(RetryBudget, "take", take)


@bug("a place of the retry budget is not given back", "kill")
def retry_place_kept(patch: Patch) -> None:
    patch.set(Holdings, "give_back_retry_place", lambda self: None)


@bug("the worker that failed an attempt may get the next one", "kill")
def failed_worker_again(patch: Patch) -> None:
    def change(real: Any) -> Any:
        def again(life: Any, failed: Any, *args: Any, **options: Any) -> Any:
            del failed
            return real(life, (), *args, **options)

        return again

    patch.wrap(table, "_again", change)
    patch.set(ViewTracker, "outcome", lambda *_: None)


@bug("the decode worker is not told that the client has left", "client_leaves")
def no_abort_of_decode(patch: Patch) -> None:
    patch.set(Flight, "_close_stream", lambda self: None)


@bug("nothing is aborted at the end of a request", "client_leaves")
def no_abort_at_all(patch: Patch) -> None:
    def change(real: Any) -> Any:
        def perform(self: Flight, instruction: Any) -> Any:
            if isinstance(instruction, AbortDecode | AbortPrefill):
                return None
            return real(self, instruction)

        return perform

    patch.wrap(Flight, "_perform_at_once", change)


@bug("the router goes on after its client has left", "client_leaves")
def router_swallows_cancellation(patch: Patch) -> None:
    def change(real: Any) -> Any:
        async def serve(self: Dispatcher, incoming: Any, *rest: Any) -> Any:
            inner = asyncio.ensure_future(real(self, incoming, *rest))
            while not inner.done():
                try:
                    await asyncio.shield(inner)
                except asyncio.CancelledError:
                    continue
            return inner.result()

        return serve

    patch.wrap(Dispatcher, "_serve", change)


@bug("the deadline is not kept")
def deadline_not_kept(patch: Patch) -> None:
    def change(real: Any) -> Any:
        async def serve(self: Dispatcher, incoming: Any, *rest: Any) -> Any:
            later = replace(incoming, deadline_s=incoming.deadline_s + 60.0)
            return await real(self, later, *rest)

        return serve

    patch.wrap(Dispatcher, "_serve", change)


@bug("a stream that ends without a report counts as whole", "kill")
def end_without_report(patch: Patch) -> None:
    def change(real: Any) -> Any:
        async def relay(self: Flight) -> Any:
            event = await real(self)
            if type(event).__name__ == "DecodeWorkerLost":
                return controlplane.router.flight.life.StreamEnded()
            return event

        return relay

    patch.wrap(Flight, "_relay", change)


@bug("a request is recorded twice", "kill")
def finish_twice(patch: Patch) -> None:
    def change(real: Any) -> Any:
        def finished(self: Services, record: Any, reservation: Any) -> None:
            real(self, record, reservation)
            if len(record.attempts) > 1:
                real(self, record, None)

        return finished

    patch.wrap(Services, "finished", change)


@bug("requests that wait for a prefix are not told when it is given up", "client_leaves")
def lead_never_over(patch: Patch) -> None:
    def change(real: Any) -> Any:
        def over(self: Coalescing, lead: Any, *, is_computed: bool) -> None:
            if is_computed:
                real(self, lead, is_computed=is_computed)

        return over

    patch.wrap(Coalescing, "over", change)


@bug("nobody is quarantined", "poison")
def no_quarantine(patch: Patch) -> None:
    patch.set(Quarantine, "refuses", lambda self, digest: False)


@bug("an idempotency key holds nobody back")
def key_ignored(patch: Patch) -> None:
    def change(real: Any) -> Any:
        def claimed(self: KeyKeeper, key: Any, digest: str) -> Any:
            del key
            return real(self, None, digest)

        return claimed

    patch.wrap(KeyKeeper, "claimed", change)


@bug("an idempotency key is only known to the router that claimed it")
def key_not_shared(patch: Patch) -> None:
    async def refusal(self: KeyKeeper, key: str, digest: str) -> None:
        del self, key, digest

    patch.set(KeyKeeper, "_refusal", refusal)


@bug("a router that runs does not hear that another policy was published", "policy_switch")
def switch_not_heard(patch: Patch) -> None:
    patch.set(DocumentFeed, "published", lambda self, published: None)


@bug("a request is recorded with the policy that was live before", "policy_switch")
def wrong_policy_recorded(patch: Patch) -> None:
    firsts: dict[str, str] = {}

    def change(real: Any) -> Any:
        def decide(self: Services, features: Any) -> Any:
            first = firsts.setdefault(self.router_id, self.policy.name)
            attempt = real(self, features)
            return replace(attempt, policy=first, parameters={})

        return decide

    patch.wrap(Services, "decide", change)
