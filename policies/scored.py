"""Placement by filters, scorers and a picker: for policies that weigh opinions on single workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

from controlplane.domain.cluster import ClusterView, WorkerView
from controlplane.domain.decision import CostTerm, Decision, RequestFeatures
from policies.api import Filter, Picker, Scorer
from policies.filters import Rejection
from policies.pipeline import Choice, Option, place
from policies.plugins import Failures, highest, picked, scored, sifted
from policies.search import Feasible


@dataclass(frozen=True, slots=True)
class Weighed:
    """A scorer and how much its opinion counts."""

    scorer: Scorer
    #: >= 0.
    weight: float


def place_scored(
    request: RequestFeatures,
    view: ClusterView,
    rng: Random,
    *,
    scorers: Sequence[Weighed],
    filters: Sequence[Filter] = (),
    picker: Picker = highest,
) -> Decision:
    """
    Place a request where the weighted sum of opinions is highest, or where the picker says.

    Filters are asked of every worker, which takes a millisecond for a thousand; scorers only of those
    that are worth a look: the least busy of each pool, and those with cached prefixes. Each opinion is
    in the record, as a term of the candidate's prediction.

    Args:
        request: What has to be placed.
        view: The cluster.
        rng: Breaks ties.
        scorers: At least one.
        filters: Of the policy's own, after those of the pipeline.
        picker: Chooses by the sums.
    """
    trusted, failures = request.discounted(view.prefix_trust), Failures()

    def sift(worker: WorkerView) -> Rejection | None:
        return sifted(filters, trusted, worker, view, failures)

    def nominate(feasible: Feasible, rng: Random) -> Sequence[WorkerView]:
        return list(feasible.looked_at(rng))

    def rule(options: Sequence[Option], decode: WorkerView) -> Choice:
        del decode
        judged = [_judged(scorers, trusted, option, view, failures) for option in options]
        sums = [sum(term.weighed_s for term in one.prediction.costs) for one in judged]
        at = picked(picker, sums, rng, failures)
        opinions = ", ".join(
            f"{term.name} {term.amount:.2f}" for term in judged[at].prediction.costs
        )
        return Choice(
            preferred=[judged[at]],
            reason="own_rule",
            explanation=(
                f"{judged[at].worker.worker_id} scores {sums[at]:.3f} ({opinions}), "
                f"the highest of {len(sums)} scores is {max(sums):.3f}"
            ),
            costed=judged,
        )

    decision = place(request, view, rng, rule, nominate=nominate, sift=sift if filters else None)
    if not failures.counts:
        return decision
    return replace(
        decision,
        explanation=f"{decision.explanation}; {failures.said()}",
        plugin_failures=dict(sorted(failures.counts.items())),
    )


def _judged(
    scorers: Sequence[Weighed],
    request: RequestFeatures,
    option: Option,
    view: ClusterView,
    failures: Failures,
) -> Option:
    terms = []
    for one in scorers:
        score = scored(one.scorer, request, option.worker, view, failures)
        name, sum_part = one.scorer.name, score * one.weight
        terms.append(CostTerm(name=name, amount=score, unit="score", weighed_s=sum_part))
    return replace(option, prediction=replace(option.prediction, costs=tuple(terms)))
