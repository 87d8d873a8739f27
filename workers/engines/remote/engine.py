"""An engine server, spoken for by this process: an `Engine` whose KV never passes through here."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from controlplane.config_server import EngineServerConfig
from controlplane.domain.prefix import BlockHash, InventoryDelta
from controlplane.domain.tokens import TokenIds
from controlplane.errors import PrfaasError
from controlplane.observe.logs import get_logger
from controlplane.wire import Load, Profile, Sampling
from workers.engine import EngineCounters, EngineSpec, JobContext, KvImport, KvPiece, TokenOut
from workers.engines.kv_events.prefixes import CachedPrefixes
from workers.engines.local.stream import Stream
from workers.engines.remote.handle import ORIGIN, PARAMETERS
from workers.engines.remote.http import EngineHttp
from workers.engines.remote.legs import Handoff, Leg, Prompt, plain_leg
from workers.engines.remote.output import OutputReader
from workers.engines.remote.prefill import RemotePrefill
from workers.engines.remote.proof import Claim
from workers.engines.remote.pulse import Pulse
from workers.engines.remote.sequence import RemoteSequence
from workers.engines.remote.snapshot import Snapshot
from workers.engines.remote.timing import Timing
from workers.engines.remote.turns import Turns

_log = get_logger()

_BITS: Final = 8
_MEGA: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """What is particular to one kind of server."""

    handoff: Handoff
    reader: Callable[[], OutputReader]
    #: One look at it.
    look: Callable[[], Awaitable[Snapshot]]


class RemoteEngine:
    """
    An `Engine`. Used on the event loop that it was made on.

    A "piece of KV" is the handle that lets the other engine fetch the KV by itself; see
    `workers/engines/remote/handle.py`.
    """

    def __init__(
        self,
        http: EngineHttp,
        server: Server,
        spec: EngineSpec,
        config: EngineServerConfig,
        timing: Timing,
        first: Snapshot,
        *,
        prefixes: CachedPrefixes | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            http: To the server; closed with this.
            server: Its kind.
            spec: What it is, found out before.
            config: Of the fleet.
            timing: Times as far as they are known already.
            first: The look that `spec` was made from.
            prefixes: What its prefix cache holds; None for nothing. Closed with this.
            clock: Monotonic seconds.
        """
        self._http = http
        self._server = server
        self._spec = spec
        self._config = config
        self._timing = timing
        self._prefixes = prefixes or CachedPrefixes.of_nothing()
        self._turns = Turns(clock)
        self._pulse = Pulse(
            server.look, config, first, clock=clock, on_restart=self._prefixes.restarted
        )
        self._prefills: set[RemotePrefill] = set()
        self._sequences: set[RemoteSequence] = set()
        self._prefilled_tokens = 0
        self._output_tokens = 0

    def __repr__(self) -> str:
        return f"<RemoteEngine {self._spec.model} {self._http!r}>"

    def start(self) -> None:
        """Follow the server from now on."""
        self._pulse.start()
        self._prefixes.start()

    @property
    def spec(self) -> EngineSpec:
        """What it is."""
        return self._spec

    def prefill(
        self, tokens: TokenIds, hashes: Sequence[BlockHash], context: JobContext | None = None
    ) -> RemotePrefill:
        """One prefill request; see the contract."""
        return RemotePrefill(
            self._http,
            self._server.handoff,
            self._prompt(tokens, context),
            self._turns,
            origin=self._origin,
            handle_bytes=self._spec.groups[0].fixed_bytes,
            covered_tokens=len(tokens),
            on_begin=self._prefills.add,
            on_end=lambda run: self._prefill_ended(run, hashes),
        )

    def begin_import(
        self, tokens: TokenIds, hashes: Sequence[BlockHash], context: JobContext | None = None
    ) -> RemoteSequence:
        """A decode request that waits for its handle; see the contract."""
        prompt = self._prompt(tokens, context)
        assert context is not None, "a prompt has a context"
        assert context.sampling is not None, "a decode job says how to sample"
        sampling = context.sampling
        count = len(prompt.tokens)
        tail_tokens = self._spec.block_tokens

        def claim() -> Claim:
            self._prefixes.sent(hashes, prompt.scope)
            return self._pulse.claim(count, tail_tokens=tail_tokens)

        def leg(handle: dict[str, Any]) -> Leg:
            nonlocal tail_tokens
            if handle.get(ORIGIN) == self._origin:
                # Prefilled by this very server: its own prefix cache has it, nothing is to be moved.
                tail_tokens = count
                return plain_leg(prompt, sampling)
            parameters = handle.get(PARAMETERS)
            if not isinstance(parameters, dict):
                raise ValueError("the handle has no parameters")  # noqa: TRY004 - of its content
            return self._server.handoff.decode_leg(prompt, parameters, sampling)

        sequence = RemoteSequence(
            self._http,
            leg,
            self._server.reader(),
            first_token_s=lambda waited_s: self._first_token_s(count, waited_s),
            claim=claim,
            settle=self._pulse.settled,
            on_token=self._token_came,
            on_failure=context.on_failure,
            on_close=self._sequences.discard,
        )
        self._sequences.add(sequence)
        return sequence

    def decode(self, sequence: KvImport, tokens: TokenIds, sampling: Sampling) -> Stream[TokenOut]:
        """
        The tokens of a request that runs already; see the contract.

        Raises:
            ValueError: The sequence is not of this engine, or has no handle.
        """
        del tokens, sampling
        if not isinstance(sequence, RemoteSequence) or sequence not in self._sequences:
            raise ValueError("this sequence was not opened here, or is closed")
        return sequence.output()

    def export_prefix(self, tokens: TokenIds, hashes: Sequence[BlockHash]) -> Sequence[KvPiece]:
        """Nothing: its cache is in another process."""
        del tokens, hashes
        return ()

    def limit_prefill(self, share: float | None) -> None:
        """The server divides its time itself."""
        del share

    def take_inventory_delta(self, *, is_full: bool) -> InventoryDelta:
        """What is known of the server's prefix cache."""
        return self._prefixes.take(is_full=is_full)

    def load(self) -> Load:
        """Its queue as this agent and the server's own metrics know it, whichever knows more."""
        seen = self._pulse.snapshot
        mine = len(self._prefills) + sum(one.is_running for one in self._sequences)
        return Load(
            queue_requests=max(mine, seen.running + seen.waiting),
            queue_tokens=sum(run.tokens_left for run in self._prefills),
            running=seen.running,
            kv_bytes=round(seen.kv_use * self._pulse.cache_tokens * self._bytes_per_token),
            kv_use=seen.kv_use,
            preemptions_total=seen.preemptions_total,
            has_guessed_prefixes=self._prefixes.is_approximate,
        )

    def profile(self) -> Profile:
        """Measured times; sizes as configured, corrected by what transfers took."""
        timing = self._timing
        return Profile(
            prefill_s_per_token=timing.prefill_s_per_token,
            prefill_fixed_s=timing.prefill_fixed_s,
            prefill_s_per_token_squared=timing.prefill_s_per_token_squared,
            decode_step_s=timing.decode_step_s,
            kv_bytes_per_token=round(self._bytes_per_token),
            kv_state_bytes=self._config.kv_state_bytes,
        )

    def counters(self) -> EngineCounters:
        """Totals since the start; prompt tokens of decode by the server's own count."""
        seen = self._pulse.snapshot
        sources = seen.sources
        return EngineCounters(
            prefill_tokens_total=self._prefilled_tokens,
            decode_prompt_tokens_total=0 if sources is None else sources.computed,
            output_tokens_total=self._output_tokens,
            # Whatever moves is a sign of life.
            units_total=seen.steps_total + self._output_tokens + self._prefilled_tokens,
            unmatched_prompts_total=self._prefixes.unmatched_total,
        )

    def failure(self) -> str | None:
        """Why it can take no work, by its own evidence."""
        return self._pulse.failure

    def check_integrity(self) -> None:
        """
        Assert that nothing is held by requests that have ended.

        Raises:
            AssertionError: It is.
        """
        assert all(run.tokens_left >= 0 for run in self._prefills)

    async def close(self) -> None:
        """Abort all requests and close all connections. Idempotent."""
        for sequence in tuple(self._sequences):
            sequence.close()
        await self._prefixes.close()
        await self._pulse.close()
        await self._http.close()

    # --- Parts --------------------------------------------------------------------------------

    @property
    def _origin(self) -> str:
        return f"{self._http.url} {self._pulse.snapshot.started_s}"

    @property
    def _bytes_per_token(self) -> float:
        return self._config.kv_bytes_per_token or self._pulse.bytes_per_token

    def _prompt(self, tokens: TokenIds, context: JobContext | None) -> Prompt:
        if context is None:
            raise ValueError("an engine server has to be told the whole prompt")
        return Prompt(
            request_id=context.request_id,
            model=self._spec.model,
            tokens=[*tokens.to_list(), context.last_token],
            scope=context.scope,
        )

    def _prefill_ended(self, run: RemotePrefill, hashes: Sequence[BlockHash]) -> None:
        self._prefills.discard(run)
        computed = run.tokens_left - run.cached_tokens
        if run.compute_s > 0:
            self._prefilled_tokens += computed
            self._timing.add_prefill(computed, run.compute_s, cached_tokens=run.cached_tokens)
            self._prefixes.sent(hashes, run.scope)

    def _token_came(self, gap_s: float | None) -> None:
        self._output_tokens += 1
        if gap_s is not None:
            self._timing.add_step(gap_s)

    def _first_token_s(self, tokens: int, waited_s: float) -> float:
        """Seconds that a request still gets until its first token."""
        config = self._config
        if self._pulse.snapshot.waiting_for_room:
            # It waits for others to end, and not for its KV.
            return config.transfer_stall_s
        expected_bytes = self._bytes_per_token * tokens + config.kv_state_bytes
        moving_s = expected_bytes * _BITS / (config.transfer_mbit_per_s_min * _MEGA)
        return config.transfer_stall_s + moving_s - waited_s


async def wait_for(
    find: Callable[[], Awaitable[Any]], *, timeout_s: float, pause_s: float = 1.0
) -> Any:  # noqa: ANN401 - whatever it finds
    """
    Ask until there is an answer; servers take minutes to load.

    Raises:
        PrfaasError: There was none in time, or it was a definite no.
    """
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + timeout_s
    is_said = False
    while True:
        try:
            return await find()
        except PrfaasError as error:
            if not error.is_retryable or loop.time() > deadline_s:
                raise
            if not is_said:
                _log.info("engine.awaited", cause=error.message)
                is_said = True
        await asyncio.sleep(pause_s)
