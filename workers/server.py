"""The HTTP side of a worker: jobs in, locations and token streams out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, TypeVar

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, ValidationError

from controlplane.domain.tokens import TokenIds
from controlplane.errors import (
    InternalError,
    MalformedRequest,
    PrfaasError,
    RoleRefused,
    WorkerRefused,
)
from controlplane.observe.logs import get_logger
from controlplane.wire import (
    STREAM_CONTENT_TYPE,
    DecodeFailure,
    DecodeJob,
    FrameKind,
    LinkProbe,
    LinkProbeReply,
    PrefillJob,
    PrefixAsk,
    RoleChange,
    RoleReply,
    WorkerBeat,
    WorkerError,
    pack_frame,
    unpack_parcel,
)
from workers.decode_service import DecodeService
from workers.metrics import WorkerMetrics
from workers.prefill_service import PrefillService
from workers.prefix_export import PrefixExporter

_log = get_logger()

Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]
_Job = TypeVar("_Job", bound=BaseModel)
_Service = TypeVar("_Service")

#: Where a registration of lent time is asked for work, behind the worker's own URL.
LENT_PATH: Final = "/lent"

_ACCEPTED: Final = 202

#: A parcel: header and the tokens of the longest prompt at four bytes each.
_BODY_BYTES_MAX = 64 << 20

#: Probes of links at the same time: two a second and router, each of a second at most.
_PROBES_MAX = 256

_BUG = "the worker failed; its log has the story"

#: A router that does not read for this long has gone.
_WRITE_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """What one registration is asked for; a service that its role does not have answers 404."""

    beat: Callable[[], WorkerBeat]
    prefill: PrefillService | None = None
    decode: DecodeService | None = None
    exporter: PrefixExporter | None = None


class WorkerServer:
    """
    Routes of one process: of its registration, of the one for lent time below `LENT_PATH`, and its own.

    A request goes to whoever serves when it comes: a role changes without a new listener.
    """

    def __init__(
        self,
        *,
        desk: Callable[[], Desk],
        metrics: WorkerMetrics,
        refresh_metrics: Callable[[], None],
        alive_interval_s: float,
        lent: Callable[[], Desk] | None = None,
        probe: Callable[[LinkProbe], Awaitable[LinkProbeReply]] | None = None,
        change_role: Callable[[RoleChange], RoleReply] | None = None,
    ) -> None:
        """
        Args:
            desk: Of the worker's registration now.
            metrics: Of the process.
            refresh_metrics: Called before they are shown.
            alive_interval_s: A decode stream is silent for so long at most, seconds.
            lent: The desk of lent time; while nothing is lent, whoever can say that it is gone.
            probe: Tries the way to another worker's KV port; None answers 404.
            change_role: Does what a planner asks; None answers 404.
        """
        self._desk = desk
        self._metrics = metrics
        self._refresh_metrics = refresh_metrics
        self._alive_interval_s = alive_interval_s
        self._lent = lent
        self._probe = probe
        self._probing = 0
        self._change_role = change_role

    def application(self) -> web.Application:
        """The routes."""
        app = web.Application(client_max_size=_BODY_BYTES_MAX, middlewares=[_guard])
        router = app.router
        desks = (
            [("", self._desk)]
            if self._lent is None
            else [("", self._desk), (LENT_PATH, self._lent)]
        )
        for path, desk in desks:
            routes = _DeskRoutes(desk, self._metrics, alive_interval_s=self._alive_interval_s)
            routes.add_to(router, path)
        if self._probe is not None:
            router.add_post("/worker/v1/probe-link", self._probe_link)
        if self._change_role is not None:
            router.add_post("/worker/v1/role", self._take_role)
        router.add_get("/health", self._health)
        router.add_get("/metrics", self._show_metrics)
        return app

    async def _take_role(self, request: web.Request) -> web.StreamResponse:
        assert self._change_role is not None
        try:
            change = RoleChange.model_validate_json(await request.read())
        except ValidationError as error:
            raise MalformedRequest("not a change of a role") from error
        reply = self._change_role(change)
        return _json(reply, status=_ACCEPTED)

    async def _probe_link(self, request: web.Request) -> web.StreamResponse:
        assert self._probe is not None
        try:
            asked = LinkProbe.model_validate_json(await request.read())
        except ValidationError as error:
            raise MalformedRequest("not a probe of a link") from error
        if self._probing >= _PROBES_MAX:
            raise WorkerRefused(f"{self._probing} probes are under way, the limit")
        self._probing += 1
        try:
            reply = await self._probe(asked)
        finally:
            self._probing -= 1
        return _json(reply)

    async def _health(self, request: web.Request) -> web.StreamResponse:
        del request
        return web.json_response({"status": "ok"})

    async def _show_metrics(self, request: web.Request) -> web.StreamResponse:
        del request
        self._refresh_metrics()
        return web.Response(
            body=generate_latest(self._metrics.registry),
            headers={"Content-Type": CONTENT_TYPE_LATEST},
        )


class _DeskRoutes:
    """Routes of one registration."""

    def __init__(
        self, desk: Callable[[], Desk], metrics: WorkerMetrics, *, alive_interval_s: float
    ) -> None:
        self._desk = desk
        self._metrics = metrics
        self._alive_interval_s = alive_interval_s

    def add_to(self, router: web.UrlDispatcher, path: str) -> None:
        """Answer below a path."""
        router.add_post(f"{path}/worker/v1/prefill", self._start_prefill)
        router.add_delete(f"{path}/worker/v1/prefill/{{job_id}}", self._abort_prefill)
        router.add_post(f"{path}/worker/v1/prefix", self._export_prefix)
        router.add_post(f"{path}/worker/v1/decode", self._run_decode)
        router.add_get(f"{path}/worker/v1/beat", self._tell)

    async def _start_prefill(self, request: web.Request) -> web.StreamResponse:
        service = _there(self._desk().prefill)
        job, tokens = _unpack(PrefillJob, await request.read())
        try:
            location = await service.accept(job, tokens)
        except PrfaasError as error:
            self._metrics.jobs_total.labels("prefill", error.code).inc()
            raise
        self._metrics.jobs_total.labels("prefill", "accepted").inc()
        return _json(location)

    async def _abort_prefill(self, request: web.Request) -> web.StreamResponse:
        _there(self._desk().prefill).abort(request.match_info["job_id"])
        return web.Response(status=204)

    async def _export_prefix(self, request: web.Request) -> web.StreamResponse:
        exporter = _there(self._desk().exporter)
        ask, tokens = _unpack(PrefixAsk, await request.read())
        location = exporter.export(ask, tokens)
        if location is None:
            raise web.HTTPNotFound
        return _json(location)

    async def _run_decode(self, request: web.Request) -> web.StreamResponse:
        service = _there(self._desk().decode)
        job, tokens = _unpack(DecodeJob, await request.read())
        service.check(job, tokens)
        response = web.StreamResponse(headers={"Content-Type": STREAM_CONTENT_TYPE})
        await response.prepare(request)
        stream = _FrameStream(response)
        code = "cancelled"
        alive = asyncio.get_running_loop().create_task(stream.keep_alive(self._alive_interval_s))
        try:
            await service.run(job, tokens, stream.send)
            code = "ok"
        except PrfaasError as error:
            code = error.code
            _log.warning("decode.failed", request_id=job.request_id, code=code)
            await stream.fail(code, error.message)
        except ConnectionError:
            # The router has gone: it is told nothing, and nobody else waits.
            raise
        except Exception:  # noqa: BLE001 - the edge of a worker: a bug ends one job, never the process
            code = InternalError.code
            _log.exception("internal.error", request_id=job.request_id)
            await stream.fail(code, _BUG)
        finally:
            alive.cancel()
            self._metrics.jobs_total.labels("decode", code).inc()
        await stream.finish()
        return response

    async def _tell(self, request: web.Request) -> web.StreamResponse:
        del request
        return _json(self._desk().beat())


class _FrameStream:
    """Frames to the router; the last one leaves together with the end of the answer."""

    def __init__(self, response: web.StreamResponse) -> None:
        self._response = response
        self._has_spoken = False
        self._last = b""

    async def send(self, *frames: tuple[FrameKind, bytes]) -> None:
        """
        Send frames in one piece.

        Raises:
            ConnectionError: The router has gone, or does not read.
        """
        self._has_spoken = True
        packed = b"".join(pack_frame(kind, payload) for kind, payload in frames)
        if any(kind is FrameKind.REPORT for kind, _ in frames):
            self._last = packed
            return
        await self._write(packed)

    async def fail(self, code: str, message: str) -> None:
        """
        Send why the stream ends badly.

        Raises:
            ConnectionError: The router has gone, or does not read.
        """
        failure = DecodeFailure(code=code, message=message[:1024])
        await self.send((FrameKind.FAILURE, failure.model_dump_json().encode()))

    async def finish(self) -> None:
        """
        Send the report, if there is one, with what belongs to it, and end the answer.

        Raises:
            ConnectionError: The router has gone, or does not read.
        """
        await _in_time(self._response.write_eof(self._last))

    async def keep_alive(self, interval_s: float) -> None:
        """Break silences, so that the router can tell working from hanging; until it has gone."""
        with suppress(ConnectionError):
            while True:
                self._has_spoken = False
                await asyncio.sleep(interval_s)
                if not self._has_spoken:
                    await self._write(pack_frame(FrameKind.ALIVE, b""))

    async def _write(self, frame: bytes) -> None:
        await _in_time(self._response.write(frame))


async def _in_time(writing: Coroutine[Any, Any, None]) -> None:
    """
    Bound a write.

    Raises:
        ConnectionError: The router has gone, or does not read.
    """
    try:
        async with asyncio.timeout(_WRITE_TIMEOUT_S):
            await writing
    except TimeoutError as error:
        raise ConnectionResetError("the router does not read its stream") from error


def _there(service: _Service | None) -> _Service:
    """A service of this role now."""
    if service is None:
        raise web.HTTPNotFound
    return service


def _json(message: BaseModel, *, status: int = 200) -> web.Response:
    return web.Response(
        status=status, body=message.model_dump_json(), content_type="application/json"
    )


def _unpack(kind: type[_Job], body: bytes) -> tuple[_Job, TokenIds]:
    """Header and tokens of a parcel, checked."""
    try:
        head, payload = unpack_parcel(body)
        job = kind.model_validate_json(head)
        width_bytes = job.token_width_bytes  # type: ignore[attr-defined]
        return job, TokenIds(payload, width_bytes)
    except ValidationError as error:
        field = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise MalformedRequest(f"the job's header is wrong at {field!r}", param=field) from error
    except ValueError as error:
        raise MalformedRequest(f"not a job: {error}") from error


@web.middleware
async def _guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every refusal is a `WorkerError`."""
    try:
        return await handler(request)
    except PrfaasError as error:
        refusal = error
    except (web.HTTPException, ConnectionError):
        raise
    except Exception:  # noqa: BLE001 - the edge of a worker: a bug becomes a 500 and a log line
        _log.exception("internal.error")
        refusal = InternalError(_BUG)
    code = refusal.reason if isinstance(refusal, RoleRefused) else refusal.code
    return _json(WorkerError(code=code, message=refusal.message[:1024]), status=refusal.http_status)
