"""
The life of a request as a pure table: `advance(life, event) -> (life, instructions)`.

The dispatcher runs each instruction; what it returns is the next event. So every race, retry and
cancellation is a unit test over a list of events, without a socket or a clock.

    admitted --Placed--> queued --Reserved--> prefilling --PrefillAccepted--> transferring
        ^                   |                     |                               |
        |                   v                     v                               v FirstToken
        +----- another attempt, with the failed worker left out <-----+       decoding
                                                                                  |
    rejected  no worker can take it          cancelled  the client left           v StreamEnded
    failed    attempts or time used up, or a stream broke after its first token   done
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from typing import TypeAlias


class State(Enum):
    """Where a request is."""

    ADMITTED = "admitted"
    QUEUED = "queued"
    PREFILLING = "prefilling"
    TRANSFERRING = "transferring"
    DECODING = "decoding"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    REJECTED = "rejected"

    @property
    def is_terminal(self) -> bool:
        """Nothing comes after it."""
        return self in _TERMINAL


_TERMINAL = frozenset({State.DONE, State.FAILED, State.CANCELLED, State.REJECTED})


# --- Events: what has happened ----------------------------------------------------------------


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


@dataclass(frozen=True, slots=True)
class PrefillAccepted:
    """The prefill worker answered with a KV location; the segment is filling."""


@dataclass(frozen=True, slots=True)
class PrefillRefused:
    """The prefill worker said no: full, draining, or another incarnation."""


@dataclass(frozen=True, slots=True)
class PrefillWorkerLost:
    """No connection to the prefill worker, or no answer in time."""


@dataclass(frozen=True, slots=True)
class KvUnavailable:
    """The decode worker could not get the KV; `code` is one of the transfer errors."""

    code: str


@dataclass(frozen=True, slots=True)
class DecodeRefused:
    """The decode worker said no: full, draining, or another incarnation."""


@dataclass(frozen=True, slots=True)
class DecodeWorkerLost:
    """The connection to the decode worker broke, or it fell silent."""


@dataclass(frozen=True, slots=True)
class FirstToken:
    """The first output bytes are there; from here on the client sees the stream."""


@dataclass(frozen=True, slots=True)
class StreamEnded:
    """The decode worker's report arrived: the answer is complete."""


@dataclass(frozen=True, slots=True)
class ClientGone:
    """The client left, or stopped reading."""


@dataclass(frozen=True, slots=True)
class DeadlinePassed:
    """The request's time is over."""


@dataclass(frozen=True, slots=True)
class RouterFault:
    """A bug in the router itself: the request must still end, once, and give everything back."""


Event: TypeAlias = (
    Placed
    | NoPlacement
    | Reserved
    | ReservationRefused
    | PrefillAccepted
    | PrefillRefused
    | PrefillWorkerLost
    | KvUnavailable
    | DecodeRefused
    | DecodeWorkerLost
    | FirstToken
    | StreamEnded
    | ClientGone
    | DeadlinePassed
    | RouterFault
)


# --- Instructions: what to do next ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Decide:
    """Ask the policy, without the workers that have failed this request."""

    excluded: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Reserve:
    """Claim capacity for the placement."""


@dataclass(frozen=True, slots=True)
class StartPrefill:
    """Send the prefill job."""


@dataclass(frozen=True, slots=True)
class StartDecode:
    """Send the decode job with the KV location and wait for the first token."""


@dataclass(frozen=True, slots=True)
class Relay:
    """Copy the stream to the client until it ends."""


@dataclass(frozen=True, slots=True)
class AbortDecode:
    """Close the decode worker's stream: it stops and frees its KV."""


@dataclass(frozen=True, slots=True)
class AbortPrefill:
    """Tell the prefill worker to stop and free the segment."""


@dataclass(frozen=True, slots=True)
class GiveBack:
    """Release the reservation of an attempt that is over; the last one goes with `Finish`."""


@dataclass(frozen=True, slots=True)
class Suspect:
    """Give a worker no new work for a while: it may be gone."""

    worker_id: str


