"""What a policy is asked, and what it answers: a placement and the whole reason for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from controlplane.domain.prefix import NO_HIT, PrefixHit
from controlplane.domain.prefix_hits import discounted, kept_for

#: Why a worker cannot take a request; a closed list, in records, metrics and docs.
RejectedBy: TypeAlias = Literal[
    "draining",
    "suspect",
    "ejected",
    "failed_before",
    "model",
    "context",
    "full",
    "fingerprint",
    "cannot_resume",
    "no_link",
    "link_down",
    "degraded",
    "placement",
    "residency",
    "over_deadline",
    "filter",
]

#: Why a policy chose what it chose; a closed list, a label of metrics. "own_rule" is for policies of
#: other packages, whose explanation says more.
Reason: TypeAlias = Literal[
    "uncached_within_threshold",
    "uncached_over_threshold",
    "no_local_prefill",
    "no_remote_prefill",
    "local_only",
    "round_robin",
    "offload_all",
    "balanced_split",
    "least_loaded",
    "power_of_two",
    "prefix_affinity",
    "best_cache_over_threshold",
    "best_cache_within_threshold",
    "spilled_from_link",
    "spilled_from_queue",
    "least_cost",
    "deadline_unreachable",
    "objective_unreachable",
    "own_rule",
    "no_candidate",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestFeatures:
    """A request as policies see it: lengths and hits, never its text."""

    request_id: str
    model: str
    #: Tokens to prefill and the last one, >= 1: the prompt, and output that is resumed.
    input_tokens: int
    #: Output tokens it may still have.
    output_tokens_max: int
    #: Router's running number of the request; what round robin turns on.
    sequence: int
    #: Prefix hits by worker; a worker that is not here has nothing.
    prefix_hits: Mapping[str, PrefixHit] = field(default_factory=dict)
    #: Workers that have failed this very request.
    excluded: tuple[str, ...] = ()
    #: Tokens at the end of the input that are output already: the stream goes on elsewhere.
    resumed_tokens: int = 0
    #: Datacenters that its KV may be in, for data residency; None is anywhere.
    allowed_datacenters: tuple[str, ...] | None = None
    #: Seconds within which the client wants its first token; None is as soon as possible.
    ttft_deadline_s: float | None = None

    @property
    def prefill_tokens(self) -> int:
        """Tokens that prefill covers: all but the last, which decode computes."""
        return self.input_tokens - 1

    def hit(self, worker_id: str) -> PrefixHit:
        """What a worker holds of the prompt."""
        return self.prefix_hits.get(worker_id, NO_HIT)

    def uncached_tokens(self, worker_id: str) -> int:
        """Tokens that a prefill worker would have to compute, >= 0."""
        hit = self.prefix_hits.get(worker_id)
        return (
            self.input_tokens - 1
            if hit is None
            else self.prefill_tokens_behind(hit.resumable_tokens)
        )

    def discounted(self, trust: float) -> RequestFeatures:
        """
        The request with only a part of each hit, because what is known of caches is old.

        Args:
            trust: 0 to 1; tokens are rounded down.
        """
        if trust >= 1 or not self.prefix_hits:
            return self
        return replace(self, prefix_hits=discounted(self.prefix_hits, trust))

    def recorded(self, named: Sequence[str]) -> RequestFeatures:
        """
        The request as the record of a large view keeps it: of very many hits a part.

        Args:
            named: Ids of the workers that the decision names: the others are not in the record.
        """
        hits = kept_for(self.prefix_hits, named)
        return self if hits is self.prefix_hits else replace(self, prefix_hits=hits)

    def lacking_tokens(self, worker_id: str) -> int:
        """Tokens whose attention KV a decode worker would have to fetch, >= 0."""
        hit = self.prefix_hits.get(worker_id)
        return (
            self.input_tokens - 1
            if hit is None
            else self.prefill_tokens_behind(hit.attention_tokens)
        )

    def prefill_tokens_behind(self, held_tokens: int) -> int:
        """Tokens that prefill covers behind so many that are held, >= 0."""
        return max(0, self.input_tokens - 1 - held_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where to prefill and where to decode."""

    prefill_worker: str
    prefill_datacenter: str
    decode_worker: str
    decode_datacenter: str
    #: Worker whose cached prefix the prefill worker copies before it computes the rest; None when
    #: it uses its own cache, or none.
    copy_from_worker: str | None = None
    #: Leading tokens of the prompt that are copied.
    copy_tokens: int = 0

    @property
    def is_offloaded(self) -> bool:
        """Prefill in another datacenter than decode."""
        return self.prefill_datacenter != self.decode_datacenter


