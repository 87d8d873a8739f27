"""
How the router speaks with workers: one contract, one HTTP client (`http_workers.py`), one twin.

Failures are the error classes of `controlplane.errors`, each with one meaning: `WorkerRefused`
the worker said no, `WorkerUnreached` it heard nothing, `WorkerLost` and `WorkerTimeout` nobody can
tell whether it heard us.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final, Protocol

from controlplane.domain.tokens import TokenIds
from controlplane.errors import PeerError
from controlplane.wire import (
    DecodeJob,
    FrameKind,
    KvLocation,
    PrefillJob,
    PrefixAsk,
    RoleChange,
    RoleReply,
)

#: After a whole answer its connection is read to the end for so long; a worker ends both at once.
_REST_S: Final = 1.0


class DecodeStream(Protocol):
    """The answer of a decode worker, frame by frame."""

    async def frames(self) -> list[tuple[FrameKind, bytes]]:
        """
        The next frames, those that arrived together; empty at the end of the stream.

        Raises:
            WorkerLost: The connection broke, or what came is no frame.
            WorkerTimeout: Nothing came for `decode_idle_timeout_s`.
        """

    @property
    def has_ended(self) -> bool:
        """Nothing more comes: what `frames` would give is empty, and is there at once."""

    def close(self) -> None:
        """Drop the connection: the worker stops and frees its KV. Idempotent."""


async def read_rest(stream: DecodeStream) -> None:
    """Reading to the end lets the connection serve the next request; it is worth no wait."""
    if stream.has_ended:
        # Nothing to wait for, so no timer to set.
        return
    try:
        async with asyncio.timeout(_REST_S):
            while await stream.frames():
                pass
    except (PeerError, TimeoutError):
        # The answer was complete before: nothing that comes after it can harm it.
        return


class RoleClient(Protocol):
    """Roles for workers: what a planner asks of them."""

    async def change_role(self, url: str, change: RoleChange) -> RoleReply:
        """
        Ask a worker for another role, or another share of its time.

        It answers at once and changes behind that: its heartbeats tell of the end.

        Raises:
            RoleRefused: Not now, or never; its `reason` says which.
            WorkerRefused: It does not know roles at all.
            WorkerUnreached: No connection.
            WorkerLost: It broke; nobody can tell whether it heard us, and asking again is safe.
            WorkerTimeout: No answer within `prefill_accept_timeout_s`; the same.
        """


class WorkerClient(Protocol):
    """Jobs for workers."""

    async def prefill(self, url: str, job: PrefillJob, tokens: TokenIds) -> KvLocation:
        """
        Start a prefill; the location comes at once, the segment fills later.

        Raises:
            WorkerRefused: Full, draining, another incarnation or fingerprint.
            WorkerUnreached: No connection.
            WorkerLost: It broke.
            WorkerTimeout: No answer within `prefill_accept_timeout_s`.
        """

    async def abort_prefill(self, url: str, request_id: str) -> None:
        """Stop a prefill and free its segment. Best effort: a lease ends what this misses."""

    async def export_prefix(self, url: str, ask: PrefixAsk, tokens: TokenIds) -> KvLocation | None:
        """
        Ask where a cached prefix can be copied from; None when it is not there any more.

        Args:
            url: Of a worker that can export.
            ask: Who asks.
            tokens: The leading tokens of a prompt, no more than are wanted.

        Raises:
            WorkerRefused: Full, draining, another incarnation or fingerprint.
            WorkerUnreached: No connection.
            WorkerLost: It broke.
            WorkerTimeout: No answer within `prefix_ask_timeout_s`.
        """

    async def has_died(self, url: str, incarnation: str, *, neighbours: Sequence[str] = ()) -> bool:
        """
        Whether a worker's process life is certainly over.

        True when nobody listens where it was, or another life does. False when it lives, and when
        nobody can tell: an address that does not answer may be behind a link that is cut. What
        takes connections only to drop them is a relay, before a dead process or a cut link: the
        process is dead if a neighbour answers.

        Args:
            url: The worker.
            incarnation: The life.
            neighbours: URLs of workers that are reached in the same way.
        """

    async def decode(self, url: str, job: DecodeJob, tokens: TokenIds) -> DecodeStream:
        """
        Start a decode.

        Raises:
            WorkerRefused: Full, draining, or another incarnation.
            WorkerUnreached: No connection.
            WorkerLost: It broke.
            WorkerTimeout: No answer within `decode_idle_timeout_s`.
        """

    async def close(self) -> None:
        """Close all connections."""
