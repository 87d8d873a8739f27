"""
What a model in this process gives to the engine around it (`engine.py`).

The engine queues, caches, schedules and counts; a model computes a block of a prompt, and a token of
each of some sequences. All of it but `spec`, `end_tokens` and `initial_state` is called on the compute
thread alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from workers.engine import EngineSpec
from workers.engines.local.row import Row

Ints: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What pieces of KV weigh."""

    block_tokens: int
    attention_bytes_per_token: int
    state_bytes: int

    @classmethod
    def of(cls, spec: EngineSpec) -> Self:
        """
        The sizes of a model with one attention group and at most one of state.

        Args:
            spec: Of the model.
        """
        groups = {group.name: group for group in spec.groups}
        return cls(
            block_tokens=spec.block_tokens,
            attention_bytes_per_token=groups["attention"].bytes_per_token,
            state_bytes=groups["state"].fixed_bytes,
        )


class Memory(Protocol):
    """Keys, values and state of one prompt that is prefilled."""

    def compute(self, tokens: Ints, start: int) -> None:
        """
        Compute one block.

        Args:
            tokens: (count,), 1 <= count <= `block_tokens`.
            start: Position of the first, a multiple of `block_tokens`; all before it is there.
        """

    def attention_piece(self, start: int, end: int) -> bytes:
        """Keys and values of these tokens of one block, in the model's own layout."""

    def state_piece(self) -> bytes:
        """The state behind the last token that was computed; empty for a model without one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeStep:
    """What one step made."""

    #: One for each row that was asked for, in that order.
    tokens: tuple[int, ...]
    #: Rows whose last prompt token was computed.
    first_tokens: int
    #: Seconds, of which sequences that join take a part.
    step_s: float


class Batch(Protocol):
    """Sequences that are decoded together."""

    @property
    def is_empty(self) -> bool:
        """Whether it holds no sequence."""

    def step(self, wanted: Sequence[Row]) -> DecodeStep:
        """
        Let rows that are not wanted any more leave, wanted ones join, and compute one token each.

        Args:
            wanted: At most as many rows as there are slots; may be empty.
        """


class LocalModel(Protocol):
    """
    Weights and the two ways through them.

    A prompt's blocks always begin at multiples of `block_tokens`, so what a prefill makes of them does
    not depend on where it began.
    """

    @property
    def spec(self) -> EngineSpec:
        """What it is."""

    @property
    def end_tokens(self) -> frozenset[int]:
        """Tokens that end an answer, and are no part of it."""

    def initial_state(self) -> bytes:
        """The state piece before any token."""

    def memory(self, token_count: int, cached: Sequence[bytes], state: bytes | None) -> Memory:
        """
        Begin or go on with a prompt.

        Args:
            token_count: Tokens there will be.
            cached: Attention pieces of leading whole blocks.
            state: The state behind them; None where there are none.
        """

    def batch(self) -> Batch:
        """An empty batch of as many slots as the spec says."""
