from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

import pytest
from builders import a_request, a_view, a_worker

from controlplane.domain.cluster import ClusterView, WorkerView
from controlplane.domain.decision import Decision, RequestFeatures
from policies.api import Filter, Picker
from policies.filters import Rejection
from policies.plugins import highest
from policies.scored import Weighed, place_scored


@dataclass(frozen=True)
class Says:
    """A scorer that says of each worker what it is told to."""

    scores: dict[str, float]
    name: str = "says"

    def __call__(self, request: RequestFeatures, worker: WorkerView, view: ClusterView) -> float:
        del request, view
        return self.scores[worker.worker_id]


@dataclass(frozen=True)
class Keeps:
    """A filter that keeps out whom it is told to, and fails as it is told to."""

    out: Callable[[str], bool]
    is_safety: bool = True
    name: str = "keeps"

    def __call__(
        self, request: RequestFeatures, worker: WorkerView, view: ClusterView
    ) -> Rejection | None:
        del request, view
        return Rejection("filter", "not this one") if self.out(worker.worker_id) else None


@dataclass(frozen=True)
class Picks:
    """A picker that picks what it is told to; nothing makes it fail."""

    place: int | None

    def __call__(self, scores: Sequence[float], rng: Random) -> int:
        del scores, rng
        if self.place is None:
            raise ZeroDivisionError
        return self.place


def fails(worker_id: str) -> bool:
    raise ZeroDivisionError(worker_id)


def fails_for_p1(worker_id: str) -> bool:
    return fails(worker_id) if worker_id == "west/p1" else False


def decide(
    *scorers: tuple[dict[str, float], float],
    filters: Sequence[Filter] = (),
    picker: Picker = highest,
    seed: int = 0,
) -> Decision:
    view = a_view(a_worker("west/d1"), a_worker("west/p1"), a_worker("west/p2"))
    weighed = [
        Weighed(Says(scores, f"s{number}"), weight)
        for number, (scores, weight) in enumerate(scorers)
    ]
    return place_scored(
        a_request(), view, Random(seed), scorers=weighed, filters=filters, picker=picker
    )


def prefill_worker(decision: Decision) -> str | None:
    return decision.placement.prefill_worker if decision.placement else None


EVEN = ({"west/p1": 0.5, "west/p2": 0.5}, 1.0)


@pytest.mark.parametrize(
    ("weights", "winner"),
    [
        pytest.param((1.0, 1.0), "west/p1", id="equal"),
        pytest.param((1.0, 3.0), "west/p2", id="not"),
    ],
)
def test_the_weighted_sum_of_opinions_decides(weights: tuple[float, float], winner: str) -> None:
    decision = decide(
        ({"west/p1": 0.9, "west/p2": 0.2}, weights[0]),
        ({"west/p1": 0.3, "west/p2": 0.6}, weights[1]),
    )

    assert prefill_worker(decision) == winner


def test_each_opinion_is_in_the_record() -> None:
    decision = decide(({"west/p1": 0.9, "west/p2": 0.2}, 2.0))

    terms = {
        one.worker_id: [(term.name, term.amount, term.unit, term.weighed_s) for term in it.costs]
        for one in decision.candidates
        if (it := one.prediction) is not None
    }
    assert terms == {
        "west/p1": [("s0", 0.9, "score", 1.8)],
        "west/p2": [("s0", 0.2, "score", 0.4)],
    }
    assert decision.explanation == (
        "west/p1 scores 1.800 (s0 0.90), the highest of 2 scores is 1.800"
    )
    assert decision.plugin_failures == {}


def test_equal_sums_are_decided_by_chance() -> None:
    assert {prefill_worker(decide(EVEN, seed=seed)) for seed in range(20)} == {"west/p1", "west/p2"}


@pytest.mark.parametrize(
    ("score", "counted_as"),
    [(1.5, 1.0), (-3.0, 0.0), (float("nan"), 0.0), (float("inf"), 1.0)],
    ids=str,
)
def test_a_score_out_of_range_is_clamped_and_counted(score: float, counted_as: float) -> None:
    decision = decide(({"west/p1": score, "west/p2": 0.5}, 1.0))

    found = next(one.prediction for one in decision.candidates if one.worker_id == "west/p1")
    assert found is not None
    assert found.costs[0].amount == counted_as
    assert decision.plugin_failures == {"s0": 1}
    assert decision.explanation.endswith(f"; s0 failed 1 times ({score:g} is not from 0 to 1)")


def test_a_scorer_that_fails_is_passed_over_and_named() -> None:
    decision = decide(({}, 1.0), ({"west/p1": 0.1, "west/p2": 0.2}, 1.0))

    assert prefill_worker(decision) == "west/p2"
    assert decision.plugin_failures == {"s0": 2}
    assert decision.explanation.endswith("; s0 failed 2 times (KeyError)")


def test_a_filter_keeps_workers_out() -> None:
    decision = decide(EVEN, filters=[Keeps(lambda name: name == "west/p1")])

    out = next(one for one in decision.candidates if one.worker_id == "west/p1")
    assert (out.rejected_by, out.detail) == ("filter", "not this one")
    assert prefill_worker(decision) == "west/p2"


def test_a_filter_is_asked_of_decode_workers_too() -> None:
    decision = decide(EVEN, filters=[Keeps(lambda name: name == "west/d1")])

    assert decision.placement is None
    assert decision.explanation == "no decode worker can take it (1 filter)"


def test_a_safety_filter_that_fails_keeps_the_worker_out() -> None:
    decision = decide(EVEN, filters=[Keeps(fails_for_p1)])

    out = next(one for one in decision.candidates if one.worker_id == "west/p1")
    assert (out.rejected_by, out.detail) == ("filter", "keeps could not look at it")
    assert prefill_worker(decision) == "west/p2"
    assert decision.plugin_failures == {"keeps": 1}


def test_a_safety_filter_that_always_fails_lets_nothing_pass() -> None:
    decision = decide(EVEN, filters=[Keeps(fails)])

    assert decision.placement is None
    assert decision.explanation == (
        "no prefill worker can take it (2 filter); no decode worker can take it (1 filter); "
        "keeps failed 3 times (ZeroDivisionError)"
    )


def test_a_preference_that_fails_lets_everything_pass() -> None:
    decision = decide(EVEN, filters=[Keeps(fails, is_safety=False)])

    assert decision.placement is not None
    assert decision.plugin_failures == {"keeps": 3}


@pytest.mark.parametrize(
    ("picker", "failure"),
    [
        pytest.param(Picks(None), "ZeroDivisionError", id="it raises"),
        pytest.param(Picks(2), "2 of 2", id="behind the last"),
        pytest.param(Picks(-1), "-1 of 2", id="before the first"),
    ],
)
def test_a_picker_that_fails_leaves_the_highest_score(picker: Picker, failure: str) -> None:
    decision = decide(({"west/p1": 0.1, "west/p2": 0.2}, 1.0), picker=picker)

    assert prefill_worker(decision) == "west/p2"
    assert decision.explanation.endswith(f"; picker failed 1 times ({failure})")


def test_a_picker_need_not_take_the_highest() -> None:
    decision = decide(({"west/p1": 0.1, "west/p2": 0.2}, 1.0), picker=Picks(0))

    assert prefill_worker(decision) == "west/p1"
    assert "scores 0.100" in decision.explanation
