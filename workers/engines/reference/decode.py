"""The decode batch: which sequences are computed together, on the compute thread."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

import numpy as np

from workers.engines.local.model import DecodeStep
from workers.engines.local.row import Row
from workers.engines.reference.dims import Floats
from workers.engines.reference.memory import AttentionMemory, StateMemory
from workers.engines.reference.model import Model


class _Joined:
    """A row, and its keys and values, as `Model.decode_step` wants it."""

    __slots__ = ("attention", "row")

    def __init__(self, row: Row, attention: AttentionMemory) -> None:
        self.row = row
        self.attention = attention

    @property
    def token(self) -> int:
        return self.row.token

    @property
    def position(self) -> int:
        return self.row.position


class DecodeBatch:
    """States of the sequences that are decoded together; always the first rows of its arrays."""

    def __init__(self, model: Model, *, slots: int) -> None:
        self._model = model
        self._rows: list[_Joined] = []
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

    def step(self, wanted: Sequence[Row]) -> DecodeStep:
        """
        Let rows that are not wanted any more leave, wanted ones join, and compute one token each.

        Args:
            wanted: At most as many rows as there are slots; may be empty.
        """
        start_s = perf_counter()
        self._keep(wanted)
        known = {joined.row for joined in self._rows}
        for row in wanted:
            if row not in known:
                self._join(row)
        if not self._rows:
            return DecodeStep(tokens=(), first_tokens=0, step_s=0.0)
        count = len(self._rows)
        first_tokens = sum(joined.row.is_first for joined in self._rows)
        logits = self._model.decode_step(
            self._rows, self._recurrent[:, :count], self._conv[:, :count]
        )
        drawn = {
            joined.row: joined.row.advance(logits[index]) for index, joined in enumerate(self._rows)
        }
        return DecodeStep(
            tokens=tuple(drawn[row] for row in wanted),
            first_tokens=first_tokens,
            step_s=perf_counter() - start_s,
        )

    def _join(self, row: Row) -> None:
        """Turn the pieces into arrays; the state goes to the next rows of the batch."""
        dims, index = self._model.dims, len(self._rows)
        pieces, state_piece = row.take_kv()
        attention = AttentionMemory(dims, row.capacity)
        for number, piece in enumerate(pieces):
            attention.import_piece(piece, number * dims.block_tokens)
        state = StateMemory(dims)
        state.import_piece(state_piece)
        self._recurrent[:, index] = state.recurrent
        self._conv[:, index] = state.conv
        self._rows.append(_Joined(row, attention))

    def _keep(self, wanted: Sequence[Row]) -> None:
        """Remove all rows but these; the last row moves into the gap."""
        for index in reversed(range(len(self._rows))):
            if self._rows[index].row not in wanted:
                last = self._rows.pop()
                if index < len(self._rows):
                    self._rows[index] = last
                    self._recurrent[:, index] = self._recurrent[:, len(self._rows)]
                    self._conv[:, index] = self._conv[:, len(self._rows)]
