"""An emulated decode engine: so many slots, one step time, and no event for each token."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from controlplane.domain.prefix import BlockHash
from controlplane.domain.throughput.profile import DecodeProfile
from controlplane.errors import Draining, LinkDown, LinkStalled, WorkerLost
from controlplane.replay.cache import BlockCache
from controlplane.replay.prefilling import PrefillRun
from controlplane.wire import FrameKind, pack_output

_FIRST_TOKEN = [(FrameKind.OUTPUT, pack_output((0,), b"."))]
_LAST_CONTENT = (FrameKind.OUTPUT, pack_output((), b"data: [DONE]\n\n"))


class DecodeRun:
    """One request at a decode worker, and the stream that its router reads."""

    __slots__ = (
        "_engine", "_frames", "_is_closed", "_output", "_resumed", "_waiter", "accepted_s",
        "first_s", "hashes", "held_tokens", "kv_s", "slot_s", "source", "step_s", "timer",
    )  # fmt: skip

    def __init__(
        self,
        engine: DecodeEngine,
        *,
        hashes: Sequence[BlockHash],
        output_tokens: int,
        resumed_tokens: int,
        now_s: float,
    ) -> None:
        self._engine = engine
        self.hashes = hashes
        self._output = max(1, output_tokens - resumed_tokens)
        self._resumed = resumed_tokens
        self.accepted_s = now_s
        self.held_tokens = 0
        self.source: PrefillRun | None = None
        #: When its KV was there, when it got its slot, and when its first token was there.
        self.kv_s: float | None = None
        self.slot_s = now_s
        self.first_s: float | None = None
        self.step_s = 0.0
        self.timer: asyncio.TimerHandle | None = None
        #: What the router has not read yet; an exception breaks the stream.
        self._frames: deque[list[tuple[FrameKind, bytes]] | Exception] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._is_closed = False

    def __repr__(self) -> str:
        return f"<DecodeRun {self._output} tokens>"

    # --- DecodeStream -------------------------------------------------------------------------

    async def frames(self) -> list[tuple[FrameKind, bytes]]:
        """The next frames; see `controlplane.router.workers.DecodeStream`."""
        while not self._frames:
            if self._is_closed:
                return []
            self._waiter = self._engine.loop.create_future()
            await self._waiter
        found = self._frames.popleft()
        if isinstance(found, Exception):
            self._is_closed = True
            raise found
        return found

    @property
    def has_ended(self) -> bool:
        """The router has had everything, and it is over."""
        return self._is_closed and not self._frames

    def close(self) -> None:
        """The router has gone: stop, and free everything."""
        if not self._is_closed:
            self._is_closed = True
            self._engine.drop(self)
            self._wake()

    # --- For the engine -----------------------------------------------------------------------

    @property
    def is_closed(self) -> bool:
        """Nothing more comes of it."""
        return self._is_closed

    @property
    def rest_s(self) -> float:
        """From the first token to the last."""
        return (self._output - 1) * self.step_s

    def first_token(self) -> None:
        """Send the first token."""
        self._send(_FIRST_TOKEN)

    def finished(self) -> None:
        """Send all the rest and the report, and close."""
        self._send([_LAST_CONTENT, (FrameKind.REPORT, self._report())])
        self._is_closed = True

    def failed(self, code: str, message: str) -> None:
        """Tell the router that the KV did not come, and close."""
        failure = f'{{"code":"{code}","message":"{message}"}}'.encode()
        self._send([(FrameKind.FAILURE, failure)])
        self._is_closed = True

    def broken(self, now_s: float) -> None:
        """The worker's process has ended: what it had made is there, then the stream breaks."""
        self._frames.extend(self._made_since(now_s))
        self._frames.append(WorkerLost("the connection broke"))
        self._wake()

    def handed_over(self, now_s: float) -> None:
        """The worker leaves: the router gets what was made, and is told to go on elsewhere."""
        self._frames.extend(self._made_since(now_s))
        self.failed(Draining.code, "this worker leaves")

    def _made_since(self, now_s: float) -> list[list[tuple[FrameKind, bytes]]]:
        """Tokens after the first, which nobody was told of one by one."""
        if self.first_s is None or self.step_s <= 0:
            return []
        made = min(self._output - 1, int((now_s - self.first_s) / self.step_s))
        return [[(FrameKind.OUTPUT, pack_output((0,) * made, b"."))]] if made > 0 else []

    def _send(self, frames: list[tuple[FrameKind, bytes]]) -> None:
        self._frames.append(frames)
        self._wake()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _report(self) -> bytes:
        """A `DecodeReport`; written by hand, because there is one for each request."""
        source = self.source
        assert source is not None
        assert self.first_s is not None
        assert self.kv_s is not None
        began_s = source.began_s if source.began_s is not None else self.accepted_s
        ended_s = source.ended_s if source.ended_s is not None else began_s
        now_s, zero_s = self._engine.loop.time(), self.accepted_s
        return (
            f'{{"finish_reason":"length","output_tokens":{self._output + self._resumed},'
            f'"prompt_tokens_computed":1,"queue_s":{self.slot_s - self.kv_s:.9f},'
            f'"first_token_s":{self.first_s - zero_s:.9f},"finished_s":{now_s - zero_s:.9f},'
            f'"transfer":{{"bytes":{source.transfer_bytes},"chunks":1,'
            f'"held_tokens":{self.held_tokens},"finished_s":{self.kv_s - zero_s:.9f}}},'
            f'"prefill":{{"queue_s":{began_s - source.accepted_s:.9f},'
            f'"compute_s":{ended_s - began_s:.9f},"cached_tokens":{source.cached_tokens},'
            f'"computed_tokens":{source.tokens - source.cached_tokens}}}}}'
        ).encode()


