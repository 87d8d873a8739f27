"""
The OpenAI-compatible listener: limits, parsing, and errors in the shape clients expect.

Nothing is decided here. A request is read within bounds, parsed (off the loop when it is long),
handed to the dispatcher, and answered.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Literal

from aiohttp import hdrs, web

from controlplane.config import LimitsConfig
from controlplane.edge.answers import BUG, REQUEST_ID, ErrorAnswers, new_request_id
from controlplane.edge.bodies import body_limit, check_length, read_body
from controlplane.edge.client_headers import (
    client_id_of,
    idempotency_key_of,
    tenant_of,
    timeout_of,
    ttft_deadline_of,
)
from controlplane.edge.requests import ModelFacts, ParsedRequest, parse_request
from controlplane.edge.residency import Residency
from controlplane.edge.sink import StreamSink, WholeSink
from controlplane.errors import InternalError, PrfaasError, RequestTooLarge, UnknownModel
from controlplane.router.dispatcher import Dispatcher
from controlplane.router.flight import Flight
from controlplane.router.incoming import Incoming
from controlplane.wire import OutputShape

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
        tenant_salt: str = "",
        residency: Residency | None = None,
    ) -> None:
        self._dispatcher = dispatcher
        self._limits = limits
        self._models = models
        self._readiness = readiness
        self._executor = executor
        self._tenant_salt = tenant_salt
        self._residency = residency or Residency(())
        self._answers = ErrorAnswers(retry_after_max_s=limits.retry_after_max_s)

    def application(self) -> web.Application:
        """The routes, with every error in one shape."""
        app = web.Application(
            client_max_size=self._limits.body_bytes_max,
            middlewares=[self._answers.guard(lambda: self._dispatcher.is_draining)],
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
        request_id = request[REQUEST_ID]
        timeout_s = timeout_of(request.headers, longest_s=self._limits.request_timeout_s)
        ttft_deadline_s = ttft_deadline_of(request.headers, longest_s=timeout_s)
        body = await self._read(request)
        parsed = await self._parse(kind, body)
        authorization = request.headers.get(hdrs.AUTHORIZATION)
        tenant = tenant_of(authorization, parsed.user, salt=self._tenant_salt)
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
            client_request_id=client_id_of(request.headers),
            tokens=parsed.tokens,
            hashes=parsed.hashes,
            block_tokens=facts.block_tokens,
            scope=facts.scope,
            sampling=parsed.sampling,
            output=shape,
            accepted_s=accepted_s,
            parsed_s=time.monotonic(),
            at=at,
            deadline_s=accepted_s + timeout_s,
            idempotency_key=idempotency_key_of(request.headers, tenant=tenant),
            digest=parsed.digest,
            tenant=tenant,
            allowed_datacenters=self._residency.allowed(
                request.headers, authorization, parsed.user
            ),
            ttft_deadline_s=ttft_deadline_s,
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
            return self._answers.answer(_error_of(flight), incoming.request_id, flight.headers)
        if sink.has_left:
            return sink.response
        if flight.error is not None:
            sink.response.force_close()
        await sink.end()
        return sink.response

    async def _answer(self, incoming: Incoming) -> web.StreamResponse:
        sink = WholeSink()
        flight = await self._dispatcher.dispatch(incoming, sink)
        if flight.error is not None or not sink.body:
            return self._answers.answer(_error_of(flight), incoming.request_id, flight.headers)
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
            check_length(request, body_limit(self._limits, self._models()))
        except RequestTooLarge as error:
            # This comes before the middlewares, so nobody else would give it its shape.
            return self._answers.answer(error, new_request_id())
        assert request.transport is not None
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return None

    async def _read(self, request: web.Request) -> bytes:
        limit = body_limit(self._limits, self._models())
        return await read_body(request, limit=limit, timeout_s=self._limits.body_timeout_s)

    async def _parse(self, kind: Literal["chat", "completion"], body: bytes) -> ParsedRequest:
        models = self._models()
        if len(body) <= self._limits.inline_body_bytes_max:
            return parse_request(kind, body, models)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, parse_request, kind, body, models)


def _error_of(flight: Flight) -> PrfaasError:
    return flight.error or InternalError(BUG)


def _model_card(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "prfaas"}
