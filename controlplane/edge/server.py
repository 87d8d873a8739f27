"""
The OpenAI-compatible listener: limits, parsing, and errors in the shape clients expect.

Nothing is decided here. A request is read within bounds, parsed (off the loop when it is long),
handed to the dispatcher, and answered.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from aiohttp import hdrs, web

from controlplane.config import LimitsConfig
from controlplane.edge.errors_json import error_body, error_headers
from controlplane.edge.requests import ModelFacts, ParsedRequest, parse_request
from controlplane.edge.sink import StreamSink, WholeSink
from controlplane.errors import (
    InternalError,
    MalformedRequest,
    MethodNotAllowed,
    PrfaasError,
    RequestTooLarge,
    UnknownModel,
    UnknownRoute,
)
from controlplane.observe.logs import get_logger
from controlplane.router.dispatcher import Dispatcher
from controlplane.router.flight import Flight
from controlplane.router.incoming import Incoming
from controlplane.wire import OutputShape

_log = get_logger()

Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]

_REQUEST_ID = web.RequestKey("request_id", str)
_CLIENT_ID_MAX = 128
_PREFIX: Mapping[str, str] = {"chat": "chatcmpl-", "completion": "cmpl-"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Readiness:
    """What `/ready` tells."""

    is_ready: bool
    details: Mapping[str, Any]


class EdgeServer:
    """Handlers of the data listener."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        *,
        limits: LimitsConfig,
        models: Callable[[], Mapping[str, ModelFacts]],
        readiness: Callable[[], Readiness],
        executor: Executor,
    ) -> None:
        self._dispatcher = dispatcher
        self._limits = limits
        self._models = models
        self._readiness = readiness
        self._executor = executor

    def application(self) -> web.Application:
        """The routes, with every error in one shape."""
        app = web.Application(
            client_max_size=self._limits.body_bytes_max, middlewares=[self._guard]
        )
        app.router.add_post(
            "/v1/chat/completions", self._chat, expect_handler=self._expect_continue
        )
        app.router.add_post(
            "/v1/completions", self._completion, expect_handler=self._expect_continue
        )
        app.router.add_get("/v1/models", self._list_models)
        app.router.add_get("/v1/models/{name:.+}", self._show_model)
        app.router.add_get("/health", self._health)
        app.router.add_get("/ready", self._ready)
        return app

    # --- Routes -------------------------------------------------------------------------------

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._complete(request, "chat")

    async def _completion(self, request: web.Request) -> web.StreamResponse:
        return await self._complete(request, "completion")

    async def _complete(
        self, request: web.Request, kind: Literal["chat", "completion"]
    ) -> web.StreamResponse:
        accepted_s = time.monotonic()
        at = time.time()
        request_id = request[_REQUEST_ID]
        body = await self._read(request)
        parsed = await self._parse(kind, body)
        shape = OutputShape(
            kind=kind,
            response_id=_PREFIX[kind] + request_id.removeprefix("req-"),
            model=parsed.model,
            created=int(at),
            is_stream=parsed.is_stream,
            include_usage=parsed.include_usage,
        )
        facts = self._models()[parsed.model]
        incoming = Incoming(
            request_id=request_id,
            decision_id="dec-" + request_id.removeprefix("req-"),
            client_request_id=_client_id(request),
            tokens=parsed.tokens,
            hashes=parsed.hashes,
            block_tokens=facts.block_tokens,
            scope=facts.scope,
            sampling=parsed.sampling,
            output=shape,
            accepted_s=accepted_s,
            parsed_s=time.monotonic(),
            at=at,
            deadline_s=accepted_s + self._limits.request_timeout_s,
        )
        if parsed.is_stream:
            return await self._stream(request, incoming)
        return await self._answer(incoming)

    async def _stream(self, request: web.Request, incoming: Incoming) -> web.StreamResponse:
        sink = StreamSink(
            request, incoming.request_id, write_timeout_s=self._limits.client_write_timeout_s
        )
        try:
            flight = await self._dispatcher.dispatch(incoming, sink)
        finally:
            sink.close()
        if not sink.is_begun:
            return _error_response(_error_of(flight), incoming.request_id, flight.headers)
        if sink.has_left:
            return sink.response
        if flight.error is not None:
            sink.response.force_close()
        await sink.response.write_eof()
        return sink.response

    async def _answer(self, incoming: Incoming) -> web.StreamResponse:
        sink = WholeSink()
        flight = await self._dispatcher.dispatch(incoming, sink)
        if flight.error is not None or not sink.body:
            return _error_response(_error_of(flight), incoming.request_id, flight.headers)
        return web.Response(
            body=sink.body, headers={**sink.headers, hdrs.CONTENT_TYPE: "application/json"}
        )

    async def _list_models(self, request: web.Request) -> web.StreamResponse:
        del request
        return web.json_response(
            {"object": "list", "data": [_model_card(name) for name in sorted(self._models())]}
        )

    async def _show_model(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        if name not in self._models():
            raise UnknownModel(f"no model {name[:96]!r}; GET /v1/models lists them", param="model")
        return web.json_response(_model_card(name))

    async def _health(self, request: web.Request) -> web.StreamResponse:
        del request
        return web.json_response({"status": "ok"})

    async def _ready(self, request: web.Request) -> web.StreamResponse:
        del request
        readiness = self._readiness()
        return web.json_response(
            {"ready": readiness.is_ready, **readiness.details},
            status=200 if readiness.is_ready else 503,
        )

    # --- Reading ------------------------------------------------------------------------------

    async def _expect_continue(self, request: web.Request) -> web.StreamResponse | None:
        """`Expect: 100-continue`: refuse a body that is too large before it is sent."""
        try:
            self._check_length(request)
        except RequestTooLarge as error:
            # This comes before the middlewares, so nobody else would give it its shape.
            return _error_response(error, _new_request_id())
        assert request.transport is not None
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return None

    def _check_length(self, request: web.Request) -> None:
        limit = self._limits.body_bytes_max
        if request.content_length is not None and request.content_length > limit:
            raise RequestTooLarge(
                f"the body has {request.content_length} bytes, the limit is {limit}"
            )

    async def _read(self, request: web.Request) -> bytes:
        self._check_length(request)
        if request.headers.get(hdrs.CONTENT_ENCODING, "identity") != "identity":
            raise MalformedRequest(
                "compressed request bodies are not accepted; send it without Content-Encoding",
                param="content-encoding",
            )
        try:
            if request.content.is_eof():
                return await request.read()  # it is here: nothing is waited for
            async with asyncio.timeout(self._limits.body_timeout_s):
                return await request.read()
        except TimeoutError as error:
            raise MalformedRequest(
                f"the body did not arrive within {self._limits.body_timeout_s:g} s"
            ) from error
        except web.HTTPRequestEntityTooLarge as error:
            raise RequestTooLarge(
                f"the body has more than {self._limits.body_bytes_max} bytes, the limit"
            ) from error

    async def _parse(self, kind: Literal["chat", "completion"], body: bytes) -> ParsedRequest:
        models = self._models()
        if len(body) <= self._limits.inline_body_bytes_max:
            return parse_request(kind, body, models)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, parse_request, kind, body, models)

    # --- Errors -------------------------------------------------------------------------------

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Give each request its id, and each failure its shape."""
        request_id = _new_request_id()
        request[_REQUEST_ID] = request_id
        try:
            answer = await handler(request)
        except PrfaasError as error:
            response = _error_response(error, request_id)
            if not request.content.is_eof():
                # The rest of the body is not read: the connection cannot serve another request.
                response.force_close()
            return response
        except web.HTTPMethodNotAllowed as error:
            allowed = ", ".join(sorted(error.allowed_methods))
            refusal = MethodNotAllowed(
                f"{request.method} is not allowed for {request.path}; allowed: {allowed}"
            )
            return _error_response(refusal, request_id, {hdrs.ALLOW: allowed})
        except web.HTTPNotFound:
            return _error_response(
                UnknownRoute(f"no route {request.path[:128]!r}; docs/api.md lists them"), request_id
            )
        except web.HTTPException as error:
            refusal_kind = MalformedRequest if error.status < 500 else InternalError  # noqa: PLR2004
            return _error_response(refusal_kind(error.reason), request_id)
        except Exception:  # noqa: BLE001 - the outermost edge: a bug becomes a 500 and a log line
            _log.exception("internal.error", request_id=request_id)
            return _error_response(InternalError(_BUG), request_id)
        if not answer.prepared:
            answer.headers.setdefault("x-request-id", request_id)
        return answer


_BUG = "the router failed; its log has the story of this request id"


def _new_request_id() -> str:
    return "req-" + secrets.token_hex(12)


def _error_of(flight: Flight) -> PrfaasError:
    return flight.error or InternalError(_BUG)


def _error_response(
    error: PrfaasError, request_id: str, headers: Mapping[str, str] | None = None
) -> web.Response:
    all_headers = {
        "x-request-id": request_id,
        **(headers or {}),
        **error_headers(error),
        hdrs.CONTENT_TYPE: "application/json",
    }
    response = web.Response(
        status=error.http_status, body=error_body(error, request_id), headers=all_headers
    )
    if isinstance(error, RequestTooLarge):
        response.force_close()
    return response


def _client_id(request: web.Request) -> str | None:
    """The client's own request id: kept for its search, never used as a key."""
    given = request.headers.get("x-request-id")
    if not given:
        return None
    return "".join(char for char in given[:_CLIENT_ID_MAX] if char.isprintable())


def _model_card(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "prfaas"}
