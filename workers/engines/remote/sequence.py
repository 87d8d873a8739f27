"""One request at the decode side of an engine server: a handle, then a stream of tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import aclosing
from typing import Any, Final

from controlplane.errors import LinkStalled, PrfaasError, SegmentFailed, WorkerLost
from workers.engine import EngineTransfer, KvPiece, TokenOut
from workers.engines.local.stream import Feed, Stream
from workers.engines.remote.handle import unpack_handle
from workers.engines.remote.http import EngineHttp, reason_of
from workers.engines.remote.legs import Leg
from workers.engines.remote.output import OutputReader
from workers.engines.remote.proof import Claim

#: An answer is not held back for longer to hear what the engine counted, seconds.
_SETTLE_S: Final = 0.5


class RemoteSequence:
    """
    A `KvImport` and its decode request. Used on the event loop's thread alone.

    The request starts as soon as there is a handle. With a connector that pairs that is before the
    prefill has ended, so what fails then is told to the job, which would wait for the prefill.
    """

    held_tokens = 0

    def __init__(
        self,
        http: EngineHttp,
        make_leg: Callable[[dict[str, Any]], Leg],
        reader: OutputReader,
        *,
        first_token_s: Callable[[float], float],
        claim: Callable[[], Claim],
        settle: Callable[[Claim], asyncio.Future[None]],
        on_token: Callable[[float | None], None],
        on_failure: Callable[[PrfaasError], None],
        on_close: Callable[[RemoteSequence], None],
    ) -> None:
        """
        Args:
            http: To the server.
            make_leg: The decode request for a handle; raises ValueError for a bad one.
            reader: Of the answer's events.
            first_token_s: Seconds that the engine still gets until the first token, by those that it
                has had since its tokens were asked for; asked again when they are over, 0 or less
                ends the request. Before that the prefill may run, which has a time of its own.
            claim: Enters the request for proof, at its first token.
            settle: Done when the proof is there.
            on_token: Called for each token, with the seconds since the one before, if there was one.
            on_failure: Told of a request that failed before anybody reads its tokens.
            on_close: Called once.
        """
        self._http = http
        self._make_leg = make_leg
        self._reader = reader
        self._first_token_s = first_token_s
        self._enter_claim = claim
        self._settle = settle
        self._on_token = on_token
        self._on_failure = on_failure
        self._on_close = on_close
        self._feed: Feed[TokenOut] = Feed()
        self._task: asyncio.Task[None] | None = None
        self._claim: Claim | None = None
        self._last_token_s: float | None = None
        #: Set when somebody reads the tokens.
        self._is_read = asyncio.Event()
        self._is_closed = False

    def __repr__(self) -> str:
        return f"<RemoteSequence {'running' if self._task else 'without a handle'}>"

    @property
    def is_running(self) -> bool:
        """Its request is at the server."""
        return self._task is not None and not self._task.done()

    @property
    def prompt_tokens_computed(self) -> int:
        """By the engine's own count; 1 at least, as the contract has it: the last one."""
        return 0 if self._claim is None else max(1, self._claim.computed_tokens)

    @property
    def transfer(self) -> EngineTransfer | None:
        """What the engine says it moved."""
        claim = self._claim
        if claim is None:
            return None
        return EngineTransfer(
            moved_bytes=claim.moved_bytes, moving_s=claim.moving_s, evidence=claim.evidence,
            is_mismatch=claim.is_mismatch,
        )  # fmt: skip

    def write(self, piece: KvPiece) -> None:
        """Take the handle, and send the request."""
        if self._task is not None:
            raise ValueError("the handle has come already")
        leg = self._make_leg(unpack_handle(piece.data))
        self._task = asyncio.get_running_loop().create_task(self._run(leg), name="decode leg")

    def keep(self) -> int:
        """Nothing can be put into the cache of another process."""
        raise ValueError("this engine takes no prefixes from outside")

    def output(self) -> Stream[TokenOut]:
        """The tokens; closing the stream aborts the request."""
        if self._task is None:
            raise ValueError("the sequence has no handle yet")
        self._is_read.set()
        return Stream(self._feed, self.close, asyncio.get_running_loop())

    async def settle(self) -> None:
        """Wait for the engine's count of this request, for a moment."""
        if self._claim is None or self._claim.is_settled:
            return
        await asyncio.wait([self._settle(self._claim)], timeout=_SETTLE_S)

    def close(self) -> None:
        """Abort what still runs. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._task is not None:
            self._task.cancel()
        self._feed.end()
        self._on_close(self)

    async def _run(self, leg: Leg) -> None:
        try:
            await self._read(leg)
        except PrfaasError as error:
            self._end(error)
        except ValueError as error:
            self._end(WorkerLost(f"the engine's answer cannot be read: {error}"))
        else:
            self._end(None)
        finally:
            # A bug here must not leave a reader waiting.
            self._feed.end()

    async def _read(self, leg: Leg) -> None:
        async with aclosing(self._http.events(leg.path, leg.body, leg.headers)) as events:
            watch = self._watch_first_token(asyncio.current_task())
            try:
                async for event in events:
                    for token in self._tokens(event):
                        if self._claim is None:
                            watch.cancel()
                            self._claim = self._enter_claim()
                        self._count()
                        self._feed.put(token)
            except asyncio.CancelledError:
                if watch.done() and not watch.cancelled() and not self._is_closed:
                    raise LinkStalled(
                        "the engine has put out no token in its time: its KV does not arrive"
                    ) from None
                raise
            finally:
                watch.cancel()

    def _count(self) -> None:
        now_s = asyncio.get_running_loop().time()
        self._on_token(None if self._last_token_s is None else now_s - self._last_token_s)
        self._last_token_s = now_s

    def _tokens(self, event: Mapping[str, Any]) -> list[TokenOut]:
        if "error" in event:
            raise self._failed(f"the engine failed: {reason_of(event)}")
        try:
            return self._reader.read(event)
        except WorkerLost as error:
            raise self._failed(error.message) from error

    def _failed(self, said: str) -> PrfaasError:
        """What an engine tells of before its first token is that its KV did not arrive."""
        return SegmentFailed(said) if self._claim is None else WorkerLost(said)

    def _watch_first_token(self, task: asyncio.Task[None] | None) -> asyncio.Task[None]:
        async def watch() -> None:
            await self._is_read.wait()
            began_s = loop.time()
            while (wait_s := self._first_token_s(loop.time() - began_s)) > 0:  # noqa: ASYNC110
                await asyncio.sleep(wait_s)
            if task is not None:
                task.cancel()

        loop = asyncio.get_running_loop()
        return loop.create_task(watch(), name="first token")

    def _end(self, error: PrfaasError | None) -> None:
        self._feed.end(error)
        if error is not None and not self._is_read.is_set() and not self._is_closed:
            self._on_failure(error)
