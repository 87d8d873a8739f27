"""An emulated prefill engine: one prompt at a time, first come, first served."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from controlplane.domain.prefix import BlockHash
from controlplane.replay.cache import BlockCache
from controlplane.replay.flows import Flow, Receiver, SharedLink
from controlplane.replay.spec import Hardware


class PrefillRun:
    """One prefill, from its acceptance until its KV has left or was given up."""

    __slots__ = (
        "_arrived", "_flow", "_held_tokens", "_kv", "_lost", "accepted_s", "began_s",
        "cached_tokens", "ended_s", "estimate_s", "hashes", "is_over", "job_id", "length_s",
        "tokens", "transfer_bytes",
    )  # fmt: skip

    def __init__(
        self,
        job_id: str,
        tokens: int,
        hashes: Sequence[BlockHash],
        hardware: Hardware,
        now_s: float,
    ) -> None:
        self.job_id = job_id
        #: Tokens that it covers: all of the prompt but the last.
        self.tokens = tokens
        self.hashes = hashes
        self.accepted_s = now_s
        self.began_s: float | None = None
        self.ended_s: float | None = None
        #: What it adds to its worker's queue, until it begins.
        self.estimate_s = 0.0
        self.length_s = 0.0
        self.cached_tokens = 0
        #: It was given up, or its worker is gone.
        self.is_over = False
        self.transfer_bytes = 0
        self._kv = hardware.kv
        self._flow: Flow | None = None
        self._held_tokens = 0
        self._arrived: Callable[[], None] | None = None
        self._lost: Callable[[bool], None] | None = None

    def __repr__(self) -> str:
        return f"<PrefillRun {self.job_id} of {self.tokens} tokens>"

    @property
    def flow(self) -> Flow | None:
        """Its transfer; None inside a datacenter."""
        return self._flow

    def fetch(
        self,
        held_tokens: int,
        link: SharedLink | None,
        receiver: Receiver | None,
        *,
        now_s: float,
        arrived: Callable[[], None],
        lost: Callable[[bool], None],
    ) -> None:
        """
        Let a decode worker have the KV while it is made.

        Args:
            held_tokens: Whose attention it has already.
            link: Between the two; None inside a datacenter, where bytes take no time.
            receiver: Counts what comes over the link.
            now_s: Now.
            arrived: Called when all of it is there.
            lost: Called when it will never be, with whether the link stalled.
        """
        self._held_tokens, self._arrived, self._lost = held_tokens, arrived, lost
        lacking = max(0, self.tokens - held_tokens)
        self.transfer_bytes = round(lacking * self._kv.bytes_per_token + self._kv.state_bytes)
        if link is not None and receiver is not None:
            self._flow = link.open(float(self.transfer_bytes), receiver, self._transferred)
        if self.ended_s is not None:
            self._computed()
        elif self.began_s is not None:
            self._produce(now_s)

    def begin(self, now_s: float, cached_tokens: int, length_s: float) -> None:
        """Its turn has come."""
        self.began_s, self.cached_tokens, self.length_s = now_s, cached_tokens, length_s
        if self._flow is not None:
            self._produce(now_s)

    def end(self, now_s: float) -> None:
        """All is computed."""
        self.ended_s = now_s
        if self._arrived is not None:
            self._computed()

    def give_up(self, *, is_lost: bool) -> None:
        """Nothing more comes of it; whoever reads is told when that is a loss."""
        if self.is_over:
            return
        self.is_over = True
        if self._flow is not None:
            self._flow.cancel()
        lost, self._lost = self._lost, None
        if is_lost and lost is not None:
            lost(False)

    def _produce(self, now_s: float) -> None:
        if self._flow is None:
            return
        assert self.began_s is not None
        per_token = self._kv.bytes_per_token
        cached = max(0, self.cached_tokens - self._held_tokens)
        made = max(0, self.tokens - max(self.cached_tokens, self._held_tokens))
        part = min(1.0, (now_s - self.began_s) / self.length_s) if self.length_s > 0 else 1.0
        self._flow.produce(
            (cached + made * part) * per_token,
            made * (1 - part) * per_token,
            self.length_s * (1 - part),
        )

    def _computed(self) -> None:
        if self._flow is not None:
            self._flow.finish()
        elif self._arrived is not None:
            self._transferred(True)

    def _transferred(self, is_ok: bool) -> None:  # noqa: FBT001 - a callback
        arrived, lost = self._arrived, self._lost
        self._arrived = self._lost = None
        if is_ok and arrived is not None:
            arrived()
        elif not is_ok and lost is not None:
            lost(True)


class PrefillEngine:
    """See the module."""

    def __init__(
        self, hardware: Hardware, cache: BlockCache, loop: asyncio.AbstractEventLoop, *, block: int
    ) -> None:
        """
        An idle one.

        Args:
            hardware: How long a prompt takes.
            cache: Of prefixes.
            loop: Its time and timers.
            block: Tokens of a block of the cache.
        """
        self._hardware = hardware
        self._profile = hardware.prefill
        self._cache = cache
        self._loop = loop
        self._block = block
        self._waiting: deque[PrefillRun] = deque()
        self._running: PrefillRun | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._waiting_s = 0.0
        self._waiting_tokens = 0
        self.runs: dict[str, PrefillRun] = {}
        #: Seconds it has computed.
        self.busy_s = 0.0
        #: Part of its time that it has for prefill: less where it lends itself.
        self.share = 1.0

    def __repr__(self) -> str:
        return f"<PrefillEngine {len(self._waiting)} waiting>"

    @property
    def requests(self) -> int:
        """Prefills waiting and running."""
        return len(self._waiting) + (self._running is not None)

    @property
    def running(self) -> int:
        """Prefills running: 0 or 1."""
        return int(self._running is not None)

    def queue_s(self, now_s: float) -> float:
        """Seconds until all that it has is computed, >= 0."""
        return self._waiting_s + self._rest_s(now_s)

    def queue_tokens(self, now_s: float) -> int:
        """Prompt tokens that it still has to compute."""
        run = self._running
        if run is None:
            return max(0, self._waiting_tokens)
        left = (run.tokens - run.cached_tokens) * (
            self._rest_s(now_s) / run.length_s if run.length_s else 0.0
        )
        return max(0, self._waiting_tokens + round(left))

    def accept(self, job_id: str, tokens: int, hashes: Sequence[BlockHash]) -> PrefillRun:
        """Take a prompt."""
        now_s = self._loop.time()
        run = PrefillRun(job_id, tokens, hashes, self._hardware, now_s)
        run.estimate_s = self._time_s(run)[1]
        self.runs[job_id] = run
        self._waiting.append(run)
        self._waiting_s += run.estimate_s
        self._waiting_tokens += tokens
        if self._running is None:
            self._next()
        return run

    def abort(self, job_id: str) -> None:
        """Give a prefill up; one that is not there is none."""
        run = self.runs.pop(job_id, None)
        if run is None:
            return
        run.give_up(is_lost=False)
        if run is self._running:
            self._stop()
            self._next()
        elif run.began_s is None and run in self._waiting:
            self._waiting.remove(run)
            self._unqueue(run)

    def forget(self, job_id: str) -> None:
        """Its KV has left."""
        self.runs.pop(job_id, None)

    def lose_all(self) -> None:
        """The process has ended."""
        runs, self.runs = list(self.runs.values()), {}
        self._stop()
        self._waiting.clear()
        self._waiting_s, self._waiting_tokens = 0.0, 0
        for run in runs:
            run.give_up(is_lost=True)

    # --- Inside -------------------------------------------------------------------------------

    def _time_s(self, run: PrefillRun) -> tuple[int, float]:
        """Tokens that are cached now, and how long the rest takes."""
        _, resumable = self._cache.held(run.hashes) if run.hashes else (0, 0)
        cached = min(run.tokens, resumable * self._block)
        assert self._profile is not None, "nobody asks it"
        return cached, self._profile.prefill_s(run.tokens - cached, cached) / self.share

    def _rest_s(self, now_s: float) -> float:
        run = self._running
        if run is None or run.began_s is None:
            return 0.0
        return max(0.0, run.began_s + run.length_s - now_s)

    def _next(self) -> None:
        if not self._waiting:
            return
        run = self._waiting.popleft()
        self._unqueue(run)
        now_s = self._loop.time()
        cached, length_s = self._time_s(run)
        self._running = run
        run.begin(now_s, cached, length_s)
        self._timer = self._loop.call_later(length_s, self._ended)

    def _unqueue(self, run: PrefillRun) -> None:
        self._waiting_s = max(0.0, self._waiting_s - run.estimate_s) if self._waiting else 0.0
        self._waiting_tokens -= run.tokens

    def _ended(self) -> None:
        run = self._running
        assert run is not None, "its timer ends with it"
        self._stop()
        self._cache.put(run.hashes, has_states=True)
        # The next one first: what hears of this one may look at the queue.
        self._next()
        run.end(self._loop.time())

    def _stop(self) -> None:
        run, self._running = self._running, None
        if run is not None and run.began_s is not None:
            self.busy_s += min(run.length_s, self._loop.time() - run.began_s)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
