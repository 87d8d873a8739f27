"""Each row of the table: what an event leads to, and what is asked for."""

from __future__ import annotations

from typing import Any

import pytest

from controlplane.domain.lifecycle import (
    AbortDecode,
    AbortPrefill,
    AskRetry,
    AwaitTurn,
    Blame,
    ClientGone,
    DeadlinePassed,
    Decide,
    DecodeLeft,
    DecodeRefused,
    DecodeTimedOut,
    DecodeWorkerLost,
    EngineStalled,
    Event,
    Fail,
    Finish,
    FirstToken,
    ForgetOutput,
    GiveBack,
    IllegalEvent,
    Instruction,
    Judge,
    KvChunkCorrupt,
    LeaseExpired,
    Life,
    LinkDown,
    LinkStalled,
    NoPlacement,
    Placed,
    PrefillAccepted,
    PrefillRefused,
    PrefillTimedOut,
    PrefillWorkerLost,
    Relay,
    ReservationRefused,
    Reserve,
    Reserved,
    RetryDenied,
    RetryGranted,
    RouterFault,
    RouterLeft,
    SegmentFailed,
    StartDecode,
    StartPrefill,
    State,
    StreamEnded,
    Terms,
    TurnCame,
    advance,
    begin,
)

PLACED = Placed("p1", "d1")
ACCEPTED = (PLACED, Reserved(), PrefillAccepted())
DECODING = (*ACCEPTED, FirstToken())
AGAIN = (RetryGranted(), Placed("p2", "d2"), Reserved(), PrefillAccepted())


def live(*events: Event, **terms: Any) -> tuple[Life, tuple[Instruction, ...]]:
    """The life after these events, and what the last of them asks for."""
    life, instructions = begin(Terms(**({"attempts_max": 1} | terms)))
    for event in events:
        life, instructions = advance(life, event)
    return life, instructions


#: How each state is reached by a request that can be resumed.
UP_TO: dict[State, tuple[Event, ...]] = {
    State.ADMITTED: (),
    State.QUEUED: (PLACED,),
    State.PREFILLING: (PLACED, Reserved()),
    State.TRANSFERRING: ACCEPTED,
    State.DECODING: DECODING,
    State.MIGRATING: (*DECODING, DecodeWorkerLost()),
    State.DONE: (*DECODING, StreamEnded()),
    State.CANCELLED: (ClientGone(),),
    State.FAILED: (RouterFault(),),
    State.REJECTED: (NoPlacement(),),
}
NOT_TERMINAL = [state for state in State if not state.is_terminal]
RESUMABLE: dict[str, Any] = {"can_resume": True, "migrations_max": 1}


def test_every_state_can_be_reached() -> None:
    reached = {live(*events, **RESUMABLE)[0].state: events for events in UP_TO.values()}

    assert reached == UP_TO
    assert set(UP_TO) == set(State)


# --- The beginning ----------------------------------------------------------------------------


def test_a_life_begins_with_a_decision_among_all_workers() -> None:
    terms = Terms(attempts_max=2, migrations_max=3)

    life, instructions = begin(terms)

    assert life == Life(terms=terms, attempts_left=2, migrations_left=3)
    assert life.state is State.ADMITTED
    assert instructions == (Decide(()),)


def test_a_request_with_a_long_prefix_first_waits_for_its_turn() -> None:
    life, instructions = begin(Terms(attempts_max=0, can_wait=True))
    after, asked = advance(life, TurnCame())

    assert instructions == (AwaitTurn(),)
    assert after.state is State.ADMITTED
    assert asked == (Decide(()),)


@pytest.mark.parametrize(
    "terms", [{"attempts_max": -1}, {"attempts_max": 0, "migrations_max": -1}], ids=str
)
def test_a_life_cannot_begin_with_less_than_nothing(terms: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"at least 0.*-1"):
        begin(Terms(**terms))


def test_nothing_is_too_few_further_attempts_to_begin() -> None:
    life, _ = begin(Terms(attempts_max=0, migrations_max=0))

    assert (life.attempts_left, life.migrations_left) == (0, 0)