class DecodeEngine:
    """See the module."""

    def __init__(
        self,
        profile: DecodeProfile | None,
        cache: BlockCache,
        loop: asyncio.AbstractEventLoop,
        *,
        block: int,
        forget: Callable[[PrefillRun], None],
    ) -> None:
        """
        An idle one.

        Args:
            profile: Slots, and the time of a step; None for hardware that cannot decode.
            cache: Attention of prompts that were here.
            loop: Its time and timers.
            block: Tokens of a block of the cache.
            forget: Told when the KV of a prefill is no longer needed.
        """
        self._profile = profile
        self._cache = cache
        self.loop = loop
        self._block = block
        self._forget = forget
        self._waiting: deque[DecodeRun] = deque()
        self._decoding: dict[DecodeRun, None] = {}
        self._runs: dict[DecodeRun, None] = {}
        #: Seconds of slots that were used.
        self.busy_s = 0.0
        #: Part of each step that is left for decode.
        self.share = 1.0

    def __repr__(self) -> str:
        return f"<DecodeEngine {len(self._decoding)} decoding, {len(self._waiting)} waiting>"

    @property
    def requests(self) -> int:
        """Requests that it has, in whatever state."""
        return len(self._runs)

    @property
    def running(self) -> int:
        """Requests in a slot."""
        return len(self._decoding)

    @property
    def slots(self) -> int:
        """Requests that decode at the same time."""
        return int(self._profile.slots) if self._profile is not None else 0

    @property
    def step_s(self) -> float:
        """Seconds of a step, as long as it lends what it lends."""
        return self._profile.step_s / self.share if self._profile is not None else 0.0

    def held_tokens(self, hashes: Sequence[BlockHash]) -> int:
        """Leading tokens of a prompt whose attention is here."""
        return self._cache.held(hashes)[0] * self._block if hashes else 0

    def take(self, run: DecodeRun) -> None:
        """A request is here; its KV is not yet."""
        self._runs[run] = None

    def arrived(self, run: DecodeRun) -> None:
        """The KV of a request is there: it decodes as soon as there is a slot."""
        if run not in self._runs:
            return
        run.kv_s = self.loop.time()
        if run.source is not None:
            self._forget(run.source)
        self._cache.put(run.hashes, has_states=False)
        self._waiting.append(run)
        self._fill_slots()

    def lost(self, run: DecodeRun, *, is_stalled: bool) -> None:
        """The KV of a request will never be there."""
        if self._runs.pop(run, run) is None:
            kind = LinkStalled if is_stalled else LinkDown
            run.failed(kind.code, "the KV did not come")

    def drop(self, run: DecodeRun) -> None:
        """Its router has gone."""
        self._runs.pop(run, None)
        if run.timer is not None:
            run.timer.cancel()
            run.timer = None
        if run.source is not None:
            run.source.give_up(is_lost=False)
        if run in self._decoding:
            self._leave(run)
            self._fill_slots()
        elif run in self._waiting:
            self._waiting.remove(run)

    def hand_over(self) -> None:
        """The worker leaves or changes its role: what still decodes goes on elsewhere."""
        self._end_all(lambda run, now_s: run.handed_over(now_s))

    def lose_all(self) -> None:
        """The process has ended."""
        self._end_all(lambda run, now_s: run.broken(now_s))

    def _end_all(self, end: Callable[[DecodeRun, float], None]) -> None:
        runs, self._runs = list(self._runs), {}
        now_s = self.loop.time()
        for run in runs:
            if run.timer is not None:
                run.timer.cancel()
            if run in self._decoding:
                self._leave(run)
            end(run, now_s)
        self._waiting.clear()

    # --- Inside -------------------------------------------------------------------------------

    def _fill_slots(self) -> None:
        while self._waiting and len(self._decoding) < self.slots:
            run = self._waiting.popleft()
            self._decoding[run] = None
            run.slot_s, run.step_s = self.loop.time(), self.step_s
            run.timer = self.loop.call_later(run.step_s, self._first, run)

    def _first(self, run: DecodeRun) -> None:
        run.first_s = self.loop.time()
        run.first_token()
        run.timer = self.loop.call_later(run.rest_s, self._last, run)

    def _last(self, run: DecodeRun) -> None:
        run.timer = None
        self._leave(run)
        self._runs.pop(run, None)
        run.finished()
        self._fill_slots()

    def _leave(self, run: DecodeRun) -> None:
        del self._decoding[run]
        self.busy_s += self.loop.time() - run.slot_s
