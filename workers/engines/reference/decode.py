"""The decode batch: which sequences are computed together, on the compute thread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Self

import numpy as np

from controlplane.wire import Sampling
from workers.engines.reference.dims import Dims, Floats
from workers.engines.reference.memory import AttentionMemory, StateMemory
from workers.engines.reference.model import Model
from workers.engines.reference.sampling import Sampler


class DecodeRow:
    """One sequence of the batch. Made anywhere, then used on the compute thread alone."""

    def __init__(
        self,
        dims: Dims,
        *,
        token: int,
        position: int,
        capacity: int,
        attention: Sequence[bytes],
        state: bytes,
        sampling: Sampling,
    ) -> None:
        """
        Args:
            dims: Of the model.
            token: The last prompt token.
            position: Its position.
            capacity: Tokens there will ever be.
            attention: Attention pieces of all tokens before `position`, in order.
            state: State piece at `position`.
            sampling: How output tokens are drawn.
        """
        self.token = token
        self.position = position
        #: Prompt tokens that were computed in the batch.
        self.prompt_tokens_computed = 0
        self._dims = dims
        self._first = position
        self._capacity = capacity
        self._pieces = tuple(attention)
        self._state: bytes | None = state
        self._sampler = Sampler(sampling)
        self._attention: AttentionMemory | None = None

    @classmethod
    def of_calibration(cls, dims: Dims, *, steps: int) -> Self:
        """A sequence of one prompt token that only measures time."""
        return cls(
            dims,
            token=0,
            position=0,
            capacity=steps,
            attention=(),
            state=StateMemory(dims).export_piece(),
            sampling=Sampling(temperature=0, output_tokens_max=steps),
        )

    @property
    def attention(self) -> AttentionMemory:
        """Keys and values; there once `load` was called."""
        assert self._attention is not None, "the row has joined the batch"
        return self._attention

    @property
    def is_first(self) -> bool:
        """Whether the token to compute is the last of the prompt."""
        return self.position == self._first

    def load(self, recurrent: Floats, conv: Floats) -> None:
        """Turn the pieces into arrays; the state goes to the given rows of the batch."""
        assert self._state is not None, "a row joins once"
        attention = AttentionMemory(self._dims, self._capacity)
        for index, piece in enumerate(self._pieces):
            attention.import_piece(piece, index * self._dims.block_tokens)
        state = StateMemory(self._dims)
        state.import_piece(self._state)
        recurrent[...] = state.recurrent
        conv[...] = state.conv
        self._attention, self._pieces, self._state = attention, (), None

    def advance(self, logits: Floats) -> int:
        """Draw the next token and make it the one to compute."""
        self.prompt_tokens_computed += self.is_first
        self.token = self._sampler.draw(logits, self.position - self._first)
        self.position += 1
        return self.token


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeStep:
    """What one step made."""

    #: One for each row that was asked for, in that order.
    tokens: tuple[int, ...]
    #: Rows whose last prompt token was computed.
    first_tokens: int
    #: Seconds, of which sequences that join take a part.
    step_s: float


class DecodeBatch:
    """States of the sequences that are decoded together; always the first rows of its arrays."""

    def __init__(self, model: Model, *, slots: int) -> None:
        self._model = model
        self._rows: list[DecodeRow] = []
        layers, heads, keys, values = model.dims.recurrent_shape
        #: (linear layer, slot, head, key, value)
        self._recurrent: Floats = np.zeros((layers, slots, heads, keys, values), dtype=np.float32)
        _, taps, channels = model.dims.conv_shape
        #: (linear layer, slot, token, channel)
        self._conv: Floats = np.zeros((layers, slots, taps, channels), dtype=np.float32)

    def __repr__(self) -> str:
        return f"<DecodeBatch {len(self._rows)} of {self._conv.shape[1]} slots>"

    @property
    def is_empty(self) -> bool:
        """Whether it holds no sequence."""
        return not self._rows

    def step(self, wanted: Sequence[DecodeRow]) -> DecodeStep:
        """
        Let rows that are not wanted any more leave, wanted ones join, and compute one token each.

        Args:
            wanted: At most as many rows as there are slots; may be empty.
        """
        start_s = perf_counter()
        self._keep(wanted)
        for row in wanted:
            if row not in self._rows:
                self._join(row)
        if not self._rows:
            return DecodeStep(tokens=(), first_tokens=0, step_s=0.0)
        count = len(self._rows)
        first_tokens = sum(row.is_first for row in self._rows)
        logits = self._model.decode_step(
            self._rows, self._recurrent[:, :count], self._conv[:, :count]
        )
        drawn = {row: row.advance(logits[index]) for index, row in enumerate(self._rows)}
        return DecodeStep(
            tokens=tuple(drawn[row] for row in wanted),
            first_tokens=first_tokens,
            step_s=perf_counter() - start_s,
        )

    def _join(self, row: DecodeRow) -> None:
        index = len(self._rows)
        row.load(self._recurrent[:, index], self._conv[:, index])
        self._rows.append(row)

    def _keep(self, wanted: Sequence[DecodeRow]) -> None:
        """Remove all rows but these; the last row moves into the gap."""
        for index in reversed(range(len(self._rows))):
            if self._rows[index] not in wanted:
                last = self._rows.pop()
                if index < len(self._rows):
                    self._rows[index] = last
                    self._recurrent[:, index] = self._recurrent[:, len(self._rows)]
                    self._conv[:, index] = self._conv[:, len(self._rows)]
