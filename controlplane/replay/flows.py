"""
A link that transfers share: each gets an equal part, and none more than its source makes.

Fluid and event-driven: between two events all rates are constant. A transfer's attention KV becomes
ready at the rate of its prefill, its linear state when the prefill ends; what is ready and not sent
is sent at whatever share of the link it gets (max-min fairness).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from workers.kv.traffic import LinkTraffic

_BITS: Final = 8
#: Bytes that are taken for none: a hundredth of a bit, far above rounding.
_NOTHING: Final = 1e-3
#: Work left for less than this is over now: timers of a loop are no finer.
_SOON_S: Final = 1e-7


class Receiver:
    """What one worker counts of a link: bytes, and the time in which some were on their way."""

    __slots__ = ("_bytes", "_part", "_traffic")

    def __init__(self, traffic: LinkTraffic) -> None:
        self._traffic = traffic
        self._bytes = 0.0
        #: Of the span of time that passes now, over all its transfers.
        self._part = 0.0

    def took(self, sent: float, part: float) -> None:
        """One of its transfers brought so much, with bytes on their way for that part of the time."""
        self._bytes += sent
        self._part += part

    def passed(self, seconds: float) -> None:
        """All its transfers have been asked: count the time."""
        if self._part:
            self._traffic.busy_s_total += min(1.0, self._part) * seconds
            self._traffic.arrived_bytes_total = int(self._bytes)
            self._part = 0.0


class Flow:
    """One transfer over a link."""

    __slots__ = (
        "_attention", "_done", "_link", "_producing", "_rate", "_ready", "_sent", "_stalled_s",
        "_total", "is_over", "moved_bytes", "moving_s", "receiver",
    )  # fmt: skip

    def __init__(
        self,
        link: SharedLink,
        total_bytes: float,
        receiver: Receiver,
        done: Callable[[bool], None],
    ) -> None:
        self._link = link
        self._total = total_bytes
        self.receiver = receiver
        self._attention = 0.0
        self._ready = 0.0
        self._sent = 0.0
        #: Bytes per second that become ready.
        self._producing = 0.0
        #: Bytes per second that are sent, until the next event.
        self._rate = 0.0
        self._done = done
        self._stalled_s = 0.0
        self.is_over = False
        #: While it was not waiting for its source: what a receiver measures goodput of.
        self.moved_bytes = 0.0
        self.moving_s = 0.0

    def __repr__(self) -> str:
        return f"<Flow {self._sent:.0f} of {self._total:.0f} bytes>"

    @property
    def sent_bytes(self) -> float:
        """Bytes that have crossed the link."""
        return self._sent

    def produce(self, ready_bytes: float, more_bytes: float, within_s: float) -> None:
        """
        The prefill begins.

        Args:
            ready_bytes: There at once, from a prefix cache.
            more_bytes: Made evenly...
            within_s: ...in so many seconds.
        """
        if self.is_over:
            return
        self._link.catch_up()
        self._link.carry(self)
        self._ready += ready_bytes
        self._attention = self._ready + more_bytes
        self._producing = more_bytes / within_s if within_s > 0 else 0.0
        self._link.share_anew()

    def finish(self) -> None:
        """The prefill has ended: all the rest is ready."""
        if self.is_over:
            return
        self._link.catch_up()
        self._link.carry(self)
        self._producing = 0.0
        self._ready = self._total
        self._link.share_anew()

    def cancel(self) -> None:
        """Nobody wants it any more."""
        if not self.is_over:
            self._link.catch_up()
            self._link.drop(self)
            self._link.share_anew()

    # --- For its link -------------------------------------------------------------------------

    def pass_time(self, seconds: float) -> float:
        """Let time pass at the present rate; bytes that were sent."""
        made = self._producing * seconds
        sent = self._rate * seconds
        if self._ready - self._sent > _NOTHING or (made and self._rate < self._producing):
            self.moved_bytes += sent
            self.moving_s += seconds
            self._stalled_s = 0.0 if sent else self._stalled_s + seconds
            self.receiver.took(sent, 1.0)
        elif sent:
            # It waits for its source most of the time, and takes the whole link between.
            self.receiver.took(sent, self._rate / self._link.bytes_per_s)
        if made:
            self._ready = min(self._attention, self._ready + made)
        self._sent = min(self._ready, self._sent + sent)
        return sent

    @property
    def limit(self) -> float:
        """Bytes per second it can use now; infinite with a backlog."""
        return float("inf") if self._ready - self._sent > _NOTHING else self._producing

    @property
    def stalled_s(self) -> float:
        """Seconds since it last moved although it could."""
        return self._stalled_s

    def give(self, rate: float) -> float:
        """
        Take a share of the link.

        Returns:
            Seconds until something of it changes by itself.
        """
        self._rate = rate
        backlog = self._ready - self._sent
        if rate <= 0:
            return float("inf")
        if self._producing > 0:
            gain = rate - self._producing
            return backlog / gain if backlog > _NOTHING and gain > 0 else float("inf")
        return backlog / rate

    @property
    def is_complete(self) -> bool:
        """All bytes are there."""
        return self._total - self._sent <= _NOTHING + self._rate * _SOON_S

    def end(self, *, is_ok: bool) -> None:
        """Tell whoever waits."""
        self.is_over = True
        self._done(is_ok)


class SharedLink:
    """One directed link of a fleet; see the module."""

    def __init__(
        self,
        capacity_bps: float,
        *,
        rtt_s: float,
        stall_timeout_s: float,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """
        An idle link.

        Args:
            capacity_bps: > 0.
            rtt_s: Round trip, >= 0.
            stall_timeout_s: A transfer that moves nothing for so long fails.
            loop: Its time and timers.
        """
        self.capacity_bps = capacity_bps
        self.rtt_s = rtt_s
        self._stall_timeout_s = stall_timeout_s
        self._loop = loop
        self._flows: dict[Flow, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._at_s = loop.time()
        #: Bytes that have crossed it, of transfers that ended well or not.
        self.bytes_total = 0.0
        #: Bits it could have carried.
        self.capacity_bits = 0.0

    def __repr__(self) -> str:
        return f"<SharedLink {self.capacity_bps / 1e9:g} Gbit/s, {len(self._flows)} flows>"

    @property
    def bytes_per_s(self) -> float:
        """Its capacity."""
        return self.capacity_bps / _BITS

    def open(self, total_bytes: float, receiver: Receiver, done: Callable[[bool], None]) -> Flow:
        """
        A transfer whose source has made nothing yet.

        Args:
            total_bytes: Attention and state.
            receiver: Counts what comes.
            done: Called once, with whether all bytes have arrived.
        """
        return Flow(self, total_bytes, receiver, done)

    def carry(self, flow: Flow) -> None:
        """A transfer has something to send from now on."""
        self._flows[flow] = None

    def set_capacity(self, capacity_bps: float) -> None:
        """From now on it is faster or slower; 0 is an outage."""
        self.catch_up()
        self.capacity_bps = capacity_bps
        self.share_anew()

    @property
    def flows(self) -> int:
        """Transfers whose prefill has begun."""
        return len(self._flows)

    def catch_up(self) -> None:
        """Let the time since the last event pass."""
        seconds = self._loop.time() - self._at_s
        if seconds <= 0:
            return
        self._at_s += seconds
        self.capacity_bits += self.capacity_bps * seconds
        for flow in self._flows:
            self.bytes_total += flow.pass_time(seconds)
        for flow in self._flows:
            flow.receiver.passed(seconds)

    def drop(self, flow: Flow) -> None:
        """Forget a transfer without telling anybody."""
        flow.is_over = True
        self._flows.pop(flow, None)

    def share_anew(self) -> None:
        """End what is complete, share the capacity among the rest, and wait for the next event."""
        for flow in [flow for flow in self._flows if flow.is_complete]:
            del self._flows[flow]
            flow.end(is_ok=True)
        self._fail_stalled()
        next_s = self._give_shares()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if next_s < float("inf"):
            self._timer = self._loop.call_later(max(next_s, _SOON_S), self._turn)

    def _give_shares(self) -> float:
        left = self.capacity_bps / _BITS
        next_s = float("inf")
        wanting = sorted(
            ((flow.limit, number, flow) for number, flow in enumerate(self._flows) if flow.limit),
        )
        for place, (limit, _, flow) in enumerate(wanting):
            share = min(limit, left / (len(wanting) - place))
            left -= share
            next_s = min(next_s, flow.give(share))
        if self.capacity_bps <= 0 and wanting:
            next_s = min(self._stall_timeout_s - flow.stalled_s for _, _, flow in wanting)
        return next_s

    def _fail_stalled(self) -> None:
        if self.capacity_bps > 0:
            return
        limit_s = self._stall_timeout_s - _SOON_S
        for flow in [flow for flow in self._flows if flow.stalled_s >= limit_s]:
            del self._flows[flow]
            flow.end(is_ok=False)

    def _turn(self) -> None:
        self._timer = None
        self.catch_up()
        self.share_anew()