@dataclass(frozen=True, slots=True)
class Fail:
    """Tell the client: a status before the first token, an error event after it."""

    code: str


@dataclass(frozen=True, slots=True)
class Finish:
    """Release what is held and complete the decision record. Exactly once, and last."""

    state: State
    code: str


Instruction: TypeAlias = (
    Decide
    | Reserve
    | StartPrefill
    | StartDecode
    | Relay
    | AbortDecode
    | AbortPrefill
    | GiveBack
    | Suspect
    | Fail
    | Finish
)


# --- The table --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """One request's state and what it holds; a value, replaced by each event."""

    state: State = State.ADMITTED
    #: Further attempts that are left after this one.
    attempts_left: int
    #: Workers that have failed this request.
    excluded: tuple[str, ...] = ()
    prefill_worker: str = ""
    decode_worker: str = ""
    #: A segment may be filling, or filled, at the prefill worker: from sending the job on, because
    #: it may have arrived although its answer did not, until the worker says no.
    has_segment: bool = False
    #: A decode job was sent.
    has_stream: bool = False
    #: Capacity is claimed.
    has_reservation: bool = False
    #: Names of the events so far; what an operator reads first.
    story: tuple[str, ...] = ()


class IllegalEvent(AssertionError):
    """An event that cannot happen in this state: a bug, told with the request's story."""


def begin(attempts_max: int) -> tuple[Life, tuple[Instruction, ...]]:
    """
    A request that has just been admitted.

    Args:
        attempts_max: Attempts after the first, >= 0.

    Raises:
        ValueError: `attempts_max` is negative; counting down from there would never end.
    """
    if attempts_max < 0:
        raise ValueError(f"attempts_max must be at least 0, not {attempts_max}")
    return Life(attempts_left=attempts_max), (Decide(()),)


_Step: TypeAlias = tuple[Life, tuple[Instruction, ...]]


def advance(life: Life, event: Event) -> _Step:
    """
    The next state and what to do. Pure.

    Raises:
        IllegalEvent: The event cannot happen in this state.
    """
    kind = type(event)
    life = replace(life, story=(*life.story, kind.__name__))
    if not life.state.is_terminal:
        if kind in _ENDS:
            state, code = _ENDS[kind]
            return _end(life, state, code)
        handler = _TABLE.get((life.state, kind))
        if handler is not None:
            return handler(life, event)
    raise IllegalEvent(f"{kind.__name__} in state {life.state.value}; story: {life.story}")


#: Events that end a request in any state.
_ENDS: dict[type, tuple[State, str]] = {
    ClientGone: (State.CANCELLED, "client_gone"),
    DeadlinePassed: (State.FAILED, "deadline_exceeded"),
    RouterFault: (State.FAILED, "internal_error"),
}


def _placed(life: Life, event: Event) -> _Step:
    assert isinstance(event, Placed)
    life = replace(
        life,
        state=State.QUEUED,
        prefill_worker=event.prefill_worker,
        decode_worker=event.decode_worker,
    )
    return life, (Reserve(),)


def _no_placement(life: Life, _: Event) -> _Step:
    # A first attempt that finds nobody is refused; a later one is a request that we lost.
    if life.excluded:
        return _end(life, State.FAILED, "no_candidate")
    return _end(life, State.REJECTED, "no_candidate")


def _reserved(life: Life, _: Event) -> _Step:
    life = replace(life, state=State.PREFILLING, has_reservation=True, has_segment=True)
    return life, (StartPrefill(),)


def _reservation_refused(life: Life, event: Event) -> _Step:
    assert isinstance(event, ReservationRefused)
    return _again(life, (event.worker_id,), "no_candidate")


def _prefill_accepted(life: Life, _: Event) -> _Step:
    return replace(life, state=State.TRANSFERRING, has_stream=True), (StartDecode(),)


def _prefill_refused(life: Life, _: Event) -> _Step:
    life = replace(life, has_segment=False)
    return _again(life, (life.prefill_worker,), "worker_refused")


