from __future__ import annotations

from dataclasses import replace

import pytest

from controlplane.domain.lifecycle import (
    AbortDecode,
    AbortPrefill,
    ClientGone,
    DeadlinePassed,
    Decide,
    DecodeRefused,
    DecodeWorkerLost,
    Event,
    Fail,
    Finish,
    FirstToken,
    GiveBack,
    IllegalEvent,
    Instruction,
    KvUnavailable,
    Life,
    NoPlacement,
    Placed,
    PrefillAccepted,
    PrefillRefused,
    PrefillWorkerLost,
    Relay,
    ReservationRefused,
    Reserve,
    Reserved,
    RouterFault,
    StartDecode,
    StartPrefill,
    State,
    StreamEnded,
    Suspect,
    advance,
    begin,
)

PLACED = Placed("p1", "d1")


def live(*events: Event, attempts_max: int = 1) -> tuple[Life, tuple[Instruction, ...]]:
    """The life after these events, and what the last of them asks for."""
    life, instructions = begin(attempts_max)
    for event in events:
        life, instructions = advance(life, event)
    return life, instructions


UP_TO: dict[State, tuple[Event, ...]] = {
    State.ADMITTED: (),
    State.QUEUED: (PLACED,),
    State.PREFILLING: (PLACED, Reserved()),
    State.TRANSFERRING: (PLACED, Reserved(), PrefillAccepted()),
    State.DECODING: (PLACED, Reserved(), PrefillAccepted(), FirstToken()),
    State.DONE: (PLACED, Reserved(), PrefillAccepted(), FirstToken(), StreamEnded()),
    State.CANCELLED: (ClientGone(),),
    State.FAILED: (RouterFault(),),
    State.REJECTED: (NoPlacement(),),
}
NOT_TERMINAL = [state for state in State if not state.is_terminal]


def test_every_state_can_be_reached() -> None:
    assert {live(*events)[0].state: events for events in UP_TO.values()} == UP_TO
    assert set(UP_TO) == set(State)


def test_a_life_begins_with_a_decision_among_all_workers() -> None:
    life, instructions = begin(2)

    assert life == Life(attempts_left=2)
    assert life.state is State.ADMITTED
    assert instructions == (Decide(()),)


def test_a_life_cannot_begin_with_less_than_one_attempt() -> None:
    with pytest.raises(ValueError, match="-1"):
        begin(-1)


@pytest.mark.parametrize(
    ("events", "state", "instructions"),
    [
        pytest.param((PLACED,), State.QUEUED, (Reserve(),), id="placed"),
        pytest.param((Reserved(),), State.PREFILLING, (StartPrefill(),), id="reserved"),
        pytest.param((PrefillAccepted(),), State.TRANSFERRING, (StartDecode(),), id="accepted"),
        pytest.param((FirstToken(),), State.DECODING, (Relay(),), id="first token"),
        pytest.param((StreamEnded(),), State.DONE, (Finish(State.DONE, "ok"),), id="ended"),
    ],
)
def test_a_request_that_meets_no_trouble_goes_straight_on(
    events: tuple[Event, ...], state: State, instructions: tuple[Instruction, ...]
) -> None:
    happy = UP_TO[State.DONE]
    before = happy[: happy.index(events[0])]

    life, asked = live(*before, *events)

    assert life.state is state
    assert asked == instructions


def test_a_placement_is_remembered() -> None:
    life, _ = live(PLACED)

    assert (life.prefill_worker, life.decode_worker) == ("p1", "d1")


