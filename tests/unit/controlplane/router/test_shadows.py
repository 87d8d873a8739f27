from __future__ import annotations

import threading
from collections.abc import Callable

from builders import a_request, a_view
from policy_builders import ScriptedPolicy, a_broken_policy, a_hanging_policy, a_named_policy
from router_builders import a_router

from controlplane.observe.metrics import RouterMetrics
from controlplane.router.asking import NamedPolicy, ask
from controlplane.router.shadows import (
    InlineRunner,
    Question,
    Runner,
    ShadowDecision,
    Shadows,
    ThreadRunner,
)

#: A thread that has not answered by then never will.
PATIENCE_S = 20.0


class Hours:
    """A clock, and what a thread has spent, both set by hand."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.spent_s = 0.0


def some_shadows(
    *policies: NamedPolicy, runner: Runner | None = None, hours: Hours | None = None
) -> Shadows:
    hours = hours or Hours()
    shadows = Shadows(
        RouterMetrics(),
        runner or InlineRunner(),
        clock=lambda: hours.now_s,
        spent=lambda: hours.spent_s,
    )
    shadows.use(policies)
    return shadows


def a_question(seed: int = 1, policy: str = "local_only") -> Question:
    features, view = a_request(), a_view()
    decision = ask(a_named_policy(policy).policy, features, view, seed)
    return Question(features, view, seed, decision)


def answers(shadows: Shadows, question: Question) -> tuple[ShadowDecision, ...]:
    return shadows.answers(question.features.request_id, question.seed)


def scripted(act: Callable[[], None]) -> NamedPolicy:
    """Decides as `local_only` after it has done something."""

    def decide(request: object, view: object) -> object:
        act()
        return ask(a_named_policy().policy, request, view, 1)  # type: ignore[arg-type]

    return NamedPolicy(ScriptedPolicy(decide), {})


def test_a_shadow_says_what_it_would_have_done_on_the_same_view() -> None:
    shadows = some_shadows(a_named_policy(), a_named_policy("prfaas", threshold_tokens=0))
    question = a_question()

    shadows.watch(question)

    same, other = answers(shadows, question)
    assert (same.policy, same.is_same) == ("local_only", True)
    assert (other.policy, other.is_same) == ("prfaas", False)
    assert other.parameters == {"threshold_tokens": 0}
    assert other.placement is not None
    assert other.placement.prefill_datacenter == "east"


def test_answers_are_given_once() -> None:
    shadows, question = some_shadows(a_named_policy()), a_question()
    shadows.watch(question)

    assert len(answers(shadows, question)) == 1
    assert answers(shadows, question) == ()


def test_what_a_shadow_raises_is_its_answer() -> None:
    shadows, question = some_shadows(NamedPolicy(a_broken_policy(), {})), a_question()

    shadows.watch(question)

    (answer,) = answers(shadows, question)
    assert answer.placement is None
    assert answer.fault is not None
    assert "ZeroDivisionError" in answer.fault


def test_shadows_that_have_used_up_their_part_of_a_core_are_skipped_until_it_is_back() -> None:
    hours = Hours()

    def spend() -> None:
        hours.spent_s += 0.6

    shadows = some_shadows(scripted(spend), hours=hours)
    for seed in range(2):
        shadows.watch(a_question(seed))
    hours.now_s = 2.0
    shadows.watch(a_question(2))

    faults = [answers(shadows, a_question(seed))[0].fault for seed in range(3)]
    assert faults == [None, "skipped: shadows have used up their time", None]


def test_answers_nobody_asks_for_are_forgotten() -> None:
    shadows = some_shadows(a_named_policy())
    for seed in range(5000):
        shadows.watch(a_question(seed) if seed in {0, 4999} else another(seed))

    assert answers(shadows, a_question(0)) == ()
    assert len(answers(shadows, a_question(4999))) == 1


def another(seed: int) -> Question:
    """The same question with another seed."""
    return Question(_BASE.features, _BASE.view, seed, _BASE.decision)


_BASE = a_question()


def test_a_thread_answers_while_its_caller_goes_on() -> None:
    gate, done = threading.Event(), threading.Event()

    def wait() -> None:
        assert gate.wait(PATIENCE_S)

    runner = ThreadRunner(hang_s=PATIENCE_S)
    shadows, question = some_shadows(scripted(wait), runner=runner), a_question()
    shadows.watch(question)
    assert runner.submit(done.set)

    gate.set()
    assert done.wait(PATIENCE_S)
    assert [answer.is_same for answer in answers(shadows, question)] == [True]
    shadows.close()


def test_a_full_queue_skips_and_never_waits() -> None:
    gate = threading.Event()
    runner = ThreadRunner(hang_s=PATIENCE_S)
    shadows = some_shadows(scripted(lambda: assert_true(gate.wait(PATIENCE_S))), runner=runner)
    for seed in range(100):
        shadows.watch(another(seed))

    skipped = [bool(answers(shadows, another(seed))) for seed in range(100)]
    assert 100 - 66 <= sum(skipped) <= 100 - 64
    gate.set()
    shadows.close()


def assert_true(value: object) -> None:
    assert value


def test_a_shadow_that_hangs_is_stopped_and_asked_no_more() -> None:
    done = threading.Event()
    runner = ThreadRunner(hang_s=0.05)
    shadows = some_shadows(NamedPolicy(a_hanging_policy(), {}), runner=runner)
    first, second = another(1), another(2)

    shadows.watch(first)
    assert runner.submit(done.set)
    assert done.wait(PATIENCE_S), "the thread still hangs"
    shadows.watch(second)

    for question in (first, second):
        (answer,) = answers(shadows, question)
        assert answer.fault == "stopped: it did not answer in time"
    shadows.close()


async def test_a_record_holds_what_shadows_would_have_done() -> None:
    async with a_router() as router:
        router.services.shadows.use([a_named_policy(), NamedPolicy(a_broken_policy(), {})])

        await router.serve()

        record = await router.record()
        local, broken = record.attempts[0].shadows
        assert (local.policy, local.is_same) == ("local_only", False)
        assert broken.fault is not None
        assert record.outcome == "done"