@dataclass(frozen=True, slots=True, kw_only=True)
class CostTerm:
    """One term of what a policy minimises, so that a record can say what decided."""

    #: "queue", "prefill", "egress", "price of prefill time in east" ...
    name: str
    #: Seconds, the fleet's currency, or an opinion from 0 to 1.
    amount: float
    unit: Literal["s", "currency", "score"]
    #: What it adds to the sum that is compared: in seconds, or for a score times its weight.
    weighed_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """
    Predicted cost of one placement; every term in seconds or bytes.

    `ttft_s = queue_s + max(prefill_s, transfer_s) + state_tail_s + rtt_s`: transfer overlaps
    prefill, but the linear-attention state is final only when prefill ends.
    """

    #: Prompt tokens the prefill worker has to compute.
    uncached_tokens: int
    #: Bytes the decode worker lacks, attention and state.
    transfer_bytes: int
    queue_s: float
    prefill_s: float
    #: The attention part, behind what the link has promised already.
    transfer_s: float
    #: The state, which goes last.
    state_tail_s: float
    rtt_s: float
    ttft_s: float
    #: Bytes of a cached prefix that are copied to the prefill worker before it computes.
    copy_bytes: int = 0
    #: How long that takes; part of the queue's time, which it overlaps.
    copy_s: float = 0.0
    #: Of egress, in the fleet's currency.
    egress_cost: float = 0.0
    #: What the policy compared, term by term; empty where it compares `ttft_s`.
    costs: tuple[CostTerm, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One worker that was looked at: rejected with a reason, or costed."""

    worker_id: str
    datacenter: str
    role: Literal["prefill", "decode"]
    rejected_by: RejectedBy | None = None
    #: The rejection in words with its numbers; empty for a candidate that was costed.
    detail: str = ""
    #: For prefill candidates that were not rejected.
    prediction: Prediction | None = None
    #: For decode candidates: requests it has, and leading tokens of the prompt it holds.
    pending_requests: int = 0
    held_tokens: int = 0
    #: What it holds is a guess by what was sent there: its engine does not tell.
    is_held_guessed: bool = False


#: What a decision tells of the workers: candidates, those omitted by reason, the margin.
Told: TypeAlias = tuple[tuple[Candidate, ...], Mapping[str, int], float | None]

#: The fields of a `Decision` that are `Told`, in that order.
_TOLD: Final = ("candidates", "omitted", "margin_s")


class _Explained:
    """
    What a decision tells of the workers, made when somebody first reads it.

    A request waits for where it goes and not for why; the record that says why is written behind it.
    """

    __slots__ = ("_explain",)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> object:
            if name not in _TOLD:
                raise AttributeError(name)
            told = self._explain()
            for field_name, value in zip(_TOLD, told, strict=True):
                object.__setattr__(self, field_name, value)
            # What it was made of, a whole view among it, is needed no longer.
            object.__delattr__(self, "_explain")
            return getattr(self, name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision(_Explained):
    """A policy's proposal of where to run a request, with the whole reason for it."""

    #: None when nothing can take the request.
    placement: Placement | None
    reason: Reason
    #: The reason as a sentence with its numbers.
    explanation: str
    prediction: Prediction | None
    #: At most `CANDIDATES_MAX`; the others are counted in `omitted`.
    candidates: tuple[Candidate, ...]
    #: Candidates not kept, by reason of rejection ("feasible" for those that were not rejected).
    omitted: Mapping[str, int] = field(default_factory=dict)
    #: Seconds of predicted TTFT by which the next best prefill worker is worse; None if alone.
    margin_s: float | None = None
    #: Filters, scorers and pickers of other packages that failed, and how often: they were passed
    #: over as `policies/plugins.py` says.
    plugin_failures: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def explained_later(
        cls,
        placement: Placement,
        reason: Reason,
        explanation: str,
        prediction: Prediction,
        explain: Callable[[], Told],
    ) -> Decision:
        """A decision like any other, whose candidates are made when somebody first reads them."""
        decision = object.__new__(cls)
        put = object.__setattr__
        put(decision, "placement", placement)
        put(decision, "reason", reason)
        put(decision, "explanation", explanation)
        put(decision, "prediction", prediction)
        put(decision, "plugin_failures", {})
        put(decision, "_explain", explain)
        return decision

    @property
    def named_workers(self) -> tuple[str, ...]:
        """Ids of all workers it names: its candidates, and whose cached prefix is copied."""
        named = [one.worker_id for one in self.candidates]
        source = None if self.placement is None else self.placement.copy_from_worker
        return tuple(named if source is None or source in named else [*named, source])


#: Candidates kept in a record: enough to see why, small enough for a thousand workers.
CANDIDATES_MAX = 32
