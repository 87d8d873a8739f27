"""
The steps all built-in policies share: filter, choose a decode worker, cost prefill workers, pick.

The choice is made on two levels. A policy's rule sees one option for each datacenter, the best worker
there, and says which datacenters it prefers; whom to nominate inside a datacenter is the other
level, and a policy can bring its own answer to that too. What is looked at does not grow with the
number of workers: see `policies/search.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import TypeAlias

from controlplane.domain.cluster import ClusterView, WorkerView
from controlplane.domain.decision import (
    Candidate,
    Decision,
    Placement,
    Prediction,
    Reason,
    RequestFeatures,
    Told,
)
from controlplane.domain.estimate import predict
from controlplane.domain.sites import share_of
from policies.explain import Case, explained, nothing
from policies.filters import cannot_be_fed, cannot_hand_over, unwise_offloads
from policies.search import Feasible, best_of_sites, find_holders, looks, pick_decode
from policies.survey import Group, Sift, survey


@dataclass(frozen=True, slots=True)
class Option:
    """
    The best prefill worker of a datacenter, with its predicted cost.

    A rule may answer with options of its own making: with another prediction, whose terms say what
    it compares, or with a prefix that is copied first.
    """

    worker: WorkerView
    prediction: Prediction
    #: Fewest tokens that any worker of its datacenter would have to compute; None: what it would.
    uncached_tokens_min: int | None = None
    #: Prefill workers of its datacenter that could take the request, and of all.
    workers: int = 1
    workers_everywhere: int = 1
    #: Worker whose cached prefix it copies before it computes, and how much of it.
    copy_from_worker: str | None = None
    copy_tokens: int = 0

    @property
    def fewest_uncached_tokens(self) -> int:
        """Tokens left to compute with the best cache of its datacenter."""
        fewest = self.uncached_tokens_min
        return self.prediction.uncached_tokens if fewest is None else fewest


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A rule's answer: among whom to pick, and why."""

    #: At least one of the options.
    preferred: Sequence[Option]
    reason: Reason
    explanation: str
    #: All options as the rule costed them, for the record; empty when it took them as they are.
    costed: Sequence[Option] = ()


#: A policy's own rule. Gets the options (at least one, sorted by worker) and the decode worker.
Rule: TypeAlias = Callable[[Sequence[Option], WorkerView], Choice]

#: Whom to make options of, one at least; `best_of_sites` unless the policy says otherwise.
Nominate: TypeAlias = Callable[[Feasible, Random], Sequence[WorkerView]]


def place(
    request: RequestFeatures,
    view: ClusterView,
    rng: Random,
    rule: Rule,
    *,
    nominate: Nominate = best_of_sites,
    sift: Sift | None = None,
) -> Decision:
    """
    Run the pipeline: one decision, with the workers that matter to it explained when they are asked.

    Args:
        request: What has to be placed.
        view: The cluster.
        rng: Breaks ties.
        rule: Says which options it prefers, and why.
        nominate: Which worker of each datacenter is an option.
        sift: Keeps workers out one by one, of both roles; it is asked of every worker.
    """
    request = request.discounted(view.prefix_trust)
    groups = survey(request, view, sift)
    prefills = [group for group in groups if group.kind.role == "prefill"]
    decodes = [group for group in groups if group.kind.role == "decode"]
    _bar_the_unfed(decodes, prefills, view)
    find_holders(request, view, groups)
    decode = pick_decode(request, view, decodes, rng)
    if decode is not None:
        _bar_what_cannot_hand_over(prefills, decode, view)
    able = [group for group in prefills if group.is_feasible]
    if decode is None or not able:
        case = Case(request=request, view=view, prefills=prefills, decodes=decodes, decode=decode)
        return nothing(case)
    feasible = Feasible(request, view, decode, able, looks(view, len(able)))
    options = _options(feasible, nominate(feasible, rng))
    choice = rule(options, decode)
    winner = _picked(choice.preferred, rng)
    costed = [*options, *choice.costed, winner]
    case = Case(
        request=request,
        view=view,
        prefills=prefills,
        decodes=decodes,
        decode=decode,
        prefill=winner.worker,
        costed={one.worker.worker_id: (one.worker, one.prediction) for one in costed},
    )
    return Decision.explained_later(
        Placement(
            prefill_worker=winner.worker.worker_id,
            prefill_datacenter=winner.worker.datacenter,
            decode_worker=decode.worker_id,
            decode_datacenter=decode.datacenter,
            copy_from_worker=winner.copy_from_worker,
            copy_tokens=winner.copy_tokens,
        ),
        choice.reason,
        choice.explanation,
        winner.prediction,
        partial(_told, case, winner),
    )


