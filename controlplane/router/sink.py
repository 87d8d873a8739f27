"""The client's side of an answer, as a flight sees it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from controlplane.errors import PrfaasError


class ClientLeftError(Exception):
    """The client closed its connection, or read nothing for too long."""


class ClientSink(Protocol):
    """Where an answer goes."""

    @property
    def is_begun(self) -> bool:
        """Bytes have been sent: a failure can no longer be a status code."""

    async def begin(self, headers: Mapping[str, str]) -> None:
        """
        Send status 200 and headers.

        Raises:
            ClientLeftError: Nobody is there.
        """

    async def write(self, data: bytes) -> None:
        """
        Send bytes of the answer.

        Raises:
            ClientLeftError: Nobody is there, or the client did not read in time.
        """

    async def fail(self, error: PrfaasError) -> None:
        """
        Send an error event in the middle of a stream; nothing may follow it.

        Raises:
            ClientLeftError: Nobody is there.
        """
