"""What a server must do to be measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Self


class ServerFull(Exception):
    """A batch does not fit into the server."""


@dataclass(frozen=True, slots=True)
class PromptCounts:
    """Prompt tokens of all requests of a server so far, by its own count."""

    total: int
    cached: int


class MeasurableServer(Protocol):
    """A server that does nothing else meanwhile."""

    #: By the server's own name.
    model: str
    #: Kind and version.
    engine: str
    #: Longest that it takes, with the output.
    context_tokens: int
    #: Prompt tokens that it was sent here.
    sent_tokens: int

    async def counts(self) -> PromptCounts | None:
        """Its own count; None where it has none."""

    async def prefill_s(self, tokens: int) -> float:
        """
        Seconds to the first token of a prompt that nobody has seen before.

        Raises:
            PrfaasError: The server failed.
        """

    async def step_s(self, batch: int, *, context_tokens: int, steps: int) -> float:
        """
        Seconds of a decode step while so many streams run.

        Args:
            batch: Streams.
            context_tokens: Of each one's prompt.
            steps: To measure over.

        Returns:
            Seconds in which each stream gets a token, mean.

        Raises:
            ServerFull: So many do not run side by side there.
            PrfaasError: The server failed.
        """

    async def kv_bytes(self, tokens: int, decode: Self) -> int:
        """
        Bytes that cross to a decode server for a prompt, by that one's own count.

        Raises:
            ConfigError: Nothing crossed.
            PrfaasError: A server failed.
        """