@pytest.mark.parametrize(
    ("state", "event", "instructions", "excluded"),
    [
        pytest.param(State.QUEUED, ReservationRefused("d1"), (), ("d1",), id="reservation refused"),
        pytest.param(
            State.PREFILLING,
            PrefillRefused(),
            (GiveBack(),),
            ("p1",),
            id="prefill refused: nothing to abort",
        ),
        pytest.param(
            State.PREFILLING,
            PrefillWorkerLost(),
            (Suspect("p1"), AbortPrefill(), GiveBack()),
            ("p1",),
            id="prefill lost: the job may have arrived",
        ),
        pytest.param(
            State.TRANSFERRING,
            KvUnavailable("chunk_corrupt"),
            (AbortDecode(), AbortPrefill(), GiveBack()),
            ("p1",),
            id="kv corrupt: its owner is not suspect",
        ),
        pytest.param(
            State.TRANSFERRING,
            KvUnavailable("segment_stale"),
            (AbortDecode(), AbortPrefill(), GiveBack()),
            ("p1",),
            id="kv stale: its owner is not suspect",
        ),
        pytest.param(
            State.TRANSFERRING,
            KvUnavailable("link_down"),
            (Suspect("p1"), AbortDecode(), AbortPrefill(), GiveBack()),
            ("p1",),
            id="link down: the owner is suspect",
        ),
        pytest.param(
            State.TRANSFERRING,
            KvUnavailable("link_stalled"),
            (Suspect("p1"), AbortDecode(), AbortPrefill(), GiveBack()),
            ("p1",),
            id="link stalled: the owner is suspect",
        ),
        pytest.param(
            State.TRANSFERRING,
            DecodeRefused(),
            (AbortDecode(), AbortPrefill(), GiveBack()),
            ("d1",),
            id="decode refused",
        ),
        pytest.param(
            State.TRANSFERRING,
            DecodeWorkerLost(),
            (Suspect("d1"), AbortDecode(), AbortPrefill(), GiveBack()),
            ("d1",),
            id="decode lost before its first token",
        ),
    ],
)
def test_a_failed_attempt_gives_everything_back_and_decides_again(
    state: State,
    event: Event,
    instructions: tuple[Instruction, ...],
    excluded: tuple[str, ...],
) -> None:
    life, asked = live(*UP_TO[state], event)

    assert life.state is State.ADMITTED
    assert asked == (*instructions, Decide(excluded))
    assert life.attempts_left == 0
    assert life.excluded == excluded
    assert (life.has_segment, life.has_stream, life.has_reservation) == (False, False, False)


@pytest.mark.parametrize(
    ("state", "event", "instructions", "code"),
    [
        pytest.param(
            State.QUEUED, ReservationRefused("d1"), (), "no_candidate", id="reservation refused"
        ),
        pytest.param(
            State.PREFILLING, PrefillRefused(), (), "worker_refused", id="prefill refused"
        ),
        pytest.param(
            State.PREFILLING,
            PrefillWorkerLost(),
            (Suspect("p1"), AbortPrefill()),
            "worker_lost",
            id="prefill lost",
        ),
        pytest.param(
            State.TRANSFERRING,
            KvUnavailable("chunk_corrupt"),
            (AbortDecode(), AbortPrefill()),
            "chunk_corrupt",
            id="kv corrupt",
        ),
        pytest.param(
            State.TRANSFERRING,
            KvUnavailable("link_down"),
            (Suspect("p1"), AbortDecode(), AbortPrefill()),
            "link_down",
            id="link down",
        ),
        pytest.param(
            State.TRANSFERRING,
            DecodeRefused(),
            (AbortDecode(), AbortPrefill()),
            "worker_refused",
            id="decode refused",
        ),
        pytest.param(
            State.TRANSFERRING,
            DecodeWorkerLost(),
            (Suspect("d1"), AbortDecode(), AbortPrefill()),
            "worker_lost",
            id="decode lost",
        ),
    ],
)
def test_the_last_attempt_fails_with_what_went_wrong(
    state: State, event: Event, instructions: tuple[Instruction, ...], code: str
) -> None:
    life, asked = live(*UP_TO[state], event, attempts_max=0)

    assert life.state is State.FAILED
    assert asked == (*instructions, Fail(code), Finish(State.FAILED, code))


def test_excluded_workers_add_up_over_attempts() -> None:
    events = (
        *(Placed("p1", "d1"), Reserved(), PrefillRefused()),
        *(Placed("p2", "d1"), Reserved(), PrefillAccepted(), DecodeRefused()),
    )

    life, asked = live(*events, attempts_max=2)

    assert life.excluded == ("p1", "d1")
    assert asked[-1] == Decide(("p1", "d1"))


