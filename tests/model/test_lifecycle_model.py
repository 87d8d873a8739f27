"""
Every life a request can have, within two further attempts and two migrations.

From `begin` each event is offered in each state that is reached; what is refused is checked as
well as what is taken. Beside each life runs a ledger that knows only instructions and events: what
a dispatcher that follows them would be holding. Lives that differ in nothing but their past are
explored once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import TypeAlias

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

TERMS = [
    Terms(
        attempts_max=attempts_max,
        migrations_max=migrations_max,
        can_resume=can_resume,
        is_stream=is_stream,
        can_wait=can_wait,
    )
    for attempts_max, migrations_max, can_resume, is_stream, can_wait in product(
        (0, 1, 2), (0, 1, 2), (False, True), (False, True), (False, True)
    )
]
MOST = Terms(attempts_max=2, migrations_max=2, can_resume=True, is_stream=False, can_wait=True)


def _name(terms: Terms) -> str:
    flags = ("can_resume", "is_stream", "can_wait")
    words = [flag for flag in flags if getattr(terms, flag)]
    return "-".join((f"{terms.attempts_max}+{terms.migrations_max}", *words))


all_terms = pytest.mark.parametrize("terms", TERMS, ids=_name)

#: One of each event, and of those with contents one for each way they are treated. The second
#: placement chooses the same workers in every attempt, as no policy should.
EVENTS: tuple[Event, ...] = (
    TurnCame(),
    Placed("p?", "d?"),
    Placed("p1", "d1"),
    NoPlacement(),
    Reserved(),
    ReservationRefused("d1"),
    PrefillAccepted(),
    PrefillRefused(),
    PrefillWorkerLost(),
    PrefillTimedOut(),
    LinkDown(),
    LinkStalled(),
    KvChunkCorrupt(),
    LeaseExpired(),
    SegmentFailed(),
    DecodeRefused(),
    DecodeWorkerLost(),
    DecodeTimedOut(),
    EngineStalled(),
    DecodeLeft(),
    FirstToken(),
    FirstToken(has_tokens=False),
    StreamEnded(),
    RetryGranted(),
    RetryDenied("worker_lost"),
    ClientGone(),
    DeadlinePassed(),
    RouterLeft(),
    RouterFault(),
)

ENDS: frozenset[type] = frozenset({ClientGone, DeadlinePassed, RouterLeft, RouterFault})

_WAITS = {Placed, NoPlacement, RetryGranted, RetryDenied}
_TRANSFER = {LinkDown, LinkStalled, KvChunkCorrupt, LeaseExpired, SegmentFailed}
_DECODE = {DecodeWorkerLost, DecodeTimedOut, EngineStalled, DecodeLeft}

#: The table once more, written from the picture of the life cycle.
LEGAL: dict[State, frozenset[type]] = {
    State.ADMITTED: ENDS | _WAITS | {TurnCame},
    State.QUEUED: ENDS | {Reserved, ReservationRefused},
    State.PREFILLING: ENDS | {PrefillAccepted, PrefillRefused, PrefillWorkerLost, PrefillTimedOut},
    State.TRANSFERRING: ENDS | _TRANSFER | _DECODE | {FirstToken, DecodeRefused},
    State.DECODING: ENDS | _DECODE | {StreamEnded},
    State.MIGRATING: ENDS | _WAITS,
    State.DONE: frozenset(),
    State.FAILED: frozenset(),
    State.CANCELLED: frozenset(),
    State.REJECTED: frozenset(),
}

#: What waits for an answer, and the answers to those that can be asked in one and the same state.
ASKS = (AwaitTurn, Decide, Reserve, StartPrefill, StartDecode, Relay, AskRetry)
ANSWERS: dict[type, frozenset[type]] = {
    AwaitTurn: frozenset({TurnCame}),
    Decide: frozenset({Placed, NoPlacement}),
    AskRetry: frozenset({RetryGranted, RetryDenied}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """What a dispatcher holds, and what it was told, counted."""

    #: What it was asked last and has not answered.
    asked: type
    #: A prefill job was sent and neither refused, aborted nor finished.
    prefill_jobs: int = 0
    #: A decode job was sent and neither aborted nor finished.
    decode_jobs: int = 0
    #: A reservation was granted and not given back.
    reservations: int = 0
    failures_told: int = 0
    finishes: int = 0
    #: A client that sees output as it is made has seen some.
    has_shown: bool = False

    def after(self, life: Life, event: Event, instructions: tuple[Instruction, ...]) -> Ledger:
        """The ledger when this happened and these were performed."""
        count = Counter(type(instruction) for instruction in instructions)
        prefill_jobs = self.prefill_jobs - int(isinstance(event, PrefillRefused))
        decode_jobs = self.decode_jobs
        if isinstance(event, StreamEnded):
            prefill_jobs = decode_jobs = 0
        return Ledger(
            asked=type(instructions[-1]),
            prefill_jobs=prefill_jobs + count[StartPrefill] - count[AbortPrefill],
            decode_jobs=decode_jobs + count[StartDecode] - count[AbortDecode],
            reservations=self.reservations + isinstance(event, Reserved) - count[GiveBack],
            failures_told=self.failures_told + count[Fail],
            finishes=self.finishes + count[Finish],
            has_shown=self.has_shown or (count[Relay] > 0 and life.terms.is_stream),
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

    def asks_for(self, kind: type) -> bool:
        """Whether an instruction of this kind is among those it led to."""
        return any(type(instruction) is kind for instruction in self.instructions)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """One event that was not."""

    life: Life
    event: Event
    message: str


#: A life without its past, and what is held for it.
_Key: TypeAlias = tuple[Life, Ledger]


def _key(life: Life, held: Ledger) -> _Key:
    """Lives with equal keys have the same future."""
    present = life._replace(
        story=(),
        excluded=("?",) * bool(life.excluded),
        prefill_worker=life.prefill_worker[:1],
        decode_worker=life.decode_worker[:1],
    )
    return present, held


def _offered(life: Life, held: Ledger) -> Iterator[Event]:
    """Everything that can come now; an answer that was not asked for is none."""
    attempt = life.story.count("Placed") + 1
    for event in EVENTS:
        kind = type(event)
        is_answer = any(kind in answers for answers in ANSWERS.values())
        if is_answer and kind not in ANSWERS.get(held.asked, {kind}):
            continue
        yield Placed(f"p{attempt}", f"d{attempt}") if event == Placed("p?", "d?") else event


@cache
def explored(terms: Terms) -> tuple[tuple[Step, ...], tuple[Refusal, ...]]:
    """Every step of every life, and every refusal on its way."""
    steps: list[Step] = []
    refusals: list[Refusal] = []
    life, (asked,) = begin(terms)
    held = Ledger(asked=type(asked))
    seen = {_key(life, held)}
    open_lives = [(life, held)]
    while open_lives:
        life, held = open_lives.pop()
        for event in _offered(life, held):
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
                held=held.after(after, event, instructions),
            )
            steps.append(step)
            if (key := _key(step.after, step.held)) not in seen:
                seen.add(key)
                open_lives.append((step.after, step.held))
    return tuple(steps), tuple(refusals)


def steps_of(terms: Terms) -> tuple[Step, ...]:
    return explored(terms)[0]


def refusals_of(terms: Terms) -> tuple[Refusal, ...]:
    return explored(terms)[1]


def longest(terms: Terms) -> int:
    """
    Events of the longest life.

    Raises:
        AssertionError: There is one that can go round for ever.
    """
    follows: dict[_Key, set[_Key]] = {}
    for step in steps_of(terms):
        follows.setdefault(_key(step.before, step.held_before), set()).add(
            _key(step.after, step.held)
        )
    lengths: dict[_Key, int | None] = {}

    def length(key: _Key) -> int:
        if key in lengths:
            known = lengths[key]
            assert known is not None, f"a life can come back to {key}"
            return known
        lengths[key] = None
        after = max((1 + length(next_key) for next_key in follows.get(key, ())), default=0)
        lengths[key] = after
        return after

    life, (asked,) = begin(terms)
    return length(_key(life, Ledger(asked=type(asked))))


# --- The exploration itself ------------------------------------------------------------------


def test_the_exploration_meets_every_state_event_and_instruction() -> None:
    steps = steps_of(MOST)

    states = {step.before.state for step in steps} | {step.after.state for step in steps}
    asked = {type(instruction) for step in steps for instruction in step.instructions}
    assert states == set(State)
    assert {type(step.event) for step in steps} == {type(event) for event in EVENTS}
    releases = {AbortDecode, AbortPrefill, GiveBack, Judge, Blame, ForgetOutput, Fail, Finish}
    assert asked == releases | set(ASKS) - {AwaitTurn}
    assert begin(MOST)[1] == (AwaitTurn(),)


@all_terms
def test_exactly_the_events_of_the_table_are_taken(terms: Terms) -> None:
    for step in steps_of(terms):
        assert type(step.event) in LEGAL[step.before.state]
    for refusal in refusals_of(terms):
        assert type(refusal.event) not in LEGAL[refusal.life.state]


@all_terms
def test_a_request_can_be_ended_wherever_it_is(terms: Terms) -> None:
    steps = steps_of(terms)

    ended = {(step.before, type(step.event)) for step in steps if type(step.event) in ENDS}
    lives = {step.before for step in steps}

    assert ended == {(life, kind) for life in lives for kind in ENDS}


@all_terms
def test_nothing_comes_after_a_terminal_state(terms: Terms) -> None:
    for step in steps_of(terms):
        assert not step.before.state.is_terminal
    refused = {refusal.life.state for refusal in refusals_of(terms)}
    assert {step.after.state for step in steps_of(terms) if step.after.state.is_terminal} <= refused


@all_terms
def test_an_illegal_event_is_refused_with_the_whole_story(terms: Terms) -> None:
    for refusal in refusals_of(terms):
        name = type(refusal.event).__name__
        story = (*refusal.life.story, name)
        assert refusal.message == f"{name} in state {refusal.life.state.value}; story: {story}"


# --- One end ----------------------------------------------------------------------------------


@all_terms
def test_a_life_finishes_once_and_with_its_last_instruction(terms: Terms) -> None:
    for step in steps_of(terms):
        is_over = step.after.state.is_terminal
        assert step.held.finishes == int(is_over)
        assert isinstance(step.instructions[-1], Finish) == is_over


@all_terms
def test_the_finish_says_how_it_ended(terms: Terms) -> None:
    for step in steps_of(terms):
        last = step.instructions[-1]
        if isinstance(last, Finish):
            assert last.state is step.after.state
            assert (last.code == "ok") == (last.state is State.DONE)


@all_terms
def test_a_life_that_goes_on_waits_for_one_answer(terms: Terms) -> None:
    for step in steps_of(terms):
        asked = [order for order in step.instructions if isinstance(order, ASKS)]
        assert len(asked) == int(not step.after.state.is_terminal)
        assert asked == [] or step.instructions[-1] == asked[0]


@all_terms
def test_a_client_is_told_of_a_failure_once_and_only_of_a_failure(terms: Terms) -> None:
    for step in steps_of(terms):
        is_failure = step.after.state in {State.FAILED, State.REJECTED}
        assert step.held.failures_told == int(is_failure)
        if is_failure:
            *_, fail, finish = step.instructions
            assert isinstance(finish, Finish)
            assert fail == Fail(finish.code)


@all_terms
def test_only_a_request_that_never_had_a_placement_is_rejected(terms: Terms) -> None:
    for step in steps_of(terms):
        if isinstance(step.event, NoPlacement):
            was_placed = "Placed" in step.before.story
            assert (step.after.state is State.REJECTED) != was_placed


# --- Nothing is held for nobody ---------------------------------------------------------------


@all_terms
def test_only_what_is_held_is_aborted_or_given_back(terms: Terms) -> None:
    for step in steps_of(terms):
        held = step.held
        assert 0 <= held.prefill_jobs <= 1
        assert 0 <= held.decode_jobs <= 1
        assert 0 <= held.reservations <= 1


@all_terms
def test_no_attempt_leaves_work_behind(terms: Terms) -> None:
    between = {State.ADMITTED, State.MIGRATING}
    for step in steps_of(terms):
        held = step.held
        if step.after.state.is_terminal or step.after.state in between:
            assert (held.prefill_jobs, held.decode_jobs) == (0, 0)
        if step.after.state in between:
            assert held.reservations == 0


@all_terms
def test_a_life_knows_what_it_holds(terms: Terms) -> None:
    for step in steps_of(terms):
        assert step.after.has_segment == bool(step.held.prefill_jobs)
        assert step.after.has_stream == bool(step.held.decode_jobs)
        assert step.after.has_reservation == bool(step.held.reservations)


@all_terms
def test_what_is_held_is_let_go_before_anybody_is_waited_for(terms: Terms) -> None:
    """A verdict may wait for an answer; meanwhile nothing is held for an attempt that is over."""
    for step in steps_of(terms):
        kinds = [type(instruction) for instruction in step.instructions]
        if AskRetry in kinds:
            let_go = [at for at, kind in enumerate(kinds) if kind in {AbortDecode, AbortPrefill}]
            others = [at for at, kind in enumerate(kinds) if kind in {Judge, Blame, AskRetry}]
            assert max(let_go, default=-1) < min(others)


# --- Verdicts ---------------------------------------------------------------------------------


@all_terms
def test_only_workers_of_the_attempt_are_judged_or_blamed(terms: Terms) -> None:
    for step in steps_of(terms):
        for order in step.instructions:
            if isinstance(order, Judge | Blame):
                assert order.worker_id in {step.before.prefill_worker, step.before.decode_worker}


@all_terms
def test_no_worker_is_judged_for_what_somebody_outside_did(terms: Terms) -> None:
    for step in steps_of(terms):
        if type(step.event) in ENDS:
            assert not step.asks_for(Judge)
            assert not step.asks_for(Blame)


@all_terms
def test_an_attempt_that_made_a_token_speaks_for_both_workers(terms: Terms) -> None:
    for step in steps_of(terms):
        if isinstance(step.event, FirstToken):
            workers = (step.before.prefill_worker, step.before.decode_worker)
            assert step.instructions[:2] == tuple(Judge(worker, "ok") for worker in workers)


# --- Further attempts -------------------------------------------------------------------------


@all_terms
def test_only_a_round_without_a_candidate_forgets_who_was_excluded(terms: Terms) -> None:
    for step in steps_of(terms):
        before, after = step.before.excluded, step.after.excluded
        if isinstance(step.event, NoPlacement):
            assert after == () or step.after.state.is_terminal
        else:
            assert after[: len(before)] == before


@all_terms
def test_every_further_attempt_leaves_out_one_more_worker(terms: Terms) -> None:
    for step in steps_of(terms):
        if step.asks_for(AskRetry) and not isinstance(step.event, NoPlacement):
            assert len(step.after.excluded) == len(step.before.excluded) + 1


@all_terms
def test_a_pause_is_made_when_everybody_was_tried_and_only_then(terms: Terms) -> None:
    for step in steps_of(terms):
        last = step.instructions[-1]
        if isinstance(last, AskRetry):
            assert last.after_pause == isinstance(step.event, NoPlacement)


@all_terms
def test_every_further_attempt_is_asked_for_and_counted(terms: Terms) -> None:
    for step in steps_of(terms):
        before, after = step.before, step.after
        if not step.asks_for(AskRetry):
            assert (after.attempts_left, after.migrations_left) == (
                before.attempts_left,
                before.migrations_left,
            )
        elif after.migrations_left < before.migrations_left:
            assert after.migrations_left == before.migrations_left - 1
            assert after.attempts_left == terms.attempts_max
        else:
            assert after.attempts_left == before.attempts_left - 1
        assert after.attempts_left >= 0
        assert after.migrations_left >= 0


@all_terms
def test_a_decision_follows_a_grant_and_knows_all_who_failed(terms: Terms) -> None:
    for step in steps_of(terms):
        last = step.instructions[-1]
        if isinstance(last, Decide):
            assert isinstance(step.event, RetryGranted | TurnCame)
            assert last.excluded == step.after.excluded


@all_terms
def test_a_life_ends_within_a_bounded_number_of_events(terms: Terms) -> None:
    """The longest one fails as late as it can, each time."""
    # Placed, Reserved, PrefillAccepted, FirstToken and the end.
    whole = 5
    # A failure before the first token takes four, and the next attempt is granted. An answer that
    # nobody has seen may be begun anew even after its first token.
    failed = 5 if terms.is_stream else 6
    migrated = terms.migrations_max if terms.can_resume else 0
    epoch = terms.attempts_max * failed

    assert longest(terms) == terms.can_wait + migrated * (epoch + whole + 1) + epoch + whole


# --- Output -----------------------------------------------------------------------------------


@all_terms
def test_output_is_never_lost_but_where_it_is_forgotten(terms: Terms) -> None:
    for step in steps_of(terms):
        if step.before.has_output and not step.after.has_output:
            assert step.asks_for(ForgetOutput)
            assert not terms.is_stream
        if step.asks_for(ForgetOutput):
            assert not step.after.has_output


@all_terms
def test_a_client_that_has_seen_tokens_never_sees_another_beginning(terms: Terms) -> None:
    for step in steps_of(terms):
        if step.held.has_shown and not step.after.state.is_terminal:
            assert step.after.has_output or step.after.state is State.DECODING
        if step.held.has_shown and step.asks_for(AskRetry):
            assert terms.can_resume
            assert step.after.state is State.MIGRATING


@all_terms
def test_only_tokens_that_are_known_go_on_elsewhere(terms: Terms) -> None:
    for step in steps_of(terms):
        if step.after.migrations_left < step.before.migrations_left:
            assert step.before.state is State.DECODING
            assert step.before.has_tokens
            assert terms.can_resume


@all_terms
def test_nothing_is_relayed_after_the_end(terms: Terms) -> None:
    for step in steps_of(terms):
        if step.asks_for(Relay):
            assert step.after.state is State.DECODING
            assert isinstance(step.event, FirstToken)


@all_terms
def test_migrating_is_where_there_is_output_and_admitted_where_there_is_none(terms: Terms) -> None:
    for step in steps_of(terms):
        if step.after.state is State.MIGRATING:
            assert step.after.has_output
        if step.after.state is State.ADMITTED:
            assert not step.after.has_output
