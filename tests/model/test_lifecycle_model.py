"""
Every life a request can have, within two further attempts.

From `begin(n)` each event is offered in each state that is reached; what is refused is checked as
well as what is taken. Beside each life runs a ledger that knows only instructions and events:
what a dispatcher that follows them would be holding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

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

ATTEMPTS = [0, 1, 2]

#: One of each event, and of those with contents one for each way they are treated. The second
#: placement chooses the same workers in every attempt, as no policy should.
EVENTS: tuple[Event, ...] = (
    Placed("p?", "d?"),
    Placed("p1", "d1"),
    NoPlacement(),
    Reserved(),
    ReservationRefused("d1"),
    PrefillAccepted(),
    PrefillRefused(),
    PrefillWorkerLost(),
    KvUnavailable("link_down"),
    KvUnavailable("chunk_corrupt"),
    DecodeRefused(),
    DecodeWorkerLost(),
    FirstToken(),
    StreamEnded(),
    ClientGone(),
    DeadlinePassed(),
    RouterFault(),
)

ENDS: frozenset[type] = frozenset({ClientGone, DeadlinePassed, RouterFault})

#: The table once more, written from the picture of the life cycle.
LEGAL: dict[State, frozenset[type]] = {
    State.ADMITTED: ENDS | {Placed, NoPlacement},
    State.QUEUED: ENDS | {Reserved, ReservationRefused},
    State.PREFILLING: ENDS | {PrefillAccepted, PrefillRefused, PrefillWorkerLost},
    State.TRANSFERRING: ENDS | {FirstToken, KvUnavailable, DecodeRefused, DecodeWorkerLost},
    State.DECODING: ENDS | {StreamEnded, DecodeWorkerLost},
    State.DONE: frozenset(),
    State.FAILED: frozenset(),
    State.CANCELLED: frozenset(),
    State.REJECTED: frozenset(),
}

#: What waits for an answer; everything else is done at once.
ASKS = (Decide, Reserve, StartPrefill, StartDecode, Relay)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """What a dispatcher holds, and what it was told, counted."""

    #: A prefill job was sent and neither refused, aborted nor finished.
    prefill_jobs: int = 0
    #: A decode job was sent and neither aborted nor finished.
    decode_jobs: int = 0
    #: A reservation was granted and not given back.
    reservations: int = 0
    granted: int = 0
    given_back: int = 0
    failures_told: int = 0
    finishes: int = 0

    def after(self, event: Event, instructions: tuple[Instruction, ...]) -> Ledger:
        """The ledger when this happened and these were performed."""
        asked = Counter(type(instruction) for instruction in instructions)
        granted = int(isinstance(event, Reserved))
        prefill_jobs = self.prefill_jobs - int(isinstance(event, PrefillRefused))
        decode_jobs = self.decode_jobs
        if isinstance(event, StreamEnded):
            prefill_jobs = decode_jobs = 0
        return Ledger(
            prefill_jobs=prefill_jobs + asked[StartPrefill] - asked[AbortPrefill],
            decode_jobs=decode_jobs + asked[StartDecode] - asked[AbortDecode],
            reservations=self.reservations + granted - asked[GiveBack],
            granted=self.granted + granted,
            given_back=self.given_back + asked[GiveBack],
            failures_told=self.failures_told + asked[Fail],
            finishes=self.finishes + asked[Finish],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One event that was taken."""

    before: Life
    event: Event
    after: Life
    instructions: tuple[Instruction, ...]
    held_before: Ledger
    held: Ledger


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """One event that was not."""

    life: Life
    event: Event
    message: str


def _offered(life: Life) -> Iterator[Event]:
    attempt = life.story.count("Placed") + 1
    for event in EVENTS:
        yield Placed(f"p{attempt}", f"d{attempt}") if event == Placed("p?", "d?") else event