def test_a_second_attempt_can_succeed() -> None:
    events = (
        *(Placed("p1", "d1"), Reserved(), PrefillWorkerLost()),
        *(Placed("p2", "d1"), Reserved(), PrefillAccepted(), FirstToken(), StreamEnded()),
    )

    life, asked = live(*events)

    assert life.state is State.DONE
    assert asked == (Finish(State.DONE, "ok"),)


def test_a_request_without_any_placement_is_rejected() -> None:
    life, asked = live(NoPlacement())

    assert life.state is State.REJECTED
    assert asked == (Fail("no_candidate"), Finish(State.REJECTED, "no_candidate"))


def test_a_request_without_a_second_placement_has_failed() -> None:
    life, asked = live(PLACED, Reserved(), PrefillRefused(), NoPlacement())

    assert life.state is State.FAILED
    assert asked == (Fail("no_candidate"), Finish(State.FAILED, "no_candidate"))


def test_a_stream_that_breaks_after_its_first_token_is_not_tried_again() -> None:
    life, asked = live(*UP_TO[State.DECODING], DecodeWorkerLost(), attempts_max=5)

    assert life.state is State.FAILED
    assert asked == (
        Suspect("d1"),
        AbortDecode(),
        AbortPrefill(),
        Fail("worker_lost"),
        Finish(State.FAILED, "worker_lost"),
    )


HELD: dict[State, tuple[Instruction, ...]] = {
    State.ADMITTED: (),
    State.QUEUED: (),
    State.PREFILLING: (AbortPrefill(),),
    State.TRANSFERRING: (AbortDecode(), AbortPrefill()),
    State.DECODING: (AbortDecode(), AbortPrefill()),
}


@pytest.mark.parametrize("state", NOT_TERMINAL, ids=lambda state: state.value)
def test_a_client_that_left_is_told_nothing(state: State) -> None:
    life, asked = live(*UP_TO[state], ClientGone())

    assert life.state is State.CANCELLED
    assert asked == (*HELD[state], Finish(State.CANCELLED, "client_gone"))


@pytest.mark.parametrize("state", NOT_TERMINAL, ids=lambda state: state.value)
@pytest.mark.parametrize(
    ("event", "code"),
    [
        pytest.param(DeadlinePassed(), "deadline_exceeded", id="deadline"),
        pytest.param(RouterFault(), "internal_error", id="fault"),
    ],
)
def test_a_deadline_or_a_fault_ends_a_request_wherever_it_is(
    state: State, event: Event, code: str
) -> None:
    life, asked = live(*UP_TO[state], event)

    assert life.state is State.FAILED
    assert asked == (*HELD[state], Fail(code), Finish(State.FAILED, code))


@pytest.mark.parametrize("state", NOT_TERMINAL, ids=lambda state: state.value)
def test_a_reservation_goes_with_the_finish(state: State) -> None:
    life, asked = live(*UP_TO[state], RouterFault())

    has_reservation = Reserved() in UP_TO[state]
    assert life.has_reservation is has_reservation
    assert GiveBack() not in asked


@pytest.mark.parametrize(
    ("state", "is_terminal"),
    [
        (State.ADMITTED, False),
        (State.QUEUED, False),
        (State.PREFILLING, False),
        (State.TRANSFERRING, False),
        (State.DECODING, False),
        (State.DONE, True),
        (State.FAILED, True),
        (State.CANCELLED, True),
        (State.REJECTED, True),
    ],
    ids=lambda value: value.value if isinstance(value, State) else "",
)
def test_terminal_states_are_the_four_ends(
    state: State,
    is_terminal: bool,  # noqa: FBT001 - a column of the table
) -> None:
    assert state.is_terminal is is_terminal


def test_the_story_names_every_event_in_order() -> None:
    life, _ = live(PLACED, Reserved(), PrefillRefused(), NoPlacement())

    assert life.story == ("Placed", "Reserved", "PrefillRefused", "NoPlacement")


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
    copy = replace(life)

    advance(life, PrefillAccepted())

    assert life == copy
