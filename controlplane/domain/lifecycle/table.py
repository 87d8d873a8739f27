"""
The life of a request as a pure table: `advance(life, event) -> (life, instructions)`.

The dispatcher runs each instruction; what it returns is the next event. So every race, retry and
cancellation is a unit test over a list of events, without a socket or a clock.

    admitted --Placed--> queued --Reserved--> prefilling --PrefillAccepted--> transferring
        ^                   |                     |                               |
        |                   v                     v                               v FirstToken
        +-- RetryGranted -- another attempt, without the failed worker <--+   decoding
        |                                                                 |       |
        +-- RetryGranted -- migrating: the output goes on elsewhere <-----+-------+
                                                                                  v StreamEnded
    rejected  no worker can take it          cancelled  the client left          done
    failed    attempts or time used up, or a stream broke that nobody can go on with
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from controlplane.domain.health import Outcome
from controlplane.domain.lifecycle.events import (
    ClientGone,
    DeadlinePassed,
    DecodeLeft,
    DecodeRefused,
    DecodeTimedOut,
    DecodeWorkerLost,
    EngineStalled,
    Event,
    FirstToken,
    KvChunkCorrupt,
    LeaseExpired,
    LinkDown,
    LinkStalled,
    NoPlacement,
    Placed,
    PrefillAccepted,
    PrefillRefused,
    PrefillTimedOut,
    PrefillWorkerLost,
    ReservationRefused,
    Reserved,
    RetryDenied,
    RetryGranted,
    RouterFault,
    RouterLeft,
    SegmentFailed,
    StreamEnded,
    TurnCame,
)
from controlplane.domain.lifecycle.instructions import (
    AbortDecode,
    AbortPrefill,
    AskRetry,
    AwaitTurn,
    Blame,
    Decide,
    Fail,
    Finish,
    ForgetOutput,
    GiveBack,
    Instruction,
    Judge,
    Relay,
    Reserve,
    StartDecode,
    StartPrefill,
)
from controlplane.domain.lifecycle.state import State


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a request may ask of the system; constant for its life."""

    #: Attempts after the first, >= 0; as many again after each migration.
    attempts_max: int
    #: How often its output may go on at another decode worker, >= 0.
    migrations_max: int = 0
    #: Its output is a function of its tokens so far, so another worker can go on with it.
    can_resume: bool = False
    #: The client sees output as it is made; a whole answer is seen at its end.
    is_stream: bool = True
    #: Its prefix is long enough to wait for another request that computes it.
    can_wait: bool = False


class Life(NamedTuple):
    """
    One request's state and what it holds; a value, replaced by each event.

    A tuple, because two are made for each event: `_replace` takes a fourth of the time of
    `dataclasses.replace`.
    """

    terms: Terms
    #: Further attempts that are left after this one.
    attempts_left: int
    migrations_left: int
    state: State = State.ADMITTED
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
    #: The tokens of the running attempt's output are known.
    has_tokens: bool = False
    #: There is output that a further attempt goes on with.
    has_output: bool = False
    #: Names of the events so far; what an operator reads first.
    story: tuple[str, ...] = ()


class IllegalEvent(AssertionError):
    """An event that cannot happen in this state: a bug, told with the request's story."""


_Step: TypeAlias = tuple[Life, tuple[Instruction, ...]]


def begin(terms: Terms) -> _Step:
    """
    A request that has just been admitted.

    Raises:
        ValueError: A count is negative; counting down from there would never end.
    """
    if terms.attempts_max < 0 or terms.migrations_max < 0:
        raise ValueError(f"attempts and migrations must be at least 0, not {terms}")
    life = Life(terms=terms, attempts_left=terms.attempts_max, migrations_left=terms.migrations_max)
    return life, (AwaitTurn() if terms.can_wait else Decide(()),)


def advance(life: Life, event: Event) -> _Step:
    """
    The next state and what to do. Pure.

    Raises:
        IllegalEvent: The event cannot happen in this state.
    """
    kind = type(event)
    life = life._replace(story=(*life.story, kind.__name__))
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
    RouterLeft: (State.FAILED, "draining"),
    RouterFault: (State.FAILED, "internal_error"),
}


# --- An attempt that goes well ----------------------------------------------------------------


def _turn_came(life: Life, _: Event) -> _Step:
    return life, (Decide(life.excluded),)


def _placed(life: Life, event: Event) -> _Step:
    assert isinstance(event, Placed)
    life = life._replace(
        state=State.QUEUED,
        prefill_worker=event.prefill_worker,
        decode_worker=event.decode_worker,
    )
    return life, (Reserve(),)


