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


def error_headers(error: PrfaasError, *, draw: float, longest_s: float) -> dict[str, str]:
    """
    Whether and when to try again. Pure.

    OpenAI's SDKs retry every 5xx unless `x-should-retry` says otherwise: an answer that would be
    the same again is not worth a second prefill. They take milliseconds before seconds.

    Args:
        error: What is answered.
        draw: Uniform in [0, 1): clients that were refused together come back apart, between the
            error's `retry_after_s` (1 s without) and twice that.
        longest_s: Never longer than this.
    """
    if not error.is_retryable:
        return {"x-should-retry": "false"}
    wait_s = min(longest_s, max(1.0, error.retry_after_s or 1.0) * (1 + draw))
    return {
        "x-should-retry": "true",
        "retry-after": str(ceil(wait_s)),
        "retry-after-ms": str(ceil(wait_s * 1000)),
    }
