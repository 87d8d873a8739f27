"""One request of a trace: when it comes, how long it is, and which prefix it shares with others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

#: A trace's numbers are checked against these: far beyond any model, and near enough to say that a
#: column was taken for another one.
INPUT_TOKENS_MAX = 16 << 20
OUTPUT_TOKENS_MAX = 1 << 20
#: Two hundred years, in seconds.
TIME_S_MAX = 6.4e9


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """A request as a trace tells it; there is no text in it."""

    #: Seconds after the first one.
    at_s: float
    input_tokens: int
    output_tokens: int
    #: One id for each block of the prompt, the last one perhaps partial. Equal ids mean equal whole
    #: prefixes. Empty when the trace does not say, and then nothing is shared.
    blocks: tuple[int, ...] = ()


class Trace(Protocol):
    """Requests in the order of their time, read as they are asked for."""

    @property
    def name(self) -> str:
        """For people."""

    @property
    def block_tokens(self) -> int:
        """Tokens of one block."""

    @property
    def count(self) -> int | None:
        """How many there are; None when only reading would tell."""

    def requests(self, seed: int) -> Iterator[TraceRequest]:
        """
        Read from the beginning.

        Args:
            seed: Draws what the trace leaves open.

        Raises:
            TraceError: Something in it is not as it has to be.
        """