def _reserved(life: Life, _: Event) -> _Step:
    life = life._replace(state=State.PREFILLING, has_reservation=True, has_segment=True)
    return life, (StartPrefill(),)


def _prefill_accepted(life: Life, _: Event) -> _Step:
    return life._replace(state=State.TRANSFERRING, has_stream=True), (StartDecode(),)


def _first_token(life: Life, event: Event) -> _Step:
    assert isinstance(event, FirstToken)
    verdicts = (Judge(life.prefill_worker, "ok"), Judge(life.decode_worker, "ok"))
    life = life._replace(state=State.DECODING, has_tokens=event.has_tokens)
    return life, (*verdicts, Relay())


def _stream_ended(life: Life, _: Event) -> _Step:
    # Both sides have let go by themselves: the decoder released the segment when it had it all.
    life = life._replace(state=State.DONE, has_segment=False, has_stream=False)
    return life, (Finish(State.DONE, "ok"),)


#: Whether the request may be what ended its worker: never, if that has died, or by its own word.
_Blames: TypeAlias = Literal["nobody", "if_dead", "surely"]


# --- An attempt that fails --------------------------------------------------------------------


def _no_placement(life: Life, _: Event) -> _Step:
    if not life.prefill_worker:
        # A first attempt that finds nobody is refused; a later one is a request that we lost.
        return _end(life, State.REJECTED, "no_candidate")
    # Whoever is left has failed this request; after a pause they may be tried once more.
    return _again(life._replace(excluded=()), (), "no_candidate", after_pause=True)


def _reservation_refused(life: Life, event: Event) -> _Step:
    assert isinstance(event, ReservationRefused)
    return _again(life, (event.worker_id,), "no_candidate")


def _prefill_refused(life: Life, _: Event) -> _Step:
    verdict = Judge(life.prefill_worker, "refused")
    life = life._replace(has_segment=False)
    return _again(life, (life.prefill_worker,), "worker_refused", verdict)


def _prefill_fails(
    code: str, kind: Outcome | None = None, *, blames: _Blames = "nobody"
) -> Callable[[Life, Event], _Step]:
    """A step that leaves the prefill worker out and says what speaks against it."""

    def step(life: Life, _: Event) -> _Step:
        worker = life.prefill_worker
        return _again(life, (worker,), code, *_verdicts(worker, kind, blames=blames))

    return step


def _decode_fails(
    code: str, kind: Outcome | None = None, *, blames: _Blames = "nobody"
) -> Callable[[Life, Event], _Step]:
    """A step that leaves the decode worker out; output that is there goes on elsewhere."""

    def step(life: Life, _: Event) -> _Step:
        worker = life.decode_worker
        verdicts = _verdicts(worker, kind, blames=blames)
        if life.state is not State.DECODING:
            return _again(life, (worker,), code, *verdicts)
        if life.terms.can_resume and life.has_tokens:
            return _migrate(life, code, *verdicts)
        if not life.terms.is_stream:
            return _again(
                life._replace(has_output=False), (worker,), code, *verdicts, ForgetOutput()
            )
        # The client has seen tokens, and a second attempt could contradict them.
        ended, instructions = _end(life, State.FAILED, code)
        return ended, (*verdicts, *instructions)

    return step


def _migrate(life: Life, code: str, *verdicts: Instruction) -> _Step:
    """Go on with the output at another decode worker, with fresh attempts."""
    if life.migrations_left == 0:
        ended, instructions = _end(life, State.FAILED, code)
        return ended, (*verdicts, *instructions)
    life = life._replace(
        has_output=True,
        migrations_left=life.migrations_left - 1,
        # One more, because the next line counts this failure as one.
        attempts_left=life.terms.attempts_max + 1,
    )
    return _again(life, (life.decode_worker,), code, *verdicts)


def _verdicts(worker_id: str, kind: Outcome | None, *, blames: _Blames) -> tuple[Instruction, ...]:
    verdict = () if kind is None else (Judge(worker_id, kind),)
    if blames == "nobody":
        return verdict
    return (*verdict, Blame(worker_id, is_certain=blames == "surely"))


def _retry_granted(life: Life, _: Event) -> _Step:
    return life, (Decide(life.excluded),)


def _retry_denied(life: Life, event: Event) -> _Step:
    assert isinstance(event, RetryDenied)
    return _end(life, State.FAILED, event.code)


_Handler: TypeAlias = Callable[[Life, Event], _Step]

