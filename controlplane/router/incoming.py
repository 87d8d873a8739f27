"""A request on its way from the edge to the router."""

from __future__ import annotations

from dataclasses import dataclass

from controlplane.domain.prefix import BlockHash
from controlplane.domain.tokens import TokenIds
from controlplane.wire import OutputShape, Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class Incoming:
    """A request as the edge hands it over: parsed, tokenized, hashed."""

    request_id: str
    decision_id: str
    client_request_id: str | None
    #: The prompt, whole.
    tokens: TokenIds
    #: Block hashes of all tokens but the last.
    hashes: tuple[BlockHash, ...]
    block_tokens: int
    scope: str
    sampling: Sampling
    output: OutputShape
    #: Monotonic time of acceptance and of the end of parsing.
    accepted_s: float
    parsed_s: float
    #: Wall-clock time of acceptance, Unix seconds.
    at: float
    #: Monotonic time when it must be over.
    deadline_s: float
    #: SHA-256 of tenant and `Idempotency-Key`, hexadecimal; None when the client sent none.
    idempotency_key: str | None = None
    #: SHA-256 of what is asked: endpoint, model, tokens, sampling. Equal for equal questions.
    digest: str = ""
    #: Who asks, for fair admission: a digest, never a token or a name.
    tenant: str = "anonymous"
    #: Datacenters that the prompt and its KV may be in; None is anywhere.
    allowed_datacenters: tuple[str, ...] | None = None
    #: Seconds from acceptance within which the client wants its first token; None has no wish.
    ttft_deadline_s: float | None = None

    def ttft_left_s(self, now_s: float, resumed_tokens: int) -> float | None:
        """Seconds left for the first token, >= 0; None without a wish, or when it is out."""
        if self.ttft_deadline_s is None or resumed_tokens:
            return None
        return max(0.0, self.accepted_s + self.ttft_deadline_s - now_s)
