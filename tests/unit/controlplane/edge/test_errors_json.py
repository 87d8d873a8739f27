from __future__ import annotations

import json

import pytest

from controlplane.edge.errors_json import error_body, error_headers, error_type
from controlplane.errors import (
    InternalError,
    LinkStalled,
    MalformedRequest,
    NoCandidate,
    PrfaasError,
    RequestTooLarge,
    Shed,
    UnknownModel,
    WorkerLost,
)


def test_a_body_has_the_shape_that_openai_clients_read() -> None:
    error = MalformedRequest("n: expected an integer", param="n")

    assert json.loads(error_body(error, "req-1")) == {
        "error": {
            "message": "n: expected an integer",
            "type": "invalid_request_error",
            "param": "n",
            "code": "malformed_request",
            "request_id": "req-1",
        }
    }


def test_a_body_without_a_field_says_null() -> None:
    assert json.loads(error_body(NoCandidate("none"), "req-1"))["error"]["param"] is None


def test_a_body_is_one_line_of_ascii_whatever_the_message() -> None:
    content = error_body(InternalError("é\ud800\n\u2028"), "req-1")

    assert content.isascii()
    assert b"\n" not in content


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MalformedRequest("x"), "invalid_request_error"),
        (UnknownModel("x"), "invalid_request_error"),
        (RequestTooLarge("x"), "invalid_request_error"),
        (Shed("x"), "rate_limit_error"),
        (NoCandidate("x"), "server_error"),
        (WorkerLost("x"), "server_error"),
        (LinkStalled("x"), "server_error"),
        (InternalError("x"), "server_error"),
    ],
    ids=lambda value: getattr(value, "code", value),
)
def test_a_type_tells_whose_fault_it_is(error: PrfaasError, expected: str) -> None:
    assert error_type(error) == expected


@pytest.mark.parametrize(
    ("error", "retry"),
    [
        (MalformedRequest("x"), "false"),
        (InternalError("x"), "false"),
        (Shed("x"), "true"),
        (WorkerLost("x"), "true"),
    ],
    ids=lambda value: getattr(value, "code", value),
)
def test_headers_tell_whether_to_try_again(error: PrfaasError, retry: str) -> None:
    assert error_headers(error) == {"x-should-retry": retry}


@pytest.mark.parametrize(("retry_after_s", "header"), [(0.0, "1"), (0.2, "1"), (1.1, "2")])
def test_headers_tell_when_to_try_again_in_whole_seconds(retry_after_s: float, header: str) -> None:
    assert error_headers(Shed("x", retry_after_s=retry_after_s))["retry-after"] == header