# --- An attempt that goes well ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "state", "instructions"),
    [
        pytest.param(PLACED, State.QUEUED, (Reserve(),), id="placed"),
        pytest.param(Reserved(), State.PREFILLING, (StartPrefill(),), id="reserved"),
        pytest.param(PrefillAccepted(), State.TRANSFERRING, (StartDecode(),), id="accepted"),
        pytest.param(
            FirstToken(),
            State.DECODING,
            (Judge("p1", "ok"), Judge("d1", "ok"), Relay()),
            id="first token",
        ),
        pytest.param(StreamEnded(), State.DONE, (Finish(State.DONE, "ok"),), id="ended"),
    ],
)
def test_a_request_that_meets_no_trouble_goes_straight_on(
    event: Event, state: State, instructions: tuple[Instruction, ...]
) -> None:
    happy = UP_TO[State.DONE]

    life, asked = live(*happy[: happy.index(event) + 1])

    assert life.state is state
    assert asked == instructions


def test_a_placement_is_remembered() -> None:
    life, _ = live(PLACED)

    assert (life.prefill_worker, life.decode_worker) == ("p1", "d1")


def test_a_complete_stream_holds_nothing_but_its_reservation() -> None:
    life, _ = live(*UP_TO[State.DONE])

    assert (life.has_segment, life.has_stream, life.has_reservation) == (False, False, True)


# --- An attempt that fails before its first token ---------------------------------------------

FAILURES = [
    # state, event, what stops it, verdicts, who is left out, code
    pytest.param(
        *(State.QUEUED, ReservationRefused("d1"), (), (), "d1", "no_candidate"),
        id="reservation refused",
    ),
    pytest.param(
        *(State.PREFILLING, PrefillRefused(), ()),
        *((Judge("p1", "refused"),), "p1", "worker_refused"),
        id="prefill refused: nothing to abort",
    ),
    pytest.param(
        *(State.PREFILLING, PrefillWorkerLost(), (AbortPrefill(),)),
        *((Judge("p1", "lost"), Blame("p1")), "p1", "worker_lost"),
        id="prefill lost: the job may have arrived",
    ),
    pytest.param(
        *(State.PREFILLING, PrefillTimedOut(), (AbortPrefill(),)),
        *((Judge("p1", "timeout"),), "p1", "worker_timeout"),
        id="prefill silent: it may compute, and has not died",
    ),
    pytest.param(
        *(State.TRANSFERRING, LinkDown(), (AbortDecode(), AbortPrefill())),
        *((Judge("p1", "lost"), Blame("p1")), "p1", "link_down"),
        id="link down",
    ),
    pytest.param(
        *(State.TRANSFERRING, LinkStalled(), (AbortDecode(), AbortPrefill())),
        *((Judge("p1", "stalled"),), "p1", "link_stalled"),
        id="link stalled",
    ),
    pytest.param(
        *(State.TRANSFERRING, KvChunkCorrupt(), (AbortDecode(), AbortPrefill())),
        *((Judge("p1", "corrupt"),), "p1", "chunk_corrupt"),
        id="chunk corrupt",
    ),
    pytest.param(
        *(State.TRANSFERRING, LeaseExpired(), (AbortDecode(), AbortPrefill())),
        *((), "p1", "segment_stale"),
        id="lease expired: nothing speaks against its owner",
    ),
    pytest.param(
        *(State.TRANSFERRING, SegmentFailed(), (AbortDecode(), AbortPrefill())),
        *((), "p1", "segment_failed"),
        id="segment failed: nothing speaks against its owner",
    ),
    pytest.param(
        *(State.TRANSFERRING, DecodeRefused(), (AbortDecode(), AbortPrefill())),
        *((Judge("d1", "refused"),), "d1", "worker_refused"),
        id="decode refused",
    ),
    pytest.param(
        *(State.TRANSFERRING, DecodeWorkerLost(), (AbortDecode(), AbortPrefill())),
        *((Judge("d1", "lost"), Blame("d1")), "d1", "worker_lost"),
        id="decode lost",
    ),
    pytest.param(
        *(State.TRANSFERRING, DecodeTimedOut(), (AbortDecode(), AbortPrefill())),
        *((Judge("d1", "timeout"),), "d1", "worker_timeout"),
        id="decode silent",
    ),
    pytest.param(
        *(State.TRANSFERRING, EngineStalled(), (AbortDecode(), AbortPrefill())),
        *((Judge("d1", "timeout"), Blame("d1", is_certain=True)), "d1", "worker_timeout"),
        id="decode engine hangs: it says so itself",
    ),
    pytest.param(
        *(State.TRANSFERRING, DecodeLeft(), (AbortDecode(), AbortPrefill())),
        *((), "d1", "worker_lost"),
        id="decode leaving: nothing speaks against it",
    ),
]
failures = pytest.mark.parametrize(
    ("state", "event", "stops", "verdicts", "left_out", "code"), FAILURES
)


