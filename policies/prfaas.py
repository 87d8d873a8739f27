"""The paper's rule in full: long uncached prompts are prefilled in another datacenter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Annotated, ClassVar

from pydantic import Field

from controlplane.domain.cluster import ClusterView, WorkerView, link_id
from controlplane.domain.decision import Decision, Reason, RequestFeatures
from controlplane.domain.estimate import CacheCopy, idle_ttft_s
from controlplane.domain.plan import NEVER_TOKENS
from policies.api import Parameters
from policies.copies import copy_sources, with_best_copy
from policies.pipeline import Choice, Option, place


class PrfaasParameters(Parameters):
    """Parameters of `prfaas`."""

    #: Uncached tokens above which a prompt is prefilled elsewhere, while there is no plan.
    threshold_tokens: Annotated[int, Field(ge=0, le=1 << 24)] = 512
    #: The plan's thresholds count, where there are any; false keeps to `threshold_tokens`.
    follows_plan: bool = True
    #: Cached prefixes may be copied over links that are not scarce.
    copies: bool = True
    #: A prompt stays although it is long when waiting elsewhere would make it later by the margin.
    spills_home: bool = True
    #: A prompt leaves although it is short when waiting here would make it later by the margin.
    spills_away: bool = True
    #: The margin, so that the choice does not flap with every heartbeat: seconds of TTFT, ...
    margin_s: Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)] = 0.05
    #: ... and a part of the later one's TTFT, whichever is more.
    margin_share: Annotated[float, Field(ge=0, lt=1)] = 0.25


class PrfaasPolicy:
    """
    Prefill where decode is up to a threshold of uncached tokens, elsewhere above it.

    The threshold is the plan's for each pair of datacenters. While the link's bandwidth is scarce the
    cache of the decode side alone decides how long a prompt is; while it is abundant the longest cache
    anywhere does, and is copied to where the prompt is computed. Beyond the paper: a copy is made only
    when it is faster than computing, and a side that cannot take the request, or where waiting would
    make it later than the other by a margin, is left for the other one.

    Source:
        PrfaaS (arXiv 2604.15039) sections 3.3 and 3.4.3.
    """

    name: ClassVar[str] = "prfaas"
    parameters_model: ClassVar[type[Parameters]] = PrfaasParameters

    def __init__(self, parameters: PrfaasParameters) -> None:
        self._parameters = parameters

    def decide(self, request: RequestFeatures, view: ClusterView, rng: Random) -> Decision:
        """Where to prefill and where to decode, and why. Pure."""
        # The pipeline discounts hits of an old view for its predictions; so does the rule.
        trusted = request.discounted(view.prefix_trust)

        def rule(options: Sequence[Option], decode: WorkerView) -> Choice:
            return _Rule(self._parameters, trusted, view, decode, options).choose()

        return place(request, view, rng, rule)


@dataclass(frozen=True, slots=True)
class _Verdict:
    """What the threshold says of one pair of datacenters."""

    site: str
    #: Uncached tokens that are compared.
    tokens: int
    threshold: float
    #: Where the threshold is from, for people: " of plan 3".
    origin: str
    #: The cache of the prefill side was counted as if it were here.
    counts_any_cache: bool

    @property
    def is_long(self) -> bool:
        return self.tokens > self.threshold

    @property
    def reason(self) -> Reason:
        if self.counts_any_cache:
            return "best_cache_over_threshold" if self.is_long else "best_cache_within_threshold"
        return "uncached_over_threshold" if self.is_long else "uncached_within_threshold"

    def said(self, home: str, prefill_tokens: int) -> str:
        """The verdict as the beginning of a sentence."""
        where = "anywhere" if self.counts_any_cache else f"in {home}"
        side = "above" if self.is_long else "within"
        threshold = "infinity" if self.threshold >= NEVER_TOKENS else f"{self.threshold:.0f}"
        return (
            f"{self.tokens} of {prefill_tokens} prefill tokens are not cached {where}, "
            f"{side} the threshold of {threshold}{self.origin}"
        )


class _Rule:
    """One application of the rule."""

    def __init__(
        self,
        parameters: PrfaasParameters,
        request: RequestFeatures,
        view: ClusterView,
        decode: WorkerView,
        options: Sequence[Option],
    ) -> None:
        self._parameters = parameters
        self._request = request
        self._view = view
        self._decode = decode
        self._home = decode.datacenter
        self._sources: Mapping[str, CacheCopy] = (
            copy_sources(request, view) if parameters.copies else {}
        )
        self._local = [self._copied(one) for one in options if self._is_local(one)]
        self._remote = [self._copied(one) for one in options if not self._is_local(one)]
        self._own_tokens = min(
            (one.fewest_uncached_tokens for one in options if self._is_local(one)),
            default=request.prefill_tokens,
        )
        # What is copied here, over links that are abundant, is as good as cached here; over a link
        # that is scarce nothing is, and its cache counts where it is alone.
        copied = [one.prediction.uncached_tokens for one in self._local if one.copy_tokens]
        self._tokens = min([self._own_tokens, *copied])

    def choose(self) -> Choice:
        """The side that the threshold names, unless the other one has to stand in."""
        verdicts = {site: self._verdict(site) for site in self._remote_sites()}
        long_sites = {site for site, one in verdicts.items() if one.is_long}
        long = [one for one in self._remote if one.worker.datacenter in long_sites]
        if long:
            best = _fastest(long)
            return self._away(long, best, verdicts[best.worker.datacenter])
        # Of several thresholds that keep it, the lowest says most.
        verdict = min(
            verdicts.values(),
            key=lambda one: (one.threshold, one.site),
            default=self._verdict_alone(),
        )
        return self._here(verdict)

    # --- Sides --------------------------------------------------------------------------------

    def _away(self, long: Sequence[Option], best: Option, verdict: _Verdict) -> Choice:
        """The threshold says elsewhere."""
        said = self._said(verdict)
        if self._parameters.spills_home and self._local:
            home = _fastest(self._local)
            if self._is_later(best, home):
                return self._choice(
                    self._local,
                    _spill_reason(best),
                    f"{said}, but {_ttft(best)} would be later than {_ttft(home)}: "
                    f"kept in {self._home}",
                )
        return self._choice(long, verdict.reason, f"{said}: offloaded{_copying(best)}")

    def _here(self, verdict: _Verdict) -> Choice:
        """The threshold says here, or there is nobody elsewhere."""
        said = self._said(verdict)
        if not self._local:
            return self._choice(
                self._remote,
                "no_local_prefill",
                f"{said}, but no prefill worker in {self._home} can take it: offloaded",
            )
        best = _fastest(self._local)
        if verdict.is_long:
            cut = self._cut_links()
            missing = (
                f"{', '.join(cut)} is down" if cut else "no prefill worker elsewhere can take it"
            )
            return self._choice(
                self._local,
                "spilled_from_link" if cut else "no_remote_prefill",
                f"{said}, but {missing}: kept in {self._home}",
            )
        spared = self._away_with_room()
        if self._parameters.spills_away and spared:
            away = _fastest(spared)
            if self._is_later(best, away):
                return self._choice(
                    spared,
                    "spilled_from_queue",
                    f"{said}, but {_ttft(best)} would be later than {_ttft(away)}: offloaded",
                )
        return self._choice(
            self._local, verdict.reason, f"{said}: kept in {self._home}{_copying(best)}"
        )

    def _away_with_room(self) -> list[Option]:
        """What a short prompt may spill to: not over a link that is scarce."""
        return [one for one in self._remote if not self._is_scarce(one.worker.datacenter)]

    def _is_later(self, one: Option, other: Option) -> bool:
        """
        By more than the margin, and because of who waits there already.

        What the one is slower by when both are idle is the price that the threshold has agreed to.
        """
        later_s = one.prediction.ttft_s
        agreed_s = max(0.0, self._idle_s(one) - self._idle_s(other))
        margin_s = max(self._parameters.margin_s, self._parameters.margin_share * later_s)
        return later_s - other.prediction.ttft_s - agreed_s > margin_s

    def _idle_s(self, option: Option) -> float:
        site = option.worker.datacenter
        link = None if site == self._home else self._view.link(site, self._home)
        return idle_ttft_s(option.prediction, option.worker, link)

    def _choice(self, preferred: Sequence[Option], reason: Reason, explanation: str) -> Choice:
        return Choice(
            preferred=preferred,
            reason=reason,
            explanation=explanation,
            costed=(*self._local, *self._remote),
        )

    # --- The threshold ------------------------------------------------------------------------

    def _verdict(self, site: str) -> _Verdict:
        threshold, origin = self._threshold(link_id(site, self._home))
        return _Verdict(site, self._tokens, threshold, origin, self._tokens < self._own_tokens)

    def _verdict_alone(self) -> _Verdict:
        """With nobody elsewhere: what the threshold would say, for the record."""
        plan = self._view.plan if self._parameters.follows_plan else None
        pairs = [] if plan is None else list(plan.threshold_tokens)
        into = sorted(pair for pair in pairs if pair.endswith(f">{self._home}"))
        threshold, origin = min((self._threshold(pair) for pair in into), default=self._fixed())
        return _Verdict("", self._own_tokens, threshold, origin, counts_any_cache=False)

    def _threshold(self, pair: str) -> tuple[float, str]:
        plan = self._view.plan if self._parameters.follows_plan else None
        tokens = None if plan is None else plan.threshold_tokens.get(pair)
        if plan is None or tokens is None:
            return self._fixed()
        return tokens, f" of plan {plan.version}"

    def _fixed(self) -> tuple[float, str]:
        return float(self._parameters.threshold_tokens), ""

    def _said(self, verdict: _Verdict) -> str:
        return verdict.said(self._home, self._request.prefill_tokens)

    # --- Caches and links ---------------------------------------------------------------------

    def _copied(self, option: Option) -> Option:
        """The option with a copied prefix, where that is faster than computing it."""
        if not self._sources:
            return option
        copied = with_best_copy(option, self._request, self._view, self._decode, self._sources)
        is_worth_it = copied is not None and copied.prediction.ttft_s < option.prediction.ttft_s
        return copied if copied is not None and is_worth_it else option

    def _is_local(self, option: Option) -> bool:
        return option.worker.datacenter == self._home

    def _is_scarce(self, site: str) -> bool:
        link = self._view.link(site, self._home)
        return link is not None and link.is_scarce

    def _remote_sites(self) -> dict[str, None]:
        return dict.fromkeys(one.worker.datacenter for one in self._remote)

    def _cut_links(self) -> list[str]:
        return [
            link.link_id
            for link in self._view.links
            if link.to_datacenter == self._home and link.is_down
        ]


def _fastest(options: Sequence[Option]) -> Option:
    """The one with the least TTFT, of equal ones the first by name."""
    least_s = min([one.prediction.ttft_s for one in options])
    tied = [one for one in options if one.prediction.ttft_s == least_s]
    return tied[0] if len(tied) == 1 else min(tied, key=lambda one: one.worker.worker_id)


def _spill_reason(option: Option) -> Reason:
    """What makes an offload late: its bytes on the link, or the work before it."""
    it = option.prediction
    link_s = max(0.0, it.transfer_s - it.prefill_s) + it.state_tail_s + it.rtt_s
    return "spilled_from_link" if link_s > it.queue_s else "spilled_from_queue"


def _ttft(option: Option) -> str:
    return f"{option.prediction.ttft_s:.3f} s in {option.worker.datacenter}"


def _copying(option: Option) -> str:
    if option.copy_from_worker is None:
        return ""
    return f", with {option.copy_tokens} tokens copied from {option.copy_from_worker}"
