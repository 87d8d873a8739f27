"""Ours: the placement with the least predicted cost, for this request and for those to come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Annotated, ClassVar, Final

from pydantic import Field

from controlplane.domain.cluster import ClusterView, WorkerView
from controlplane.domain.decision import Candidate, Decision, Reason, RequestFeatures
from policies.api import Parameters
from policies.copies import copy_sources, with_best_copy
from policies.costs import Costed, Coster, Weights, total_s
from policies.decode_sites import other_sites, seen_from
from policies.objectives import Objective
from policies.pipeline import Choice, Option, place
from policies.search import best_of_sites

#: Placements whose terms a record keeps: the cheapest.
_EXPLAINED_MAX: Final = 8


class LookaheadParameters(Parameters):
    """Parameters of `lookahead`."""

    #: How much the plan's shadow prices count; 0 is predicted TTFT and money alone.
    price_weight: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] = 1.0
    #: Seconds of TTFT that a unit of the fleet's currency is worth.
    s_per_currency: Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)] = 10.0
    #: Cached prefixes may be copied over links that are not scarce.
    copies: bool = True
    #: Leaving the decode worker's datacenter has to save more than this part of the cost of staying:
    #: predictions of a link are less certain than those of the network at home.
    margin_share: Annotated[float, Field(ge=0, lt=1)] = 0.02
    #: Nothing heard for longer: queues may have moved on as far as the view is old, and placements
    #: within that of the best share the work by chance, so that routers do not all choose the same.
    stale_s: Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)] = 0.5
    #: Objective of TTFT for requests without a deadline of their own: those that cannot be within it
    #: are kept out of the way of those that can. None: each is as early as it can be.
    ttft_slo_s: Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)] | None = None
    #: No worker with a longer queue gets those requests, while another has a shorter one.
    ttft_late_s: Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)] = 60.0


class LookaheadPolicy:
    """
    The least of predicted TTFT, shadow prices and money, among placements that meet the deadline.

    The prices keep it from filling the fastest pool with requests that would be nearly as fast
    elsewhere; far below saturation, and without a plan, they are 0 and the least TTFT decides.

    Source:
        PrfaaS (arXiv 2604.15039) section 3.4 has the throughput model that the prices come from; the
        policy is ours (docs/policies.md, "lookahead").
    """

    name: ClassVar[str] = "lookahead"
    parameters_model: ClassVar[type[Parameters]] = LookaheadParameters

    def __init__(self, parameters: LookaheadParameters) -> None:
        self._parameters = parameters
        self._weights = Weights(parameters.price_weight, parameters.s_per_currency)

    def decide(self, request: RequestFeatures, view: ClusterView, rng: Random) -> Decision:
        """Where to prefill and where to decode, and why. Pure."""
        best = self._decided(request, view, view, rng)
        for site in other_sites(best, view):
            other = self._decided(request, view, seen_from(site, view), rng)
            if self._is_better(other, best, view.home_datacenter):
                best = other
        return best

    def _is_better(self, other: Decision, best: Decision, home: str) -> bool:
        """Whether decoding elsewhere saves enough; leaving home has to save more than a margin."""
        if other.prediction is None or best.prediction is None or best.placement is None:
            return False
        if best.reason != other.reason:
            return best.reason != "least_cost"
        is_at_home = best.placement.decode_datacenter == home
        margin = self._parameters.margin_share if is_at_home else 0.0
        return total_s(other.prediction) < (1 - margin) * total_s(best.prediction)

    def _decided(
        self, request: RequestFeatures, view: ClusterView, seen: ClusterView, rng: Random
    ) -> Decision:
        """The best with decode near the home of `seen`, costed from where the router is."""
        # The pipeline discounts hits of an old view for its predictions; so does the rule.
        trusted = request.discounted(view.prefix_trust)

        def rule(options: Sequence[Option], decode: WorkerView) -> Choice:
            ranked = self._costed(options, trusted, view, decode)
            best = _Bests(self._parameters, decode.datacenter, view.age_s, rng)
            if objective is not None:
                return _within(ranked, objective, best, seen, decode)
            return _choose(ranked, request.ttft_deadline_s, best)

        objective = self._objective(request)
        nominate = best_of_sites if objective is None else objective.nominate
        decision = place(request, seen, rng, rule, nominate=nominate)
        return _marked(decision, request.ttft_deadline_s)

    def _objective(self, request: RequestFeatures) -> Objective | None:
        """The operator's; a client's own deadline goes before it."""
        ttft_s = self._parameters.ttft_slo_s
        if ttft_s is None or request.ttft_deadline_s is not None:
            return None
        return Objective(ttft_s, self._parameters.ttft_late_s)

    def _costed(
        self,
        options: Sequence[Option],
        request: RequestFeatures,
        view: ClusterView,
        decode: WorkerView,
    ) -> list[Costed]:
        """Each option as it is or with a copied prefix, whichever costs less; the cheapest first."""
        coster = Coster(request, view, decode, self._weights)
        sources = copy_sources(request, view) if self._parameters.copies else {}
        found: list[Costed] = []
        for option in options:
            best = coster.costed(option)
            copied = with_best_copy(option, request, view, decode, sources)
            if copied is not None:
                with_copy = coster.costed(copied)
                best = with_copy if with_copy.cost_s < best.cost_s else best
            found.append(best)
        return sorted(found, key=lambda one: one.rank)


@dataclass(frozen=True, slots=True)
class _Bests:
    """Picks among placements in order of cost."""

    parameters: LookaheadParameters
    #: Where it is decoded.
    home: str
    #: Of the view, seconds.
    age_s: float
    rng: Random

    def of(self, ranked: Sequence[Costed]) -> Costed:
        """The cheapest, home if that is nearly as cheap, or one of several that may be it by now."""
        first = ranked[0]
        local = next((one for one in ranked if one.site == self.home), first)
        saved_s = local.cost_s - first.cost_s
        best = local if saved_s <= self.parameters.margin_share * local.cost_s else first
        if self.age_s <= self.parameters.stale_s:
            return best
        tied = [one for one in ranked if one is best or self._least_s(one) <= best.cost_s]
        return tied[self.rng.randrange(len(tied))] if len(tied) > 1 else best

    def _least_s(self, one: Costed) -> float:
        """What it may cost by now: a queue gets shorter by a second in each."""
        return one.cost_s - min(one.option.prediction.queue_s, self.age_s)


def _choose(ranked: Sequence[Costed], deadline_s: float | None, best: _Bests) -> Choice:
    """The best placement that meets the deadline, or the least late one."""
    if deadline_s is None:
        able = ranked
    else:
        able = [one for one in ranked if one.option.prediction.ttft_s <= deadline_s]
        if not able:
            return _too_late(ranked, deadline_s)
    winner = best.of(able)
    said = _said(winner, able, deadline_s, missed=len(ranked) - len(able))
    return _chosen(winner, ranked, "least_cost", said)


def _within(
    ranked: Sequence[Costed],
    objective: Objective,
    best: _Bests,
    view: ClusterView,
    decode: WorkerView,
) -> Choice:
    """The best placement within the objective, or the one that takes least from those within it."""
    if any(one.option.prediction.ttft_s <= objective.ttft_s for one in ranked):
        return _choose(ranked, objective.ttft_s, best)
    winner, taken_s = objective.least_taken(ranked, view, decode)
    said = (
        f"no placement is predicted within the objective of {objective.ttft_s:g} s: "
        f"{winner.option.worker.worker_id}, with {winner.option.prediction.queue_s:.3f} s before it, "
        f"takes {taken_s:.3f} s from others"
    )
    return _chosen(winner, ranked, "objective_unreachable", said)


def _chosen(winner: Costed, ranked: Sequence[Costed], reason: Reason, explanation: str) -> Choice:
    """The choice of one placement, with the terms of those that came near it."""
    near = [one for one in ranked if one is not winner][: _EXPLAINED_MAX - 1]
    option = winner.explained()
    return Choice(
        preferred=[option],
        reason=reason,
        explanation=explanation,
        costed=[option, *(one.explained() for one in near)],
    )


def _too_late(ranked: Sequence[Costed], deadline_s: float) -> Choice:
    """No placement meets the deadline: the least late one, whatever it costs."""
    best = min(ranked, key=lambda one: (one.option.prediction.ttft_s, one.rank))
    said = (
        f"no placement is predicted within {deadline_s:g} s: the earliest is "
        f"{best.site} with {best.option.prediction.ttft_s:.3f} s"
    )
    return _chosen(best, ranked, "deadline_unreachable", said)


def _said(winner: Costed, ranked: Sequence[Costed], deadline_s: float | None, missed: int) -> str:
    """The choice in words: what it costs and of what, and what the next one would."""
    option = winner.option
    parts = [_term(*term) for term in winner.terms]
    said = f"{winner.site} costs {winner.cost_s:.3f} s ({', '.join(parts)})"
    if option.copy_from_worker is not None:
        said += f", with {option.copy_tokens} tokens copied from {option.copy_from_worker}"
    other = next((one for one in ranked if one is not winner), None)
    if other is not None:
        said += f"; {other.site} would cost {other.cost_s:.3f} s"
    if missed:
        said += f"; {missed} would miss the deadline of {deadline_s:g} s"
    return said


def _term(name: str, amount: float, unit: str, weighed_s: float) -> str:
    money = f" for {amount:.3g}" if unit == "currency" else ""
    return f"{name} {weighed_s:.3f} s{money}"


def _marked(decision: Decision, deadline_s: float | None) -> Decision:
    """The decision, its candidates that miss a deadline which others meet marked as rejected."""
    if deadline_s is None or decision.reason != "least_cost":
        return decision
    candidates = tuple(_in_time(one, deadline_s) for one in decision.candidates)
    if candidates == decision.candidates:
        return decision
    return replace(decision, candidates=candidates, margin_s=_margin_s(decision, candidates))


def _margin_s(decision: Decision, candidates: Sequence[Candidate]) -> float | None:
    """Seconds by which the next best that meets the deadline is worse; None if there is none."""
    assert decision.placement is not None, "something was chosen"
    assert decision.prediction is not None, "something was chosen"
    winner = decision.placement.prefill_worker
    others = [
        one.prediction.ttft_s for one in candidates if one.prediction and one.worker_id != winner
    ]
    return min(others) - decision.prediction.ttft_s if others else None


def _in_time(candidate: Candidate, deadline_s: float) -> Candidate:
    it = candidate.prediction
    if it is None or it.ttft_s <= deadline_s:
        return candidate
    return replace(
        candidate,
        rejected_by="over_deadline",
        detail=f"predicted {it.ttft_s:.3f} s, asked for within {deadline_s:g} s",
        prediction=None,
    )