@failures
def test_a_failed_attempt_gives_everything_back_and_asks_for_another(
    state: State,
    event: Event,
    stops: tuple[Instruction, ...],
    verdicts: tuple[Instruction, ...],
    left_out: str,
    code: str,
) -> None:
    life, asked = live(*UP_TO[state], event)

    gives_back = () if state is State.QUEUED else (GiveBack(),)
    assert life.state is State.ADMITTED
    assert asked == (*stops, *gives_back, *verdicts, AskRetry(code))
    assert life.attempts_left == 0
    assert life.excluded == (left_out,)
    assert (life.has_segment, life.has_stream, life.has_reservation) == (False, False, False)


@failures
def test_the_last_attempt_fails_with_what_went_wrong(
    state: State,
    event: Event,
    stops: tuple[Instruction, ...],
    verdicts: tuple[Instruction, ...],
    left_out: str,
    code: str,
) -> None:
    life, asked = live(*UP_TO[state], event, attempts_max=0)

    assert life.state is State.FAILED
    assert asked == (*verdicts, *stops, Fail(code), Finish(State.FAILED, code))
    assert left_out not in life.excluded


@failures
def test_an_attempt_to_go_on_that_fails_keeps_the_output(
    state: State,
    event: Event,
    stops: tuple[Instruction, ...],
    verdicts: tuple[Instruction, ...],
    left_out: str,
    code: str,
) -> None:
    """Before its own first token: the tokens of the one before are there still."""
    first = (*DECODING, DecodeLeft(), RetryGranted())

    life, asked = live(*first, *UP_TO[state], event, **RESUMABLE)

    gives_back = () if state is State.QUEUED else (GiveBack(),)
    assert life.state is State.MIGRATING
    assert life.has_output
    assert (life.attempts_left, life.migrations_left) == (0, 0)
    assert life.excluded == ("d1", left_out)
    assert asked == (*stops, *gives_back, *verdicts, AskRetry(code))


def test_a_grant_leads_to_a_decision_without_those_that_failed() -> None:
    events = (
        *(PLACED, Reserved(), PrefillRefused(), RetryGranted()),
        *(Placed("p2", "d1"), Reserved(), PrefillAccepted(), DecodeRefused(), RetryGranted()),
    )

    life, asked = live(*events, attempts_max=2)

    assert life.excluded == ("p1", "d1")
    assert asked == (Decide(("p1", "d1")),)


@pytest.mark.parametrize("code", ["worker_lost", "request_quarantined"])
def test_a_denial_ends_the_request_with_its_reason(code: str) -> None:
    life, asked = live(PLACED, Reserved(), PrefillRefused(), RetryDenied(code))

    assert life.state is State.FAILED
    assert asked == (Fail(code), Finish(State.FAILED, code))


def test_a_second_attempt_can_succeed() -> None:
    events = (PLACED, Reserved(), PrefillWorkerLost(), *AGAIN, FirstToken(), StreamEnded())

    life, asked = live(*events)

    assert life.state is State.DONE
    assert asked == (Finish(State.DONE, "ok"),)


# --- Nobody is there --------------------------------------------------------------------------


def test_a_request_without_any_placement_is_rejected() -> None:
    life, asked = live(NoPlacement())

    assert life.state is State.REJECTED
    assert asked == (Fail("no_candidate"), Finish(State.REJECTED, "no_candidate"))


def test_when_everybody_was_tried_all_may_be_tried_again_after_a_pause() -> None:
    failed = (PLACED, Reserved(), PrefillRefused(), RetryGranted())

    life, asked = live(*failed, NoPlacement(), attempts_max=2)
    _, then = live(*failed, NoPlacement(), RetryGranted(), attempts_max=2)

    assert life.state is State.ADMITTED
    assert life.attempts_left == 0
    assert asked == (AskRetry("no_candidate", after_pause=True),)
    assert then == (Decide(()),)


def test_a_request_that_was_placed_once_is_never_rejected() -> None:
    """It is one that was lost, also when the round after the pause finds nobody either."""
    failed = (PLACED, Reserved(), PrefillRefused(), RetryGranted(), NoPlacement(), RetryGranted())

    life, asked = live(*failed, NoPlacement(), attempts_max=3)
    last, told = live(*failed, NoPlacement(), attempts_max=2)

    assert life.state is State.ADMITTED
    assert asked == (AskRetry("no_candidate", after_pause=True),)
    assert last.state is State.FAILED
    assert told == (Fail("no_candidate"), Finish(State.FAILED, "no_candidate"))


