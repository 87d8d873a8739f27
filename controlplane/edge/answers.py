"""Answers that are errors, and the guard that gives every answer its id and its shape."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Mapping
from random import Random
from typing import Final, TypeAlias

from aiohttp import hdrs, web
from aiohttp.typedefs import Middleware

from controlplane.edge.errors_json import error_body, error_headers
from controlplane.errors import (
    InternalError,
    MalformedRequest,
    MethodNotAllowed,
    PrfaasError,
    RequestTooLarge,
    UnknownRoute,
)
from controlplane.observe.logs import get_logger

_log = get_logger()

Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]

REQUEST_ID: Final = web.RequestKey("request_id", str)

BUG: Final = "the router failed; its log has the story of this request id"


def new_request_id() -> str:
    """An id that nobody else has."""
    return "req-" + secrets.token_hex(12)


class ErrorAnswers:
    """Makes answers of errors; each with its own time for a retry, so that no two come in step."""

    def __init__(self, *, retry_after_max_s: float) -> None:
        self._random = Random(secrets.randbits(64))
        self._retry_after_max_s = retry_after_max_s

    def answer(
        self, error: PrfaasError, request_id: str, headers: Mapping[str, str] | None = None
    ) -> web.Response:
        """The answer of a request that failed before its first byte."""
        all_headers = {
            "x-request-id": request_id,
            **(headers or {}),
            **error_headers(error, draw=self._random.random(), longest_s=self._retry_after_max_s),
            hdrs.CONTENT_TYPE: "application/json",
        }
        response = web.Response(
            status=error.http_status, body=error_body(error, request_id), headers=all_headers
        )
        if isinstance(error, RequestTooLarge):
            response.force_close()
        return response

    def guard(self, is_leaving: Callable[[], bool]) -> Middleware:
        """
        Give each request its id, each failure its shape, and each answer of a leaving router its
        `connection: close`.
        """

        @web.middleware
        async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
            request[REQUEST_ID] = request_id = new_request_id()
            answer = await self._answered(request, handler, request_id)
            if is_leaving():
                answer.force_close()
            if not answer.prepared:
                answer.headers.setdefault("x-request-id", request_id)
            return answer

        return guarded

    async def _answered(
        self, request: web.Request, handler: Handler, request_id: str
    ) -> web.StreamResponse:
        try:
            return await handler(request)
        except PrfaasError as error:
            response = self.answer(error, request_id)
            if not request.content.is_eof():
                # The rest of the body is not read: the connection cannot serve another request.
                response.force_close()
            return response
        except web.HTTPMethodNotAllowed as error:
            allowed = ", ".join(sorted(error.allowed_methods))
            refusal = MethodNotAllowed(
                f"{request.method} is not allowed for {request.path}; allowed: {allowed}"
            )
            return self.answer(refusal, request_id, {hdrs.ALLOW: allowed})
        except web.HTTPNotFound:
            return self.answer(
                UnknownRoute(f"no route {request.path[:128]!r}; docs/api.md lists them"), request_id
            )
        except web.HTTPException as error:
            refusal_kind = MalformedRequest if error.status < 500 else InternalError  # noqa: PLR2004
            return self.answer(refusal_kind(error.reason), request_id)
        except Exception:  # noqa: BLE001 - the outermost edge: a bug becomes a 500 and a log line
            _log.exception("internal.error", request_id=request_id)
            return self.answer(InternalError(BUG), request_id)
