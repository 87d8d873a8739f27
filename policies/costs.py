"""What `lookahead` compares: predicted TTFT and what a placement takes from others, term by term."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from controlplane.domain.cluster import ClusterView, WorkerView, link_id
from controlplane.domain.decision import CostTerm, Prediction, RequestFeatures
from controlplane.domain.prices import Uses, seconds_per_request, shares_of_requests
from controlplane.domain.sites import share_of
from policies.decode_sites import decode_wait_s, way_s
from policies.pipeline import Option


@dataclass(frozen=True, slots=True)
class Weights:
    """What money and other requests' time weigh against a second of this request's TTFT."""

    #: Of the plan's prices; 1 takes them as they are.
    prices: float
    #: Seconds of TTFT that a unit of the fleet's currency is worth.
    s_per_currency: float


class _Term(NamedTuple):
    """A term of a cost, as long as nobody has to read it."""

    name: str
    amount: float
    unit: Literal["s", "currency"]
    weighed_s: float


@dataclass(frozen=True, slots=True)
class Costed:
    """An option and what it costs."""

    option: Option
    terms: tuple[_Term, ...]
    #: The sum of them, seconds.
    cost_s: float

    @property
    def site(self) -> str:
        """The datacenter that would prefill."""
        return self.option.worker.datacenter

    @property
    def rank(self) -> tuple[float, str]:
        """What orders placements: the cheapest first."""
        return (self.cost_s, self.option.worker.worker_id)

    def explained(self) -> Option:
        """The option, its prediction with every term of its cost."""
        costs = tuple([CostTerm(**term._asdict()) for term in self.terms])
        return replace(self.option, prediction=replace(self.option.prediction, costs=costs))


class Coster:
    """Puts costs on the options of one request."""

    def __init__(
        self, request: RequestFeatures, view: ClusterView, decode: WorkerView, weights: Weights
    ) -> None:
        """
        Nothing is costed yet.

        Args:
            request: For how long it may decode.
            view: For the plan, and where the router is.
            decode: Where it would be decoded.
            weights: From the policy's parameters.
        """
        self._decode = decode
        self._decode_slot_s = decode.decode_step_s * request.output_tokens_max
        self._plan = view.plan
        self._weights = weights
        self._request_s = (
            seconds_per_request(view.plan) * weights.prices if view.plan is not None else 0.0
        )
        #: The same wherever it is prefilled.
        self._decode_terms = tuple(
            _Term(name, seconds, "s", seconds)
            for name, seconds in (
                ("decode queue", decode_wait_s(decode, request, view)),
                ("way to decode", way_s(decode.datacenter, view)),
            )
            if seconds > 0
        )

    def costed(self, option: Option) -> Costed:
        """What an option costs, term by term."""
        terms = (*self._terms(option), *self._decode_terms)
        return Costed(option, terms, sum([term.weighed_s for term in terms]))

    def _terms(self, option: Option) -> Iterator[_Term]:
        it = option.prediction
        share = share_of(option.worker)
        for name, seconds in (
            ("queue", it.queue_s),
            ("prefill", it.prefill_s),
            ("transfer beyond prefill", it.transfer_s - it.prefill_s),
            ("state tail", it.state_tail_s),
            ("round trip", it.rtt_s),
            ("warming up", it.ttft_s / share - it.ttft_s),
        ):
            if seconds > 0 or name == "prefill":
                yield _Term(name, seconds, "s", seconds)
        if it.egress_cost > 0:
            weighed_s = it.egress_cost * self._weights.s_per_currency
            yield _Term("egress", it.egress_cost, "currency", weighed_s)
        if self._plan is not None and self._request_s > 0:
            shares = shares_of_requests(self._plan.prices, self._uses(option))
            for name, part in shares.items():
                seconds = part * self._request_s
                yield _Term(f"price of {name}", seconds, "s", seconds)

    def _uses(self, option: Option) -> Uses:
        it, site, home = option.prediction, option.worker.datacenter, self._decode.datacenter
        link_bytes = {} if site == home else {link_id(site, home): it.transfer_bytes}
        if option.copy_from_worker is not None:
            source = option.copy_from_worker.partition("/")[0]
            pair = link_id(source, site)
            link_bytes[pair] = link_bytes.get(pair, 0) + it.copy_bytes
        return Uses(
            prefill_datacenter=site,
            # Prices are of whole workers. A prefill in lent time takes longer, and no more of one.
            prefill_s=it.prefill_s * option.worker.lent_part,
            decode_datacenter=home,
            decode_slot_s=self._decode_slot_s,
            link_bytes=link_bytes,
        )


def total_s(prediction: Prediction) -> float:
    """What the terms of a recorded cost sum to, seconds."""
    return sum(term.weighed_s for term in prediction.costs)