@cache
def explored(attempts_max: int) -> tuple[tuple[Step, ...], tuple[Refusal, ...]]:
    """Every step of every life, and every refusal on its way."""
    steps: list[Step] = []
    refusals: list[Refusal] = []
    life, _ = begin(attempts_max)
    open_lives = [(life, Ledger())]
    while open_lives:
        life, held = open_lives.pop()
        for event in _offered(life):
            try:
                after, instructions = advance(life, event)
            except IllegalEvent as error:
                refusals.append(Refusal(life=life, event=event, message=str(error)))
                continue
            step = Step(
                before=life,
                event=event,
                after=after,
                instructions=instructions,
                held_before=held,
                held=held.after(event, instructions),
            )
            steps.append(step)
            open_lives.append((step.after, step.held))
    return tuple(steps), tuple(refusals)


def steps_of(attempts_max: int) -> tuple[Step, ...]:
    return explored(attempts_max)[0]


def refusals_of(attempts_max: int) -> tuple[Refusal, ...]:
    return explored(attempts_max)[1]


@pytest.mark.parametrize("attempts_max", ATTEMPTS)
def test_the_exploration_meets_every_state_event_and_instruction(attempts_max: int) -> None:
    steps = steps_of(attempts_max)

    states = {step.before.state for step in steps} | {step.after.state for step in steps}
    assert states == set(State)
    assert {type(step.event) for step in steps} == {type(event) for event in EVENTS}
    asked = {type(instruction) for step in steps for instruction in step.instructions}
    retries = {Decide, GiveBack} if attempts_max else set()
    everything = {*ASKS, AbortDecode, AbortPrefill, GiveBack, Suspect, Fail, Finish}
    assert asked == everything - {Decide, GiveBack} | retries


@pytest.mark.parametrize("attempts_max", ATTEMPTS)
def test_exactly_the_events_of_the_table_are_taken(attempts_max: int) -> None:
    for step in steps_of(attempts_max):
        assert type(step.event) in LEGAL[step.before.state]
    for refusal in refusals_of(attempts_max):
        assert type(refusal.event) not in LEGAL[refusal.life.state]


@pytest.mark.parametrize("attempts_max", ATTEMPTS)
def test_a_request_can_be_ended_wherever_it_is(attempts_max: int) -> None:
    steps = steps_of(attempts_max)

    ended = {(step.before, type(step.event)) for step in steps if type(step.event) in ENDS}
    lives = {step.before for step in steps}

    assert ended == {(life, kind) for life in lives for kind in ENDS}


@pytest.mark.parametrize("attempts_max", ATTEMPTS)
def test_nothing_comes_after_a_terminal_state(attempts_max: int) -> None:
    for step in steps_of(attempts_max):
        assert not step.before.state.is_terminal
    ended = {step.after for step in steps_of(attempts_max) if step.after.state.is_terminal}
    refused = {refusal.life for refusal in refusals_of(attempts_max)}
    assert ended <= refused


@pytest.mark.parametrize("attempts_max", ATTEMPTS)
def test_an_illegal_event_is_refused_with_the_whole_story(attempts_max: int) -> None:
    for refusal in refusals_of(attempts_max):
        name = type(refusal.event).__name__
        story = (*refusal.life.story, name)
        assert refusal.message == f"{name} in state {refusal.life.state.value}; story: {story}"


@pytest.mark.parametrize("attempts_max", ATTEMPTS)
def test_a_life_finishes_once_and_with_its_last_instruction(attempts_max: int) -> None:
    for step in steps_of(attempts_max):
        is_over = step.after.state.is_terminal
        assert step.held.finishes == int(is_over)
        assert isinstance(step.instructions[-1], Finish) == is_over


@pytest.mark.parametrize("attempts_max", ATTEMPTS)
def test_the_finish_says_how_it_ended(attempts_max: int) -> None:
    for step in steps_of(attempts_max):
        last = step.instructions[-1]
        if isinstance(last, Finish):
            assert last.state is step.after.state
            assert (last.code == "ok") == (last.state is State.DONE)


@pytest.mark.parametrize("attempts_max", ATTEMPTS)
def test_a_life_that_goes_on_waits_for_one_answer(attempts_max: int) -> None:
    for step in steps_of(attempts_max):
        asked = [order for order in step.instructions if isinstance(order, ASKS)]
        assert len(asked) == int(not step.after.state.is_terminal)
        assert asked == [] or step.instructions[-1] == asked[0]


