"""Jobs for workers: the router's client at one end, the worker's listener at the other."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence

from sim.network import Network, Process, Refused, Socket

from controlplane.config import LimitsConfig
from controlplane.domain.tokens import TokenIds
from controlplane.errors import (
    InternalError,
    PrfaasError,
    WorkerLost,
    WorkerRefused,
    WorkerTimeout,
    WorkerUnreached,
)
from controlplane.router.link_probes import Way, WaySign
from controlplane.router.probes import NoBeat
from controlplane.wire import (
    DecodeFailure,
    DecodeJob,
    FrameKind,
    FrameReader,
    KvAddress,
    KvLocation,
    LinkSign,
    PrefillJob,
    PrefixAsk,
    WorkerBeat,
    pack_frame,
    pack_parcel,
    unpack_parcel,
)
from workers.decode_service import DecodeService
from workers.kv.probe import probe_owner
from workers.prefill_service import PrefillService

#: Whether a process is there is known at once, or not worth a longer wait.
_PROBE_S = 0.5


def name_of(url: str) -> str:
    """The process behind a URL."""
    return url.removeprefix("http://")


# --- The router's end -------------------------------------------------------------------------


class SimDecodeStream:
    """A decode worker's answer on a simulated connection."""

    def __init__(self, sock: Socket, idle_timeout_s: float) -> None:
        self._socket = sock
        self._idle_timeout_s = idle_timeout_s
        self._reader = FrameReader()
        self._is_closed = False

    async def frames(self) -> list[tuple[FrameKind, bytes]]:
        """The next frames; see the contract."""
        while not self._is_closed:
            try:
                async with asyncio.timeout(self._idle_timeout_s):
                    data: bytes | None = await self._socket.receive()
            except TimeoutError as error:
                raise WorkerTimeout("the decode worker fell silent in a stream") from error
            except ConnectionError as error:
                raise WorkerLost("the connection to the decode worker broke") from error
            if data is None:
                return []
            while (more := self._socket.receive_nowait()) is not None:
                data += more
            if frames := self._reader.feed(data):
                return frames
        return []

    @property
    def has_ended(self) -> bool:
        """Only a read finds out."""
        return self._is_closed

    def close(self) -> None:
        """Drop the connection."""
        self._is_closed = True
        self._socket.close()


