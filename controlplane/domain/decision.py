"""What a policy is asked, and what it answers: a placement and the whole reason for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from controlplane.domain.prefix import NO_HIT, PrefixHit

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

    @property
    def prefill_tokens(self) -> int:
        """Tokens that prefill covers: all but the last, which decode computes."""
        return self.input_tokens - 1

    def hit(self, worker_id: str) -> PrefixHit:
        """What a worker holds of the prompt."""
        return self.prefix_hits.get(worker_id, NO_HIT)

    def uncached_tokens(self, worker_id: str) -> int:
        """Tokens that a prefill worker would have to compute, >= 0."""
        return max(0, self.prefill_tokens - self.hit(worker_id).resumable_tokens)

    def discounted(self, trust: float) -> RequestFeatures:
        """
        The request with only a part of each hit, because what is known of caches is old.

        Args:
            trust: 0 to 1; tokens are rounded down.
        """
        if trust >= 1 or not self.prefix_hits:
            return self
        hits = {
            worker_id: PrefixHit(
                int(hit.attention_tokens * trust), int(hit.resumable_tokens * trust)
            )
            for worker_id, hit in self.prefix_hits.items()
        }
        return replace(self, prefix_hits=hits)

    def lacking_tokens(self, worker_id: str) -> int:
        """Tokens whose attention KV a decode worker would have to fetch, >= 0."""
        return max(0, self.prefill_tokens - self.hit(worker_id).attention_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where to prefill and where to decode."""

    prefill_worker: str
    prefill_datacenter: str
    decode_worker: str
    decode_datacenter: str

    @property
    def is_offloaded(self) -> bool:
        """Prefill in another datacenter than decode."""
        return self.prefill_datacenter != self.decode_datacenter


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
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


#: Candidates kept in a record: enough to see why, small enough for a thousand workers.
CANDIDATES_MAX = 32
