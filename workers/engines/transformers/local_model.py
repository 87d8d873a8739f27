"""A network of the `transformers` library as the engine around it sees it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from time import perf_counter
from typing import Any, Final

import numpy as np
import torch
from transformers import DynamicCache

from controlplane.config import ModelConfig
from controlplane.wire import KvGroup
from workers.engine import EngineSpec
from workers.engines.local.model import DecodeStep, Ints
from workers.engines.local.row import Row
from workers.engines.local.sampling import Floats
from workers.engines.transformers.kv_codec import KvCodec
from workers.engines.transformers.network import (
    digest_of,
    end_tokens_of,
    load_network,
    vocabulary_of,
)

#: Tokens of a block: a multiple of the 64 that kernels of linear attention take at once.
_BLOCK_TOKENS: Final = 64
#: Bumped whenever the bytes of a piece mean something else; part of the fingerprint.
_LAYOUT_VERSION: Final = 1


class TransformersModel:
    """A `LocalModel` of any network whose cache is a `DynamicCache`."""

    def __init__(self, config: ModelConfig) -> None:
        """
        Load or draw the weights, and find out by one token what KV looks like.

        Raises:
            ConfigError: There is no such network.
        """
        torch.set_num_threads(config.transformers.threads)
        vocabulary = vocabulary_of(config.tokenizer)
        self.network = load_network(
            config.transformers,
            vocabulary,
            seed=config.seed,
            context_tokens_max=config.context_tokens_max,
        )
        self.codec = KvCodec(self._probe())
        self.spec = EngineSpec(
            model=config.name,
            fingerprint=self._fingerprint(config.name),
            vocabulary_size=self.network.config.vocab_size,
            block_tokens=_BLOCK_TOKENS,
            context_tokens_max=config.context_tokens_max,
            decode_slots=config.decode_slots,
            groups=(
                KvGroup(
                    name="attention",
                    bytes_per_token=self.codec.attention_bytes_per_token,
                    fixed_bytes=0,
                ),
                KvGroup(name="state", bytes_per_token=0, fixed_bytes=self.codec.state_bytes),
            ),
        )
        self.end_tokens = end_tokens_of(self.network, vocabulary)

    def __repr__(self) -> str:
        return f"<TransformersModel {self.spec.model} {self.codec!r}>"

    def initial_state(self) -> bytes:
        """The state piece before any token."""
        return self.codec.initial_state()

    def memory(
        self, token_count: int, cached: Sequence[bytes], state: bytes | None
    ) -> TransformersMemory:
        """A cache for a prompt, with what is there of it."""
        del token_count  # The cache grows.
        return TransformersMemory(self, cached, state or self.initial_state())

    def batch(self) -> TransformersBatch:
        """An empty batch."""
        return TransformersBatch(self)

    def cache_of(self, attention: Sequence[bytes], state: bytes) -> Any:  # noqa: ANN401
        """A cache that holds these pieces."""
        cache = DynamicCache(config=self.network.config)
        self.codec.fill(cache, attention, state, self.network.device)
        return cache

    def forward(self, tokens: Ints, cache: Any) -> None:  # noqa: ANN401
        """Compute tokens behind those in the cache; what they would put out is not wanted."""
        ids = torch.from_numpy(tokens)[None].to(self.network.device)
        with torch.inference_mode():
            self.network.base_model(input_ids=ids, past_key_values=cache, use_cache=True)

    def logits(self, token: int, cache: Any) -> Floats:  # noqa: ANN401
        """Compute one token behind those in the cache, and what may follow it."""
        ids = torch.tensor([[token]], device=self.network.device)
        with torch.inference_mode():
            out = self.network(input_ids=ids, past_key_values=cache, use_cache=True)
        logits: Floats = out.logits[0, -1].float().cpu().numpy()
        return logits

    def _probe(self) -> Any:  # noqa: ANN401
        cache = DynamicCache(config=self.network.config)
        self.forward(np.zeros(_BLOCK_TOKENS, dtype=np.int64), cache)
        return cache

    def _fingerprint(self, name: str) -> str:
        parts = (_LAYOUT_VERSION, name, _BLOCK_TOKENS, self.codec.describe())
        digest = hashlib.sha256(f"{parts} {digest_of(self.network)}".encode())
        return f"transformers-{digest.hexdigest()[:16]}"


class TransformersMemory:
    """The cache of one prompt that is prefilled."""

    def __init__(self, model: TransformersModel, cached: Sequence[bytes], state: bytes) -> None:
        self._model = model
        self._cache = model.cache_of(cached, state)
        self._position = 0

    def compute(self, tokens: Ints, start: int) -> None:
        """One block."""
        self._model.forward(tokens, self._cache)
        self._position = start + len(tokens)

    def attention_piece(self, start: int, end: int) -> bytes:
        """Keys and values of one block."""
        return self._model.codec.attention_piece(self._cache, start, end)

    def state_piece(self) -> bytes:
        """The state behind the last block."""
        return self._model.codec.state_piece(self._cache, self._position)


class TransformersBatch:
    """
    Sequences that take turns: the library's cache has no way to let some join and others leave.

    A step is one token of each, so a step takes as long as they all do.
    """

    def __init__(self, model: TransformersModel) -> None:
        self._model = model
        self._caches: dict[Row, Any] = {}

    def __repr__(self) -> str:
        return f"<TransformersBatch {len(self._caches)} rows>"

    @property
    def is_empty(self) -> bool:
        """Whether it holds no sequence."""
        return not self._caches

    def step(self, wanted: Sequence[Row]) -> DecodeStep:
        """One token of each row; see the contract."""
        start_s = perf_counter()
        for row in self._caches.keys() - set(wanted):
            del self._caches[row]
        first_tokens = sum(row.is_first for row in wanted)
        tokens = []
        for row in wanted:
            if row not in self._caches:
                self._caches[row] = self._model.cache_of(*row.take_kv())
            tokens.append(row.advance(self._model.logits(row.token, self._caches[row])))
        return DecodeStep(
            tokens=tuple(tokens), first_tokens=first_tokens, step_s=perf_counter() - start_s
        )
