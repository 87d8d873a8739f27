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