def sides(options: Sequence[Option], decode: WorkerView) -> tuple[list[Option], list[Option]]:
    """Options in the decode worker's datacenter, and those elsewhere."""
    home = decode.datacenter
    local = [option for option in options if option.worker.datacenter == home]
    return local, [option for option in options if option.worker.datacenter != home]


def _bar_the_unfed(decodes: Sequence[Group], prefills: Sequence[Group], view: ClusterView) -> None:
    """Keep decode workers out that no prefill worker can hand over to."""
    able = [group for group in prefills if group.is_feasible]
    # Most have one beside them, and no link has to be looked up.
    near = {(group.datacenter, group.pool.kind.fingerprint) for group in able}
    for group in decodes:
        if group.is_feasible and (group.datacenter, group.pool.kind.fingerprint) not in near:
            feeders = [(one.by_load[0], len(one.by_load)) for one in able]
            group.bar(cannot_be_fed(group.by_load[0], feeders, view))


def _bar_what_cannot_hand_over(
    prefills: Sequence[Group], decode: WorkerView, view: ClusterView
) -> None:
    """Keep prefill workers out whose KV cannot, or should not, get to the decode worker."""
    home, fingerprint = decode.datacenter, decode.fingerprint
    is_any_down = False
    for group in prefills:
        link = None if group.datacenter == home else view.link(group.datacenter, home)
        is_any_down = is_any_down or (link is not None and link.is_down)
        fits = group.pool.kind.fingerprint == fingerprint
        if not (fits and (link is not None or group.datacenter == home)) and group.is_feasible:
            group.bar(cannot_hand_over(group.by_load[0], decode, view))
    if view.mode == "normal" and not is_any_down:
        return
    able: list[WorkerView] = []
    for group in prefills:
        if group.is_feasible:
            is_home = group.datacenter == decode.datacenter
            able.extend(group.by_load if is_home else group.by_load[:1])
    unwise = unwise_offloads(able, decode, view)
    for group in prefills:
        if group.datacenter in unwise and group.is_feasible:
            group.bar(unwise[group.datacenter])


def _options(feasible: Feasible, nominated: Sequence[WorkerView]) -> list[Option]:
    workers = {worker.worker_id: worker for worker in nominated}
    sites, everywhere = feasible.by_site(), len(feasible)
    options = []
    for _, worker in sorted(workers.items()):
        count, fewest = sites[worker.datacenter]
        prediction = predict(feasible.request, worker, feasible.decode, feasible.view)
        options.append(Option(worker, prediction, fewest, count, everywhere))
    return options


def _picked(preferred: Sequence[Option], rng: Random) -> Option:
    """The cheapest of the preferred for its share; equals by chance."""
    costs = [one.prediction.ttft_s / share_of(one.worker) for one in preferred]
    best = min(costs)
    tied = [one for one, cost in zip(preferred, costs, strict=True) if cost == best]
    return tied[rng.randrange(len(tied))] if len(tied) > 1 else tied[0]


def _told(case: Case, winner: Option) -> Told:
    """The candidates of a decision that was made."""
    kept, omitted = explained(case)
    return kept, omitted, _margin_s(winner, kept)


def _margin_s(winner: Option, candidates: Sequence[Candidate]) -> float | None:
    others = [
        one.prediction.ttft_s
        for one in candidates
        if one.prediction is not None and one.worker_id != winner.worker.worker_id
    ]
    return min(others) - winner.prediction.ttft_s if others else None
