"""Admits requests, flies them within their deadline, and sees to it that every one ends once."""

from __future__ import annotations

import asyncio

from controlplane.domain.lifecycle import ClientGone, DeadlinePassed, RouterFault
from controlplane.errors import Draining, PrfaasError, Shed
from controlplane.observe.logs import get_logger
from controlplane.router.flight import Flight
from controlplane.router.incoming import Incoming
from controlplane.router.services import Services
from controlplane.router.sink import ClientSink

_log = get_logger()

#: What a shed client is asked to wait.
_SHED_RETRY_AFTER_S = 1.0


class Dispatcher:
    """The router's own loop over requests in flight."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._in_flight = 0
        self._sequence = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self.is_draining = False

    def __repr__(self) -> str:
        return f"<Dispatcher {self._in_flight} in flight>"

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
            Shed: Too many requests in flight.
            Draining: This router is leaving.
            asyncio.CancelledError: The client left; everything the request held is given back.
        """
        self._admit()
        self._sequence += 1
        flight = Flight(self._services, incoming, sink, sequence=self._sequence)
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
        finally:
            self._leave()
        return flight

    async def _fly(self, flight: Flight, incoming: Incoming) -> None:
        """Fly until the life is over or its time is."""
        left_s = incoming.deadline_s - self._services.clock()
        if left_s <= 0:
            # The timeout below would strike at the first wait, when work may have been started.
            flight.end(DeadlinePassed())
            return
        try:
            # A duration, because the loop's own clock may be another and ticks in milliseconds.
            async with asyncio.timeout(left_s):
                await flight.fly()
        except TimeoutError:
            flight.end(DeadlinePassed())

    async def drain(self, timeout_s: float) -> bool:
        """Take no new requests; true when all in flight have ended in time."""
        self.is_draining = True
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    def _admit(self) -> None:
        refused: PrfaasError | None = None
        if self.is_draining:
            refused = Draining("this router is leaving; another one can take it", retry_after_s=1)
        elif self._in_flight >= self._services.limits.requests_max:
            refused = Shed(
                f"{self._in_flight} requests are in flight, the limit of this router",
                retry_after_s=_SHED_RETRY_AFTER_S,
            )
        if refused is not None:
            raise refused
        self._in_flight += 1
        self._idle.clear()
        self._services.metrics.requests_in_flight.inc()

    def _leave(self) -> None:
        self._in_flight -= 1
        self._services.metrics.requests_in_flight.dec()
        if self._in_flight == 0:
            self._idle.set()


def _fault(flight: Flight, incoming: Incoming) -> None:
    """A bug: the log has its story, and what the request held is given back."""
    _log.exception("internal.error", request_id=incoming.request_id, story=flight.life.story)
    flight.end(RouterFault())