def test_a_stream_that_finds_no_other_worker_waits_for_one_too() -> None:
    life, asked = live(*UP_TO[State.MIGRATING], RetryGranted(), NoPlacement(), **RESUMABLE)

    assert life.state is State.MIGRATING
    assert life.excluded == ()
    assert asked == (AskRetry("no_candidate", after_pause=True),)


# --- After the first token --------------------------------------------------------------------

BREAKS = [
    pytest.param(
        DecodeWorkerLost(), (Judge("d1", "lost"), Blame("d1")), "worker_lost", id="worker lost"
    ),
    pytest.param(DecodeTimedOut(), (Judge("d1", "timeout"),), "worker_timeout", id="worker silent"),
    pytest.param(
        EngineStalled(),
        (Judge("d1", "timeout"), Blame("d1", is_certain=True)),
        "worker_timeout",
        id="engine hangs",
    ),
    pytest.param(DecodeLeft(), (), "worker_lost", id="worker leaving"),
]
breaks = pytest.mark.parametrize(("event", "verdicts", "code"), BREAKS)
STOPS = (AbortDecode(), AbortPrefill())


@breaks
def test_output_whose_tokens_are_known_goes_on_elsewhere(
    event: Event, verdicts: tuple[Instruction, ...], code: str
) -> None:
    life, asked = live(*DECODING, event, attempts_max=2, can_resume=True, migrations_max=3)

    assert life.state is State.MIGRATING
    assert life.has_output
    assert life.excluded == ("d1",)
    assert asked == (*STOPS, GiveBack(), *verdicts, AskRetry(code))
    assert (life.attempts_left, life.migrations_left) == (2, 2)


def test_a_migration_comes_with_fresh_attempts() -> None:
    used_up = (PLACED, Reserved(), PrefillRefused())

    life, _ = live(*used_up, *AGAIN, FirstToken(), DecodeWorkerLost(), **RESUMABLE)

    assert life.state is State.MIGRATING
    assert life.attempts_left == 1


def test_a_migrated_stream_ends_as_any_other() -> None:
    life, asked = live(*UP_TO[State.MIGRATING], *AGAIN, FirstToken(), StreamEnded(), **RESUMABLE)

    assert life.state is State.DONE
    assert asked == (Finish(State.DONE, "ok"),)


@breaks
def test_a_stream_whose_migrations_are_used_up_fails(
    event: Event, verdicts: tuple[Instruction, ...], code: str
) -> None:
    life, asked = live(*DECODING, event, attempts_max=5, can_resume=True, migrations_max=0)

    assert life.state is State.FAILED
    assert asked == (*verdicts, *STOPS, Fail(code), Finish(State.FAILED, code))


@pytest.mark.parametrize("migrations_max", [0, 1, 2])
def test_a_stream_goes_on_as_often_as_it_may_and_no_more(migrations_max: int) -> None:
    terms = Terms(attempts_max=0, migrations_max=migrations_max, can_resume=True)
    life, _ = begin(terms)
    broken = (*DECODING, DecodeWorkerLost(), RetryGranted())

    for event in broken * (migrations_max + 1):
        if life.state is State.FAILED:
            break
        life, _ = advance(life, event)

    assert life.state is State.FAILED
    assert life.story.count("FirstToken") == 1 + migrations_max


@breaks
@pytest.mark.parametrize(
    ("can_resume", "has_tokens"), [(False, True), (True, False), (False, False)]
)
def test_a_stream_that_nobody_can_go_on_with_fails(
    event: Event,
    verdicts: tuple[Instruction, ...],
    code: str,
    *,
    can_resume: bool,
    has_tokens: bool,
) -> None:
    """A second attempt could contradict what the client has seen."""
    events = (*ACCEPTED, FirstToken(has_tokens=has_tokens), event)

    life, asked = live(*events, attempts_max=5, migrations_max=5, can_resume=can_resume)

    assert life.state is State.FAILED
    assert asked == (*verdicts, *STOPS, Fail(code), Finish(State.FAILED, code))


@breaks
@pytest.mark.parametrize(
    ("can_resume", "has_tokens"), [(False, True), (True, False), (False, False)]
)
def test_a_whole_answer_that_nobody_can_go_on_with_begins_anew(
    event: Event,
    verdicts: tuple[Instruction, ...],
    code: str,
    *,
    can_resume: bool,
    has_tokens: bool,
) -> None:
    """Its client has seen nothing; it costs an attempt, not a migration."""
    events = (*ACCEPTED, FirstToken(has_tokens=has_tokens), event)

    life, asked = live(*events, is_stream=False, migrations_max=5, can_resume=can_resume)

    assert life.state is State.ADMITTED
    assert not life.has_output
    assert (life.attempts_left, life.migrations_left) == (0, 5)
    assert asked == (*STOPS, GiveBack(), *verdicts, ForgetOutput(), AskRetry(code))