@pytest.mark.parametrize("attempts_max", ATTEMPTS)
def test_a_client_is_told_of_a_failure_once_and_only_of_a_failure(attempts_max: int) -> None:
    for step in steps_of(attempts_max):
        is_failure = step.after.state in {State.FAILED, State.REJECTED}
        assert step.held.failures_told == int(is_failure)
        if is_failure:
            *_, fail, finish = step.instructions
            assert fail == Fail(finish.code)  # type: ignore[union-attr]


@pytest.mark.parametrize("attempts_max", ATTEMPTS)
def test_only_what_is_held_is_aborted_or_given_back(attempts_max: int) -> None:
    for step in steps_of(attempts_max):
        held = step.held
        assert 0 <= held.prefill_jobs <= 1
        assert 0 <= held.decode_jobs <= 1
        assert 0 <= held.reservations <= 1


@pytest.mark.parametrize("attempts_max", ATTEMPTS)
def test_no_attempt_leaves_work_behind(attempts_max: int) -> None:
    for step in steps_of(attempts_max):
        if step.after.state.is_terminal or step.after.state is State.ADMITTED:
            assert (step.held.prefill_jobs, step.held.decode_jobs) == (0, 0)


@pytest.mark.parametrize("attempts_max", ATTEMPTS)
def test_every_granted_reservation_is_given_back_or_goes_with_the_finish(
    attempts_max: int,
) -> None:
    for step in steps_of(attempts_max):
        if step.after.state is State.ADMITTED:
            assert step.held.reservations == 0
        if step.after.state.is_terminal:
            assert step.held.granted == step.held.given_back + step.held.reservations


@pytest.mark.parametrize("attempts_max", ATTEMPTS)
def test_a_life_knows_what_it_holds(attempts_max: int) -> None:
    for step in steps_of(attempts_max):
        assert step.after.has_segment == bool(step.held.prefill_jobs)
        assert step.after.has_stream == bool(step.held.decode_jobs)
        assert step.after.has_reservation == bool(step.held.reservations)


@pytest.mark.parametrize("attempts_max", ATTEMPTS)
def test_excluded_workers_never_come_back(attempts_max: int) -> None:
    for step in steps_of(attempts_max):
        before, after = step.before.excluded, step.after.excluded
        assert after[: len(before)] == before


@pytest.mark.parametrize("attempts_max", ATTEMPTS)
def test_every_further_attempt_leaves_out_one_more_worker(attempts_max: int) -> None:
    for step in steps_of(attempts_max):
        last = step.instructions[-1]
        if isinstance(last, Decide):
            assert last.excluded == step.after.excluded
            assert len(last.excluded) == len(step.before.excluded) + 1
            assert step.after.attempts_left == step.before.attempts_left - 1


@pytest.mark.parametrize("attempts_max", ATTEMPTS)
def test_only_workers_of_the_attempt_are_suspected(attempts_max: int) -> None:
    for step in steps_of(attempts_max):
        for order in step.instructions:
            if isinstance(order, Suspect):
                assert order.worker_id in {step.before.prefill_worker, step.before.decode_worker}


@pytest.mark.parametrize("attempts_max", ATTEMPTS)
def test_a_life_ends_within_a_bounded_number_of_events(attempts_max: int) -> None:
    # A failed attempt takes four events at most, one that gets through five.
    longest = max(len(step.after.story) for step in steps_of(attempts_max))

    assert longest == 4 * attempts_max + 5
    assert all(step.after.attempts_left >= 0 for step in steps_of(attempts_max))


@pytest.mark.parametrize("attempts_max", ATTEMPTS)
def test_tokens_reach_a_client_in_one_attempt_only(attempts_max: int) -> None:
    for step in steps_of(attempts_max):
        assert step.after.story.count("FirstToken") <= 1
        if step.before.state is State.DECODING:
            assert step.after.state.is_terminal