def _prefill_lost(life: Life, _: Event) -> _Step:
    return _again(life, (life.prefill_worker,), "worker_lost", suspect=life.prefill_worker)


#: Transfer errors that speak against the owner of the KV, not against this transfer alone.
_OWNER_LOST = frozenset({"link_down", "link_stalled"})


def _kv_unavailable(life: Life, event: Event) -> _Step:
    assert isinstance(event, KvUnavailable)
    suspect = life.prefill_worker if event.code in _OWNER_LOST else None
    return _again(life, (life.prefill_worker,), event.code, suspect=suspect)


def _decode_refused(life: Life, _: Event) -> _Step:
    return _again(life, (life.decode_worker,), "worker_refused")


def _decode_lost(life: Life, _: Event) -> _Step:
    return _again(life, (life.decode_worker,), "worker_lost", suspect=life.decode_worker)


def _first_token(life: Life, _: Event) -> _Step:
    return replace(life, state=State.DECODING), (Relay(),)


def _stream_ended(life: Life, _: Event) -> _Step:
    # Both sides have let go by themselves: the decoder released the segment when it had it all.
    life = replace(life, state=State.DONE, has_segment=False, has_stream=False)
    return life, (Finish(State.DONE, "ok"),)


def _broken_stream(life: Life, _: Event) -> _Step:
    # The client has seen tokens, so a second attempt could contradict them.
    step, instructions = _end(life, State.FAILED, "worker_lost")
    return step, (Suspect(life.decode_worker), *instructions)


_TABLE: dict[tuple[State, type], Callable[[Life, Event], _Step]] = {
    (State.ADMITTED, Placed): _placed,
    (State.ADMITTED, NoPlacement): _no_placement,
    (State.QUEUED, Reserved): _reserved,
    (State.QUEUED, ReservationRefused): _reservation_refused,
    (State.PREFILLING, PrefillAccepted): _prefill_accepted,
    (State.PREFILLING, PrefillRefused): _prefill_refused,
    (State.PREFILLING, PrefillWorkerLost): _prefill_lost,
    (State.TRANSFERRING, FirstToken): _first_token,
    (State.TRANSFERRING, KvUnavailable): _kv_unavailable,
    (State.TRANSFERRING, DecodeRefused): _decode_refused,
    (State.TRANSFERRING, DecodeWorkerLost): _decode_lost,
    (State.DECODING, StreamEnded): _stream_ended,
    (State.DECODING, DecodeWorkerLost): _broken_stream,
}


def _release(life: Life) -> tuple[tuple[Instruction, ...], Life]:
    """What stops the running attempt at both workers."""
    instructions: list[Instruction] = []
    if life.has_stream:
        instructions.append(AbortDecode())
    if life.has_segment:
        instructions.append(AbortPrefill())
    return tuple(instructions), replace(life, has_segment=False, has_stream=False)


def _again(life: Life, failed: tuple[str, ...], code: str, *, suspect: str | None = None) -> _Step:
    """Another attempt without the failed workers, or the end when none is left."""
    suspicion: tuple[Instruction, ...] = () if suspect is None else (Suspect(suspect),)
    if life.attempts_left == 0:
        ended, instructions = _end(life, State.FAILED, code)
        return ended, (*suspicion, *instructions)
    aborts, life = _release(life)
    give_back: tuple[Instruction, ...] = (GiveBack(),) if life.has_reservation else ()
    life = replace(
        life,
        state=State.ADMITTED,
        attempts_left=life.attempts_left - 1,
        excluded=(*life.excluded, *failed),
        has_reservation=False,
    )
    return life, (*suspicion, *aborts, *give_back, Decide(life.excluded))


def _end(life: Life, state: State, code: str) -> _Step:
    """The end: stop both workers, tell a client that is still there, finish."""
    aborts, life = _release(life)
    fail: tuple[Instruction, ...] = () if state is State.CANCELLED else (Fail(code),)
    return replace(life, state=state), (*aborts, *fail, Finish(state, code))
