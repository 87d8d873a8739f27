"""Errors as OpenAI clients expect them: a JSON body, and headers that tell an SDK what to do."""

from __future__ import annotations

import json
from http import HTTPStatus
from math import ceil
from typing import Literal

from controlplane.errors import PrfaasError, RequestError


def error_type(
    error: PrfaasError,
) -> Literal["invalid_request_error", "rate_limit_error", "server_error"]:
    """OpenAI's coarse class of an error."""
    if isinstance(error, RequestError):
        return "invalid_request_error"
    if error.http_status == HTTPStatus.TOO_MANY_REQUESTS:
        return "rate_limit_error"
    return "server_error"


def error_body(error: PrfaasError, request_id: str) -> bytes:
    """
    The JSON body of an answer that failed, and the data of an `event: error` in a stream.

    ASCII only, so that no text of any message can break a header, a log or an SSE line.
    """
    content = {
        "message": error.message,
        "type": error_type(error),
        "param": error.param,
        "code": error.code,
        "request_id": request_id,
    }
    return json.dumps({"error": content}, separators=(",", ":")).encode("ascii")


def error_headers(error: PrfaasError) -> dict[str, str]:
    """
    Whether and when to try again.

    OpenAI's SDKs retry every 5xx unless `x-should-retry` says otherwise: an answer that would be
    the same again is not worth a second prefill.
    """
    headers = {"x-should-retry": "true" if error.is_retryable else "false"}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(max(1, ceil(error.retry_after_s)))
    return headers
