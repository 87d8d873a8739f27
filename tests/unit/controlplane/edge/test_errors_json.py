from __future__ import annotations

import json

import pytest

from controlplane.edge.errors_json import error_body, error_headers, error_type
from controlplane.errors import (
    InternalError,
    KeyInUse,
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


def headers(error: PrfaasError, *, draw: float = 0.0) -> dict[str, str]:
    return error_headers(error, draw=draw, longest_s=30.0)


@pytest.mark.parametrize(
    "error", [MalformedRequest("x"), InternalError("x"), UnknownModel("x", retry_after_s=1)]
)
def test_what_would_fail_again_is_not_worth_repeating(error: PrfaasError) -> None:
    assert headers(error) == {"x-should-retry": "false"}


@pytest.mark.parametrize("kind", [Shed, NoCandidate, WorkerLost, LinkStalled, KeyInUse])
def test_everything_else_says_when(kind: type[PrfaasError]) -> None:
    assert headers(kind("x")) == {
        "x-should-retry": "true",
        "retry-after": "1",
        "retry-after-ms": "1000",
    }


@pytest.mark.parametrize(
    ("retry_after_s", "draw", "seconds", "milliseconds"),
    [
        pytest.param(0.0, 0.0, "1", "1000", id="never at once"),
        pytest.param(0.2, 0.5, "2", "1500", id="a second at least, and its jitter"),
        pytest.param(4.0, 0.0, "4", "4000", id="the earliest"),
        pytest.param(4.0, 0.75, "7", "7000", id="later"),
        pytest.param(20.0, 0.9, "30", "30000", id="the bound"),
    ],
)
def test_clients_that_fail_together_come_back_apart(
    retry_after_s: float, draw: float, seconds: str, milliseconds: str
) -> None:
    found = headers(Shed("x", retry_after_s=retry_after_s), draw=draw)

    assert (found["retry-after"], found["retry-after-ms"]) == (seconds, milliseconds)
