"""Admits requests, flies them within their deadline, and sees to it that every one ends once."""

from __future__ import annotations

import asyncio

from controlplane.domain.lifecycle import ClientGone, DeadlinePassed, RouterFault, RouterLeft
from controlplane.errors import Draining, RequestQuarantined
from controlplane.observe.logs import get_logger
from controlplane.router.admission import Admission
from controlplane.router.flight import Flight
from controlplane.router.incoming import Incoming
from controlplane.router.services import Services
from controlplane.router.sink import ClientSink

_log = get_logger()

#: For telling clients that their answer ends here; who does not read is not waited for.
_LAST_WORDS_S = 1.0


class Dispatcher:
    """The router's own loop over requests in flight."""

    def __init__(self, services: Services, admission: Admission) -> None:
        self._services = services
        self._admission = admission
        self._in_flight = 0
        self._sequence = 0
        self._idle = asyncio.Event()
        self._idle.set()
        #: The time limits of requests that have their place.
        self._limits: set[asyncio.Timeout] = set()
        self.is_draining = False
        self._has_left = False

    def __repr__(self) -> str:
        return f"<Dispatcher {self._in_flight} in flight>"

    @property
    def services(self) -> Services:
        """What its flights share."""
        return self._services

    @property
    def in_flight(self) -> int:
        """Requests being served."""
        return self._in_flight

    async def dispatch(self, incoming: Incoming, sink: ClientSink) -> Flight:
        """
        Serve one request to its end.

        Returns:
            The flight; its `error` is set when the answer has to be an error, and the sink has
            begun when there was an answer.

        Raises:
            Draining: This router is leaving.
            RequestQuarantined: This very request has ended workers.
            KeyInUse: A request with its idempotency key still runs.
            KeyMismatch: Its idempotency key stands for another request.
            Shed: Too many requests wait already, or this one has waited for too long.
            DeadlineExceeded: Its time was over while it waited.
            asyncio.CancelledError: The client left; everything the request held is given back.
        """
        self._check_welcome(incoming)
        if self._services.traffic is not None:
            self._services.traffic.arrived()
        self._begin()
        try:
            if incoming.idempotency_key is None:
                # As most have none: claiming nothing would take as long as a place.
                return await self._serve_in_turn(incoming, sink, 0.0)
            keys = self._services.keys
            async with keys.claimed(incoming.idempotency_key, incoming.digest) as store_waited_s:
                return await self._serve_in_turn(incoming, sink, store_waited_s)
        finally:
            self._end()

    async def _serve_in_turn(
        self, incoming: Incoming, sink: ClientSink, store_waited_s: float
    ) -> Flight:
        """Wait for a place, and use it."""
        await self._admission.enter(incoming.tenant, deadline_s=incoming.deadline_s)
        try:
            return await self._serve(incoming, sink, store_waited_s)
        finally:
            self._admission.leave()

    async def _serve(self, incoming: Incoming, sink: ClientSink, store_waited_s: float) -> Flight:
        """Fly a request that has its place."""
        self._sequence += 1
        flight = Flight(
            self._services,
            incoming,
            sink,
            sequence=self._sequence,
            store_waited_s=store_waited_s,
        )
        try:
            await self._fly(flight, incoming)
            await flight.tell()
        except asyncio.CancelledError:
            flight.end(ClientGone())
            raise
        except Exception:  # noqa: BLE001 - the edge of the router: a bug ends one request, never the process
            _fault(flight, incoming)
            try:
                await flight.tell()
            except Exception:  # noqa: BLE001 - the same edge: the bug is where it should be told
                _fault(flight, incoming)
        return flight

    async def _fly(self, flight: Flight, incoming: Incoming) -> None:
        """Fly until the life is over or its time is."""
        left_s = incoming.deadline_s - self._services.clock()
        if left_s <= 0 or self._has_left:
            # The timeout below would strike at the first wait, when work may have been started. And
            # a place that came free because others were ended with the drain came too late.
            flight.end(self._end_of_time())
            return
        # A duration, because the loop's own clock may be another and ticks in milliseconds.
        limit = asyncio.timeout(left_s)
        self._limits.add(limit)
        try:
            async with limit:
                await flight.fly()
        except TimeoutError:
            if not limit.expired():
                # Not this limit's: something inside has let its own one escape, which is a bug.
                raise
            flight.end(self._end_of_time())
        finally:
            self._limits.discard(limit)

    def _end_of_time(self) -> DeadlinePassed | RouterLeft:
        """What has ended the time of a request: its own deadline, or that of this router."""
        return RouterLeft() if self._has_left else DeadlinePassed()

    async def drain(self, timeout_s: float) -> bool:
        """
        Take no new requests; true when all in flight have ended in time.

        Those that have not are ended then, so that each client is told why its answer stops.
        """
        self.is_draining = True
        if await self._is_idle(timeout_s):
            return True
        self._has_left = True
        now_s = asyncio.get_running_loop().time()
        for limit in tuple(self._limits):
            if not limit.expired():
                limit.reschedule(now_s)
        await self._is_idle(_LAST_WORDS_S)
        return False

    async def _is_idle(self, within_s: float) -> bool:
        try:
            async with asyncio.timeout(within_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    def _check_welcome(self, incoming: Incoming) -> None:
        if self.is_draining:
            raise Draining("this router is leaving; another one can take it", retry_after_s=1)
        if self._services.quarantine.refuses(incoming.digest):
            self._services.metrics.quarantined_total.inc()
            raise RequestQuarantined(
                "this request has ended workers and is not tried again for a while; report it "
                "with its request id instead of sending it again"
            )

    def _begin(self) -> None:
        """Another request is in flight."""
        self._in_flight += 1
        self._idle.clear()
        self._services.metrics.requests_in_flight.inc()

    def _end(self) -> None:
        """One request less is."""
        self._in_flight -= 1
        self._services.metrics.requests_in_flight.dec()
        if self._in_flight == 0:
            self._idle.set()


def _fault(flight: Flight, incoming: Incoming) -> None:
    """A bug: the log has its story, and what the request held is given back."""
    _log.exception("internal.error", request_id=incoming.request_id, story=flight.life.story)
    flight.end(RouterFault())