_DECODE_LOST = _decode_fails("worker_lost", "lost", blames="if_dead")
_DECODE_TIMED_OUT = _decode_fails("worker_timeout", "timeout")
_ENGINE_STALLED = _decode_fails("worker_timeout", "timeout", blames="surely")
_DECODE_LEFT = _decode_fails("worker_lost")

_TABLE: dict[tuple[State, type], _Handler] = {
    (State.ADMITTED, TurnCame): _turn_came,
    (State.ADMITTED, Placed): _placed,
    (State.ADMITTED, NoPlacement): _no_placement,
    (State.ADMITTED, RetryGranted): _retry_granted,
    (State.ADMITTED, RetryDenied): _retry_denied,
    (State.MIGRATING, Placed): _placed,
    (State.MIGRATING, NoPlacement): _no_placement,
    (State.MIGRATING, RetryGranted): _retry_granted,
    (State.MIGRATING, RetryDenied): _retry_denied,
    (State.QUEUED, Reserved): _reserved,
    (State.QUEUED, ReservationRefused): _reservation_refused,
    (State.PREFILLING, PrefillAccepted): _prefill_accepted,
    (State.PREFILLING, PrefillRefused): _prefill_refused,
    (State.PREFILLING, PrefillWorkerLost): _prefill_fails("worker_lost", "lost", blames="if_dead"),
    (State.PREFILLING, PrefillTimedOut): _prefill_fails("worker_timeout", "timeout"),
    (State.TRANSFERRING, FirstToken): _first_token,
    (State.TRANSFERRING, LinkDown): _prefill_fails("link_down", "lost", blames="if_dead"),
    (State.TRANSFERRING, LinkStalled): _prefill_fails("link_stalled", "stalled"),
    (State.TRANSFERRING, KvChunkCorrupt): _prefill_fails("chunk_corrupt", "corrupt"),
    (State.TRANSFERRING, LeaseExpired): _prefill_fails("segment_stale"),
    (State.TRANSFERRING, SegmentFailed): _prefill_fails("segment_failed"),
    (State.TRANSFERRING, DecodeRefused): _decode_fails("worker_refused", "refused"),
    (State.TRANSFERRING, DecodeWorkerLost): _DECODE_LOST,
    (State.TRANSFERRING, DecodeTimedOut): _DECODE_TIMED_OUT,
    (State.TRANSFERRING, EngineStalled): _ENGINE_STALLED,
    (State.TRANSFERRING, DecodeLeft): _DECODE_LEFT,
    (State.DECODING, StreamEnded): _stream_ended,
    (State.DECODING, DecodeWorkerLost): _DECODE_LOST,
    (State.DECODING, DecodeTimedOut): _DECODE_TIMED_OUT,
    (State.DECODING, EngineStalled): _ENGINE_STALLED,
    (State.DECODING, DecodeLeft): _DECODE_LEFT,
}


# --- Ends and new beginnings ------------------------------------------------------------------


def _release(life: Life) -> tuple[tuple[Instruction, ...], Life]:
    """What stops the running attempt at both workers."""
    instructions: list[Instruction] = []
    if life.has_stream:
        instructions.append(AbortDecode())
    if life.has_segment:
        instructions.append(AbortPrefill())
    return tuple(instructions), life._replace(has_segment=False, has_stream=False)


def _again(
    life: Life,
    failed: tuple[str, ...],
    code: str,
    *verdicts: Instruction,
    after_pause: bool = False,
) -> _Step:
    """Another attempt without the failed workers, or the end when none is left."""
    if life.attempts_left == 0:
        ended, instructions = _end(life, State.FAILED, code)
        return ended, (*verdicts, *instructions)
    aborts, life = _release(life)
    give_back: tuple[Instruction, ...] = (GiveBack(),) if life.has_reservation else ()
    life = life._replace(
        state=State.MIGRATING if life.has_output else State.ADMITTED,
        attempts_left=life.attempts_left - 1,
        excluded=(*life.excluded, *failed),
        has_reservation=False,
    )
    # Aborts first: they free what the failed attempt holds, verdicts may wait for an answer.
    return life, (*aborts, *give_back, *verdicts, AskRetry(code, after_pause=after_pause))


def _end(life: Life, state: State, code: str) -> _Step:
    """The end: stop both workers, tell a client that is still there, finish."""
    aborts, life = _release(life)
    fail: tuple[Instruction, ...] = () if state is State.CANCELLED else (Fail(code),)
    return life._replace(state=state), (*aborts, *fail, Finish(state, code))
