"""The reference model as the engine around it sees it."""

from __future__ import annotations

from collections.abc import Sequence

from controlplane.config import ModelConfig
from controlplane.domain.byte_tokenizer import END_OF_TURN
from controlplane.wire import KvGroup
from workers.engine import EngineSpec
from workers.engines.local.model import Ints
from workers.engines.reference.decode import DecodeBatch
from workers.engines.reference.dims import Dims
from workers.engines.reference.memory import AttentionMemory, StateMemory
from workers.engines.reference.model import Model
from workers.engines.reference.weights import fingerprint_of, make_weights


class ReferenceModel:
    """A `LocalModel` of drawn weights."""

    def __init__(self, config: ModelConfig) -> None:
        dims = Dims(layers=config.layers)
        weights = make_weights(dims, config.seed)
        self.spec = EngineSpec(
            model=config.name,
            fingerprint=fingerprint_of(dims, weights, name=config.name, seed=config.seed),
            vocabulary_size=dims.vocabulary,
            block_tokens=dims.block_tokens,
            context_tokens_max=config.context_tokens_max,
            decode_slots=config.decode_slots,
            groups=(
                KvGroup(
                    name="attention", bytes_per_token=dims.attention_bytes_per_token, fixed_bytes=0
                ),
                KvGroup(name="state", bytes_per_token=0, fixed_bytes=dims.state_bytes),
            ),
        )
        self.end_tokens = frozenset({END_OF_TURN})
        self.network = Model(dims, weights, context_tokens_max=config.context_tokens_max)

    def __repr__(self) -> str:
        return f"<ReferenceModel {self.spec.model}>"

    def initial_state(self) -> bytes:
        """The state piece before any token: zeros."""
        return bytes(self.network.dims.state_bytes)

    def memory(
        self, token_count: int, cached: Sequence[bytes], state: bytes | None
    ) -> ReferenceMemory:
        """Arrays for a prompt, with what is there of it."""
        return ReferenceMemory(self.network, token_count, cached, state)

    def batch(self) -> DecodeBatch:
        """An empty batch."""
        return DecodeBatch(self.network, slots=self.spec.decode_slots)


class ReferenceMemory:
    """The arrays of one prompt that is prefilled."""

    def __init__(
        self, network: Model, token_count: int, cached: Sequence[bytes], state: bytes | None
    ) -> None:
        dims = network.dims
        self._network = network
        self._attention = AttentionMemory(dims, token_count)
        for index, piece in enumerate(cached):
            self._attention.import_piece(piece, index * dims.block_tokens)
        self._state = StateMemory(dims)
        if state is not None:
            self._state.import_piece(state)

    def compute(self, tokens: Ints, start: int) -> None:
        """One block."""
        self._network.prefill_block(tokens, start, self._attention, self._state)

    def attention_piece(self, start: int, end: int) -> bytes:
        """Keys and values of one block."""
        return self._attention.export_piece(start, end)

    def state_piece(self) -> bytes:
        """The state behind the last block."""
        return self._state.export_piece()