class SimWorkerClient:
    """Jobs over the simulated network, with the timeouts of `http_workers.py`."""

    def __init__(self, process: Process, limits: LimitsConfig) -> None:
        self._process = process
        self._network: Network = process.network
        self._limits = limits

    async def prefill(self, url: str, job: PrefillJob, tokens: TokenIds) -> KvLocation:
        """Start a prefill; see the contract."""
        parcel = pack_parcel(job, tokens.data)

        async def take(process: Process) -> bytes:
            return await process.doors["prefill"](parcel)  # type: ignore[no-any-return]

        try:
            async with asyncio.timeout(self._limits.prefill_accept_timeout_s):
                answer = await self._network.call(
                    self._process, name_of(url), take, name=f"accept {job.request_id}"
                )
        except TimeoutError as error:
            raise WorkerTimeout("the prefill worker did not answer in time") from error
        except Refused as error:
            raise WorkerUnreached("no connection to the prefill worker") from error
        except ConnectionError as error:
            raise WorkerLost("the connection to the prefill worker broke") from error
        except PrfaasError as error:
            raise WorkerRefused(f"the prefill worker refused the job: {error.message}") from error
        return KvLocation.model_validate_json(answer)

    async def abort_prefill(self, url: str, request_id: str) -> None:
        """Stop a prefill; see the contract."""

        async def take(process: Process) -> None:
            process.doors["abort"](request_id)

        with contextlib.suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(self._limits.prefill_accept_timeout_s):
                await self._network.call(
                    self._process, name_of(url), take, name=f"abort {request_id}"
                )

    async def decode(self, url: str, job: DecodeJob, tokens: TokenIds) -> SimDecodeStream:
        """Start a decode; see the contract."""
        parcel = pack_parcel(job, tokens.data)
        sock = self._network.connect(self._process, name_of(url), "decode", parcel)
        try:
            async with asyncio.timeout(self._limits.connect_timeout_s):
                await sock.opened
            async with asyncio.timeout(self._limits.decode_idle_timeout_s):
                refusal = await sock.receive()
        except TimeoutError as error:
            sock.close()
            raise WorkerTimeout("the decode worker did not answer in time") from error
        except Refused as error:
            sock.close()
            raise WorkerUnreached("no connection to the decode worker") from error
        except ConnectionError as error:
            sock.close()
            raise WorkerLost("the connection to the decode worker broke") from error
        except BaseException:
            sock.close()
            raise
        if refusal:
            sock.close()
            raise WorkerRefused(f"the decode worker refused the job: {refusal.decode()}")
        return SimDecodeStream(sock, self._limits.decode_idle_timeout_s)

    async def export_prefix(self, url: str, ask: PrefixAsk, tokens: TokenIds) -> None:
        """Workers here say that they cannot export, so nobody asks."""
        raise AssertionError(f"{url} was asked for {len(tokens)} tokens by {ask.request_id}")

    async def has_died(self, url: str, incarnation: str, *, neighbours: Sequence[str] = ()) -> bool:
        """Whether a process life is certainly over; see the contract."""
        del neighbours
        beat = await self.beat(url)
        if isinstance(beat, Refused):
            return True
        return beat is not None and beat.incarnation != incarnation

    async def beat(self, url: str) -> WorkerBeat | Refused | None:
        """What a worker says of itself; None when nobody can tell."""

        async def take(process: Process) -> bytes:
            beat: WorkerBeat = process.doors["beat"]()
            return beat.model_dump_json().encode()

        try:
            async with asyncio.timeout(_PROBE_S):
                answer = await self._network.call(self._process, name_of(url), take, name="beat")
        except Refused as error:
            return error
        except (ConnectionError, TimeoutError):
            return None
        return WorkerBeat.model_validate_json(answer)

    async def close(self) -> None:
        """Its connections end with the process."""


class SimProber:
    """Asks one worker how it is, for `router/probes.py`."""

    def __init__(self, workers: SimWorkerClient) -> None:
        self._workers = workers

    async def ask(self, url: str) -> WorkerBeat | NoBeat:
        """What the process at a URL says of itself."""
        beat = await self._workers.beat(url)
        if beat is None:
            return "silent"
        return "refused" if isinstance(beat, Refused) else beat

    async def close(self) -> None:
        """Its connections end with the process."""


