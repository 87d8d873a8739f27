"""How a server does: its metrics every half second, its life, and the proof of its transfers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from controlplane.config_server import EngineServerConfig
from controlplane.errors import PrfaasError
from controlplane.observe.logs import get_logger
from workers.engines.remote.proof import Claim, Ledger
from workers.engines.remote.snapshot import Snapshot

_log = get_logger()

#: Requests that begin within this are told of by one look; an answer may wait for it at its end.
_GATHER_S: Final = 0.05
_CLOSE_S: Final = 1.0


class Pulse:
    """Looks at a server until it is closed; everything else reads its last look."""

    def __init__(
        self,
        look: Callable[[], Awaitable[Snapshot]],
        config: EngineServerConfig,
        first: Snapshot,
        *,
        clock: Callable[[], float],
        on_restart: Callable[[], None],
    ) -> None:
        self._look = look
        self._config = config
        self._clock = clock
        self._on_restart = on_restart
        self._heard_s = clock()
        self._is_silent = False
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._waiters: dict[int, tuple[Claim, asyncio.Future[None]]] = {}
        self.ledger = Ledger(settled=first if first.sources is not None else None)
        #: The last look.
        self.snapshot = first
        self.cache_tokens = first.cache_tokens

    def __repr__(self) -> str:
        return f"<Pulse {self.failure or 'well'}>"

    @property
    def failure(self) -> str | None:
        """Why the server can take no work."""
        if self._is_silent:
            return "the engine server does not answer"
        if self.ledger.is_unproven:
            return "the engine computes prompts whose KV should have come from outside"
        return None

    @property
    def bytes_per_token(self) -> float:
        """What transfers into this server took for each token; 0 before the first."""
        seen = self.snapshot
        if seen.sources is None:
            return 0.0
        return seen.moved_bytes_total / max(1, seen.sources.external)

    def start(self) -> None:
        """Begin to look."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="engine pulse")

    def claim(self, prompt_tokens: int, *, tail_tokens: int) -> Claim:
        """Enter a request whose first token has come; a look for it begins now."""
        claim = self.ledger.claim(prompt_tokens, tail_tokens=tail_tokens)
        self._wake.set()
        return claim

    def settled(self, claim: Claim) -> asyncio.Future[None]:
        """Done once the server's count of a claim is known."""
        if claim.is_settled:
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            done.set_result(None)
            return done
        _, waiter = self._waiters.setdefault(
            id(claim), (claim, asyncio.get_running_loop().create_future())
        )
        self._wake.set()
        return waiter

    async def close(self) -> None:
        """Stop looking. Idempotent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task], timeout=_CLOSE_S)

    async def _run(self) -> None:
        while True:
            await self._once()
            if not self.ledger.waiting:
                self._wake.clear()
            try:
                async with asyncio.timeout(self._config.poll_interval_s):
                    await self._wake.wait()
                # Several requests that begin together are settled by one look.
                await asyncio.sleep(min(_GATHER_S, self._config.poll_interval_s / 10))
                self._wake.clear()
            except TimeoutError:
                continue

    async def _once(self) -> None:
        claims = self.ledger.open_claims()
        try:
            seen = await self._look()
        except (PrfaasError, ValueError) as error:
            self._missed(str(error))
            return
        self._heard(seen)
        if claims:
            self.ledger.look([one for one in claims if not one.is_settled], seen)
        elif not self.ledger.waiting and seen.sources is not None:
            self._forgive(seen)
        for key, (claim, waiter) in tuple(self._waiters.items()):
            if claim.is_settled:
                del self._waiters[key]
                if not waiter.done():
                    waiter.set_result(None)

    def _forgive(self, seen: Snapshot) -> None:
        """Nobody waits: what was counted meanwhile is of others, or of requests that were aborted."""
        if not seen.running and not seen.waiting:
            self.ledger.settled = seen

    def _missed(self, cause: str) -> None:
        is_silent = self._clock() - self._heard_s > self._config.silent_s
        if is_silent and not self._is_silent:
            _log.error("engine.silent", cause=cause)
        self._is_silent = is_silent

    def _heard(self, seen: Snapshot) -> None:
        if self._is_silent:
            _log.info("engine.answers")
        if seen.started_s != self.snapshot.started_s:
            _log.warning("engine.restarted")
            self.ledger.restart(seen)
            self._on_restart()
        self._heard_s, self._is_silent = self._clock(), False
        self.snapshot = seen
