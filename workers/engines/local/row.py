"""One sequence of a decode batch, whatever the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from controlplane.wire import Sampling
from workers.engines.local.sampling import Floats, Sampler


class Row:
    """
    Where a sequence stands, and the KV that it begins with.

    Made anywhere, then used on the compute thread alone.
    """

    def __init__(
        self,
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
            token: The last prompt token.
            position: Its position.
            capacity: Tokens there will ever be.
            attention: Attention pieces of all tokens before `position`, in order.
            state: State piece at `position`.
            sampling: How output tokens are drawn.
        """
        self.token = token
        self.position = position
        self.capacity = capacity
        #: Prompt tokens that were computed in the batch.
        self.prompt_tokens_computed = 0
        self._first = position
        self._kv: tuple[tuple[bytes, ...], bytes] | None = (tuple(attention), state)
        self._sampler = Sampler(sampling)

    @classmethod
    def of_calibration(cls, *, steps: int, state: bytes) -> Self:
        """A sequence of one prompt token that only measures time."""
        return cls(
            token=0,
            position=0,
            capacity=steps,
            attention=(),
            state=state,
            sampling=Sampling(temperature=0, output_tokens_max=steps),
        )

    @property
    def is_first(self) -> bool:
        """Whether the token to compute is the last of the prompt."""
        return self.position == self._first

    def take_kv(self) -> tuple[tuple[bytes, ...], bytes]:
        """Attention pieces and state, once: for the batch that it joins."""
        assert self._kv is not None, "a row joins once"
        kv, self._kv = self._kv, None
        return kv

    def advance(self, logits: Floats) -> int:
        """Draw the next token and make it the one to compute."""
        self.prompt_tokens_computed += self.is_first
        self.token = self._sampler.draw(logits, self.position - self._first)
        self.position += 1
        return self.token
