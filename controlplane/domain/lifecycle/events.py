"""What can happen to a request: one event for each thing that is treated differently."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class TurnCame:
    """Nobody computes this request's prefix any more, or it has waited long enough."""


@dataclass(frozen=True, slots=True)
class Placed:
    """The policy proposed a placement."""

    prefill_worker: str
    decode_worker: str


@dataclass(frozen=True, slots=True)
class NoPlacement:
    """The policy found no worker that can take the request."""


@dataclass(frozen=True, slots=True)
class Reserved:
    """The store granted the claim, or is away and nobody can tell (then workers refuse)."""


@dataclass(frozen=True, slots=True)
class ReservationRefused:
    """The store knows better than the view that was decided on: `worker_id` is full or gone."""

    worker_id: str


# --- Prefill ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PrefillAccepted:
    """The prefill worker answered with a KV location; the segment is filling."""


@dataclass(frozen=True, slots=True)
class PrefillRefused:
    """The prefill worker said no: full, draining, or another incarnation."""


@dataclass(frozen=True, slots=True)
class PrefillWorkerLost:
    """No connection to the prefill worker, or it broke before it answered."""


@dataclass(frozen=True, slots=True)
class PrefillTimedOut:
    """The prefill worker did not answer in time; it may compute nevertheless."""


# --- The way of the KV, as the decode worker tells of it --------------------------------------


@dataclass(frozen=True, slots=True)
class LinkDown:
    """No connection to the owner of the KV, or it broke."""


@dataclass(frozen=True, slots=True)
class LinkStalled:
    """The owner of the KV sent less than the minimum in its time."""


@dataclass(frozen=True, slots=True)
class KvChunkCorrupt:
    """A chunk's checksum, size or order did not match, twice."""


@dataclass(frozen=True, slots=True)
class LeaseExpired:
    """The owner no longer has this generation: the lease is over, or the process is another."""


@dataclass(frozen=True, slots=True)
class SegmentFailed:
    """The prefill that was to fill the segment failed or was aborted."""


# --- Decode -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DecodeRefused:
    """The decode worker said no: full, draining, or another incarnation."""


@dataclass(frozen=True, slots=True)
class DecodeWorkerLost:
    """The connection to the decode worker broke, or what came on it made no sense."""


@dataclass(frozen=True, slots=True)
class DecodeTimedOut:
    """The decode worker fell silent, or says that it works and makes no token."""


@dataclass(frozen=True, slots=True)
class EngineStalled:
    """The decode worker says itself that its engine hangs."""


@dataclass(frozen=True, slots=True)
class DecodeLeft:
    """The decode worker is leaving and hands its streams over."""


@dataclass(frozen=True, slots=True)
class FirstToken:
    """The first output of this attempt is there; from here on the client sees the stream."""

    #: The worker tells the tokens of its output, so that another one can go on with them.
    has_tokens: bool = True


@dataclass(frozen=True, slots=True)
class StreamEnded:
    """The decode worker's report arrived: the answer is complete."""


# --- Another attempt --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RetryGranted:
    """The retry budget has room for another attempt."""


@dataclass(frozen=True, slots=True)
class RetryDenied:
    """No further attempt: the budget was used up for too long, or the request is quarantined."""

    code: str


# --- Ends that can come at any time -----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ClientGone:
    """The client left, or stopped reading."""


@dataclass(frozen=True, slots=True)
class DeadlinePassed:
    """The request's time is over."""


@dataclass(frozen=True, slots=True)
class RouterLeft:
    """The router is stopping, and the time for its last requests is over."""


@dataclass(frozen=True, slots=True)
class RouterFault:
    """A bug in the router itself: the request must still end, once, and give everything back."""


Event: TypeAlias = (
    TurnCame
    | Placed
    | NoPlacement
    | Reserved
    | ReservationRefused
    | PrefillAccepted
    | PrefillRefused
    | PrefillWorkerLost
    | PrefillTimedOut
    | LinkDown
    | LinkStalled
    | KvChunkCorrupt
    | LeaseExpired
    | SegmentFailed
    | DecodeRefused
    | DecodeWorkerLost
    | DecodeTimedOut
    | EngineStalled
    | DecodeLeft
    | FirstToken
    | StreamEnded
    | RetryGranted
    | RetryDenied
    | ClientGone
    | DeadlinePassed
    | RouterLeft
    | RouterFault
)
