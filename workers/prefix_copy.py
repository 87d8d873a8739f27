"""Brings the cached prefix of another worker into this one's cache, or says why it could not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from controlplane.config import KvConfig
from controlplane.domain.prefix import BlockHash
from controlplane.domain.tokens import TokenIds
from controlplane.errors import MalformedRequest, TransferError
from controlplane.observe.logs import get_logger
from controlplane.wire import KvLocation, PrefillJob
from workers.engine import Engine, KvImport, KvPiece
from workers.kv.client import Fetch, fetch_segment, release_segment
from workers.kv.timing import Clock
from workers.links import LinkMeters
from workers.metrics import WorkerMetrics

_log = get_logger()

#: A copy may use this part of what is left of its request: the rest is for computing instead.
_DEADLINE_SHARE = 0.5
#: Releases on their way, each bounded by `connect_timeout_s`; more are left to their leases.
_FAREWELLS_MAX = 64


@dataclass(slots=True, kw_only=True)
class Copy:
    """What became of one copy; a copy that failed has cost time and nothing else."""

    #: Tokens that a prefill can skip because of it, and could not before.
    tokens: int = 0
    moved_bytes: int = 0
    took_s: float = 0.0
    #: Code of what ended it; empty when it succeeded.
    failure: str = ""
    #: Keeps what was copied in the cache until the prefill has begun.
    held: KvImport | None = None

    def close(self) -> None:
        """Let the cache do as it likes. Idempotent."""
        if self.held is not None:
            self.held.close()
            self.held = None


class PrefixCopier:
    """Fetches prefixes for one worker: verified like any KV, bounded in time, never an error."""

    def __init__(
        self,
        engine: Engine,
        config: KvConfig,
        metrics: WorkerMetrics,
        links: LinkMeters,
        *,
        datacenter: str,
        copy_s_max: float,
        fetch: Fetch = fetch_segment,
        clock: Clock = time.monotonic,
    ) -> None:
        """
        Args:
            engine: Whose cache is filled.
            config: Deadlines of the KV path.
            metrics: Where bytes are counted.
            links: Where the link is measured.
            datacenter: Of this worker: names the link whose budget the bytes use.
            copy_s_max: A copy takes no longer, seconds.
            fetch: As `fetch_segment`.
            clock: Monotonic seconds.
        """
        self._engine = engine
        self._config = config
        self._metrics = metrics
        self._links = links
        self._datacenter = datacenter
        self._copy_s_max = copy_s_max
        self._fetch = fetch
        self._clock = clock
        self._farewells: set[asyncio.Task[bool]] = set()

    async def copy(
        self, job: PrefillJob, location: KvLocation, tokens: TokenIds, hashes: tuple[BlockHash, ...]
    ) -> Copy:
        """
        Copy a prefix into the cache.

        Args:
            job: Whose prompt it is.
            location: What another worker exported for it.
            tokens: The prompt, without its last token.
            hashes: Of these tokens.

        Returns:
            What became of it, whatever that is; the caller closes it.
        """
        began_s = self._clock()
        copy = Copy(failure=self._misfit(job, location, tokens))
        if copy.failure:
            self._let_go(location)
        else:
            await self._bring(job, location, tokens, hashes, copy)
        copy.took_s = max(0.0, self._clock() - began_s)
        if copy.failure:
            copy.close()
            _log.warning("prefix.copy_failed", request_id=job.request_id, code=copy.failure)
        self._metrics.prefix_copies_total.labels(copy.failure or "ok").inc()
        return copy

    def _misfit(self, job: PrefillJob, location: KvLocation, tokens: TokenIds) -> str:
        """Why a location cannot be a prefix of this prompt here; empty if it can."""
        spec, manifest = self._engine.spec, location.manifest
        if manifest.fingerprint != spec.fingerprint or manifest.groups != spec.groups:
            return "other_fingerprint"
        if manifest.scope != job.scope:
            return "other_scope"
        count = manifest.token_count
        if manifest.block_tokens != spec.block_tokens or count % spec.block_tokens:
            return "other_blocks"
        return "" if 0 < count <= len(tokens) else "other_length"

    async def _bring(
        self,
        job: PrefillJob,
        location: KvLocation,
        tokens: TokenIds,
        hashes: tuple[BlockHash, ...],
        copy: Copy,
    ) -> None:
        count = location.manifest.token_count
        prefix, prefix_hashes = (
            tokens.head(count),
            hashes[: count // self._engine.spec.block_tokens],
        )
        own = self._engine.export_prefix(prefix, prefix_hashes)
        own_tokens = own[-1].token_end if own else 0
        if own_tokens == count:
            # It came here by another way since the router looked.
            self._let_go(location)
            return
        copy.held = self._engine.begin_import(prefix, prefix_hashes)
        within_s = min(self._copy_s_max, job.deadline_s * _DEADLINE_SHARE)
        try:
            async with asyncio.timeout(within_s):
                # A copy gives way, so the connections that it begins with are enough.
                fetched = await self._fetch(
                    location,
                    held_tokens=copy.held.held_tokens,
                    destination=self._datacenter,
                    on_piece=_counting(copy.held.write, copy),
                    config=self._config,
                    arrived_s=self._clock(),
                    clock=self._clock,
                    traffic=self._links.traffic(location.datacenter),
                )
            copy.moved_bytes = fetched.transfer.bytes
            copy.tokens = max(0, copy.held.keep() - own_tokens)
        except TimeoutError:
            copy.failure = "deadline_exceeded"
        except (TransferError, MalformedRequest) as error:
            copy.failure = error.code
        except ValueError:
            # The owner's pieces are not what the engine knows as pieces of these tokens.
            copy.failure = MalformedRequest.code
        except asyncio.CancelledError:
            copy.close()
            raise
        # Bytes without a speed: a copy gives way to others, and would tell of them.
        self._links.add(
            location.datacenter, moved_bytes=copy.moved_bytes, goodput_bps=0.0, rtt_s=0.0
        )
        self._metrics.kv_received_bytes_total.labels(location.datacenter).inc(copy.moved_bytes)

    def _let_go(self, location: KvLocation) -> None:
        """Release what nobody will read, behind the prefill; the lease's end would do the same."""
        if len(self._farewells) >= _FAREWELLS_MAX:
            return
        task = asyncio.get_running_loop().create_task(
            release_segment(location, config=self._config)
        )
        self._farewells.add(task)
        task.add_done_callback(self._farewells.discard)


def _counting(write: Callable[[KvPiece], None], copy: Copy) -> Callable[[KvPiece], None]:
    """Count what arrives, also of a copy that does not come to its end."""

    def take(piece: KvPiece) -> None:
        copy.moved_bytes += len(piece.data)
        write(piece)

    return take