def test_a_whole_answer_that_can_be_resumed_is() -> None:
    life, asked = live(*DECODING, DecodeWorkerLost(), is_stream=False, **RESUMABLE)

    assert life.state is State.MIGRATING
    assert ForgetOutput() not in asked


def test_a_whole_answer_that_begins_anew_fails_with_its_last_attempt() -> None:
    life, asked = live(*DECODING, DecodeTimedOut(), is_stream=False, attempts_max=0)

    assert life.state is State.FAILED
    assert asked[-2:] == (Fail("worker_timeout"), Finish(State.FAILED, "worker_timeout"))


def test_a_whole_answer_loses_its_output_at_a_worker_that_tells_none() -> None:
    """It had gone on there; the next one has to begin from nothing."""
    events = (*UP_TO[State.MIGRATING], *AGAIN, FirstToken(has_tokens=False), DecodeWorkerLost())

    life, asked = live(*events, is_stream=False, **RESUMABLE)

    assert life.state is State.ADMITTED
    assert not life.has_output
    assert ForgetOutput() in asked


# --- Ends from outside ------------------------------------------------------------------------

HELD: dict[State, tuple[Instruction, ...]] = {
    State.ADMITTED: (),
    State.QUEUED: (),
    State.PREFILLING: (AbortPrefill(),),
    State.TRANSFERRING: STOPS,
    State.DECODING: STOPS,
    State.MIGRATING: (),
}
anywhere = pytest.mark.parametrize("state", NOT_TERMINAL, ids=lambda state: state.value)


@anywhere
def test_a_client_that_left_is_told_nothing(state: State) -> None:
    life, asked = live(*UP_TO[state], ClientGone(), **RESUMABLE)

    assert life.state is State.CANCELLED
    assert asked == (*HELD[state], Finish(State.CANCELLED, "client_gone"))


@anywhere
@pytest.mark.parametrize(
    ("event", "code"),
    [
        pytest.param(DeadlinePassed(), "deadline_exceeded", id="deadline"),
        pytest.param(RouterLeft(), "draining", id="router leaves"),
        pytest.param(RouterFault(), "internal_error", id="fault"),
    ],
)
def test_a_deadline_or_a_fault_ends_a_request_wherever_it_is(
    state: State, event: Event, code: str
) -> None:
    life, asked = live(*UP_TO[state], event, **RESUMABLE)

    assert life.state is State.FAILED
    assert asked == (*HELD[state], Fail(code), Finish(State.FAILED, code))


@anywhere
def test_a_reservation_goes_with_the_finish(state: State) -> None:
    life, asked = live(*UP_TO[state], RouterFault(), **RESUMABLE)

    holds = state in {State.PREFILLING, State.TRANSFERRING, State.DECODING}
    assert life.has_reservation is holds
    assert GiveBack() not in asked


@pytest.mark.parametrize("state", State, ids=lambda state: state.value)
def test_terminal_states_are_the_four_ends(state: State) -> None:
    ends = {State.DONE, State.FAILED, State.CANCELLED, State.REJECTED}

    assert state.is_terminal == (state in ends)


# --- Story and illegal events -----------------------------------------------------------------


def test_the_story_names_every_event_in_order() -> None:
    life, _ = live(PLACED, Reserved(), PrefillRefused(), RetryGranted(), NoPlacement())

    assert life.story == ("Placed", "Reserved", "PrefillRefused", "RetryGranted", "NoPlacement")


def test_an_illegal_event_is_told_with_its_story() -> None:
    life, _ = live(PLACED, Reserved())

    with pytest.raises(IllegalEvent) as caught:
        advance(life, FirstToken())

    assert str(caught.value) == (
        "FirstToken in state prefilling; story: ('Placed', 'Reserved', 'FirstToken')"
    )


@pytest.mark.parametrize("event", [ClientGone(), DeadlinePassed(), RouterFault()])
def test_nothing_ends_a_life_twice(event: Event) -> None:
    life, _ = live(ClientGone())

    with pytest.raises(IllegalEvent, match="state cancelled"):
        advance(life, event)


def test_advancing_leaves_the_life_before_it_as_it_was() -> None:
    life, _ = live(PLACED, Reserved())
    copy = life._replace()

    advance(life, PrefillAccepted())

    assert life == copy