class SimLinkProber:
    """Probes the way from a prefill worker to a decode worker, for `router/link_probes.py`."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._network: Network = process.network

    async def cross(self, way: Way, *, timeout_s: float) -> WaySign:
        """Whether a way is open in both directions."""
        if not self._network.is_probing:
            return "unknown"
        owner, reader = await asyncio.gather(
            self._ask_owner(way, timeout_s), self._ask_reader(way, timeout_s)
        )
        if "silent" in (owner, reader):
            return "silent"
        return "answered" if (owner, reader) == ("answered", "answered") else "unknown"

    async def _ask_owner(self, way: Way, timeout_s: float) -> LinkSign:
        async def take(process: Process) -> None:
            process.doors["beat"]()

        try:
            async with asyncio.timeout(timeout_s):
                await self._network.call(
                    self._process, name_of(way.owner_url), take, name="probe of a link"
                )
        except TimeoutError:
            return "silent"
        except ConnectionError:
            return "refused"
        return "answered"

    async def _ask_reader(self, way: Way, timeout_s: float) -> LinkSign:
        async def take(process: Process) -> LinkSign:
            if "probe-link" not in process.doors:
                return "refused"
            return await process.doors["probe-link"](way.owner_kv, timeout_s)  # type: ignore[no-any-return]

        try:
            async with asyncio.timeout(timeout_s + 0.5):
                return await self._network.call(
                    self._process, name_of(way.reader_url), take, name="dial over a link"
                )
        except (ConnectionError, TimeoutError):
            return "refused"

    async def close(self) -> None:
        """Its connections end with the process."""


# --- The worker's end -------------------------------------------------------------------------


def open_prefill_door(
    process: Process, service: PrefillService, on_late_job: Callable[[str], None]
) -> None:
    """Take prefill jobs and aborts."""

    async def accept(parcel: bytes) -> bytes:
        head, payload = unpack_parcel(parcel)
        job = PrefillJob.model_validate_json(head)
        is_draining = service.is_draining
        location = await service.accept(job, TokenIds(payload, job.token_width_bytes))
        process.network.locations.setdefault(process.name, deque(maxlen=64)).append(location)
        if is_draining:
            on_late_job(f"{process.name} took {job.request_id} while it was leaving")
        return location.model_dump_json().encode()

    process.doors["prefill"] = accept
    process.doors["abort"] = service.abort


def open_decode_door(
    process: Process,
    service: DecodeService,
    *,
    alive_interval_s: float,
    violate: Callable[[str, str], None],
    strip: Callable[[bytes], bytes] = lambda head: head,
) -> None:
    """
    Take decode jobs.

    Args:
        process: Listens.
        service: Does the work.
        alive_interval_s: Silences are broken so often.
        violate: Told of what may never be, by invariant.
        strip: What an older version reads of a job's header.
    """

    async def serve(sock: Socket, parcel: bytes) -> None:
        head, payload = unpack_parcel(parcel)
        job = DecodeJob.model_validate_json(strip(head))
        tokens = TokenIds(payload, job.token_width_bytes)
        try:
            service.check(job, tokens)
        except PrfaasError as error:
            sock.send(error.message.encode())
            return
        if service.is_draining:
            violate("I15", f"{process.name} took {job.request_id} while it was leaving")
        sock.send(b"")
        sender = _Sender(sock)
        alive = asyncio.get_running_loop().create_task(sender.keep_alive(alive_interval_s))
        process.jobs[job.request_id] = None
        try:
            await service.run(job, tokens, sender)
        except PrfaasError as error:
            await sender.fail(error.code, error.message)
        except ConnectionError:
            return
        except Exception as error:  # noqa: BLE001 - the edge of a worker, as in `workers/server.py`
            violate("bug", f"{process.name}: {type(error).__name__}: {error}")
            await sender.fail(InternalError.code, "the worker failed")
        finally:
            process.jobs.pop(job.request_id, None)
            alive.cancel()

    process.services["decode"] = serve


def refuse_prefills(process: Process) -> None:
    """What a worker answers that does not prefill in this life."""

    async def refuse(parcel: bytes) -> bytes:
        del parcel
        raise WorkerRefused("nobody prefills here")

    process.doors["prefill"] = refuse
    process.doors["abort"] = lambda _: None


def refuse_decodes(process: Process) -> None:
    """What a worker answers that does not decode in this life."""

    async def refuse(sock: Socket, parcel: bytes) -> None:
        del parcel
        sock.send(b"nobody decodes here")

    process.services["decode"] = refuse


def open_probe_door(process: Process) -> None:
    """Dial other workers' KV ports for routers."""

    async def probe(target: KvAddress, timeout_s: float) -> LinkSign:
        reply = await probe_owner(target, timeout_s=timeout_s, clock=process.network.loop.time)
        return reply.sign

    process.doors["probe-link"] = probe


class _Sender:
    """Frames to the router."""

    def __init__(self, sock: Socket) -> None:
        self._socket = sock
        self._has_spoken = False

    async def __call__(self, *frames: tuple[FrameKind, bytes]) -> None:
        self._has_spoken = True
        self._socket.send(b"".join(pack_frame(kind, payload) for kind, payload in frames))

    async def fail(self, code: str, message: str) -> None:
        failure = DecodeFailure(code=code, message=message[:1024])
        with contextlib.suppress(ConnectionError):
            await self((FrameKind.FAILURE, failure.model_dump_json().encode()))

    async def keep_alive(self, interval_s: float) -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                self._has_spoken = False
                await asyncio.sleep(interval_s)
                if not self._has_spoken:
                    self._socket.send(pack_frame(FrameKind.ALIVE, b""))
