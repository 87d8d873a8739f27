"""Idempotency keys: a request that is sent twice runs once at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from controlplane.errors import KeyInUse, KeyMismatch, StoreError
from controlplane.observe.metrics import RouterMetrics
from controlplane.store.api import StateStore

#: Claims are renewed so many times within their time to live; one may be late.
_RENEWALS = 3

_IN_USE = "a request with this Idempotency-Key is still running; wait for it or retry later"
_MISMATCH = "this Idempotency-Key was used for another request; use a new key for a new request"


class KeyKeeper:
    """
    Keys of the requests of one router, claimed in the store so that other routers know them.

    With the store away a key is known to this router alone: a retry elsewhere may then run twice.
    A router that dies lets its keys go after one time to live.
    """

    def __init__(
        self,
        store: StateStore,
        metrics: RouterMetrics,
        *,
        owner: str,
        ttl_s: float,
        keep_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._clock = clock
        self._store = store
        self._metrics = metrics
        self._owner = owner
        self._ttl_s = ttl_s
        self._keep_s = keep_s
        #: Keys of running requests, and what request each stands for.
        self._running: dict[str, str] = {}
        #: Releases on their way; no answer waits for them.
        self._releases: dict[str, asyncio.Task[None]] = {}

    def __repr__(self) -> str:
        return f"<KeyKeeper {len(self._running)} running>"

    @asynccontextmanager
    async def claimed(self, key: str | None, digest: str) -> AsyncIterator[float]:
        """
        Hold a key while its request runs; nothing at all for a request without one.

        Yields:
            Seconds that were waited for the store.

        Raises:
            KeyInUse: A request with it still runs.
            KeyMismatch: It was used for another request.
        """
        if key is None:
            yield 0.0
            return
        began_s = self._clock()
        known = self._running.get(key)
        if known is not None:
            raise KeyMismatch(_MISMATCH) if known != digest else KeyInUse(_IN_USE, retry_after_s=1)
        self._running[key] = digest
        # A call that failed, or was cancelled on its way, may have made a claim.
        is_ours = True
        try:
            refusal = await self._refusal(key, digest)
            if refusal is not None:
                is_ours = False
                raise refusal
            yield self._clock() - began_s
        finally:
            del self._running[key]
            if is_ours:
                self._let_go(key)

    async def settle(self) -> None:
        """Wait for the releases on their way; each is bounded by its call's own timeout."""
        if self._releases:
            await asyncio.wait(tuple(self._releases.values()))

    async def run(self) -> None:
        """Renew the claims of running requests until cancelled."""
        while True:
            await asyncio.sleep(self._ttl_s / _RENEWALS)
            for key, digest in tuple(self._running.items()):
                try:
                    await self._store.claim_key(
                        key, owner=self._owner, digest=digest, ttl_s=self._ttl_s, is_renewal=True
                    )
                except StoreError:
                    self._metrics.store_errors_total.labels("claim_key").inc()
                    break

    async def _refusal(self, key: str, digest: str) -> KeyInUse | KeyMismatch | None:
        """Claim a key in the store; what stands against it."""
        before = self._releases.get(key)
        if before is not None:
            # Or it would undo this claim.
            await asyncio.wait((before,))
        try:
            claim = await self._store.claim_key(
                key, owner=self._owner, digest=digest, ttl_s=self._ttl_s
            )
        except StoreError:
            self._metrics.store_errors_total.labels("claim_key").inc()
            return None
        if claim == "in_use":
            return KeyInUse(_IN_USE, retry_after_s=1)
        if claim == "mismatch":
            return KeyMismatch(_MISMATCH)
        return None

    def _let_go(self, key: str) -> None:
        task = asyncio.get_running_loop().create_task(self._release(key))
        self._releases[key] = task

        def done(ended: asyncio.Task[None]) -> None:
            if self._releases.get(key) is ended:
                del self._releases[key]

        task.add_done_callback(done)

    async def _release(self, key: str) -> None:
        try:
            await self._store.release_key(key, owner=self._owner, keep_s=self._keep_s)
        except StoreError:
            # It ends by itself after its time to live.
            self._metrics.store_errors_total.labels("release_key").inc()
