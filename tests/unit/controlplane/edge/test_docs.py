from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from controlplane.config import LimitsConfig
from controlplane.edge.openai_check import CHAT_LEVEL, COMPLETION_LEVEL
from controlplane.edge.requests import CHAT_OUTPUT_TOKENS, COMPLETION_OUTPUT_TOKENS
from controlplane.errors import ConfigError, PrfaasError

DOCS = Path(__file__).parents[4] / "docs"
API = (DOCS / "api.md").read_text(encoding="utf-8")
ERRORS = (DOCS / "errors.md").read_text(encoding="utf-8")


def leaves(kind: type[PrfaasError] = PrfaasError) -> list[type[PrfaasError]]:
    children = kind.__subclasses__()
    return [leaf for child in children for leaf in leaves(child)] if children else [kind]


def rows(text: str) -> list[list[str]]:
    lines = (line for line in text.splitlines() if line.startswith("| `"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


#: Classes that are told apart inside alone share the code of what clients see.
BY_CODE = {kind.code: kind for kind in leaves()}


@pytest.mark.parametrize("code", sorted(BY_CODE))
def test_every_error_is_listed_with_its_status_and_what_to_do(code: str) -> None:
    kind = BY_CODE[code]
    status = "none" if issubclass(kind, ConfigError) else str(kind.http_status)
    retry = "yes" if kind.is_retryable else "no"

    (row,) = [row for row in rows(ERRORS) if row[0] == f"`{code}`"]

    assert row[1].strip("`") in {parent.__name__ for parent in kind.__mro__}
    assert row[2:4] == [status, retry]
    assert all(row[4:6])


def test_no_error_is_listed_that_does_not_exist() -> None:
    assert {row[0].strip("`") for row in rows(ERRORS)} == set(BY_CODE)


def test_every_supported_parameter_is_documented() -> None:
    documented = {row[0].strip("`") for row in rows(API)}

    assert documented >= CHAT_LEVEL.supported | COMPLETION_LEVEL.supported


def refusal(name: str) -> list[str]:
    (row,) = [
        row for row in rows(API) if row[0] == f"`{name}`" and len(row) == 4 and row[1] in SAID
    ]
    return row


SAID = ("refused", "unknown")


@pytest.mark.parametrize("name", sorted({*CHAT_LEVEL.neutral, *COMPLETION_LEVEL.neutral}))
def test_every_refused_parameter_is_documented_with_what_is_let_through(name: str) -> None:
    row = refusal(name)

    assert row[1] == SAID[name not in CHAT_LEVEL.neutral]
    assert row[2] == SAID[name not in COMPLETION_LEVEL.neutral]
    neutral = CHAT_LEVEL.neutral.get(name, COMPLETION_LEVEL.neutral.get(name, ()))
    assert re.findall(r"`(.*?)`", row[3]) == [json.dumps(value) for value in neutral]


def test_limits_are_documented_with_their_defaults() -> None:
    limits = LimitsConfig()
    documented = {row[0].strip("`"): row[1] for row in rows(API) if len(row) == 3}

    assert documented["body_bytes_max"].startswith(f"{limits.body_bytes_max >> 20} MiB")
    assert documented["client_buffer_bytes"].startswith(f"{limits.client_buffer_bytes >> 10} KiB ")
    for name in (
        "body_timeout_s",
        "queue_wait_s",
        "request_timeout_s",
        "client_write_timeout_s",
        "header_timeout_s",
        "keepalive_timeout_s",
    ):
        assert documented[name].startswith(f"{getattr(limits, name):g} s "), name
    for name in (
        "body_bytes_per_token",
        "requests_max",
        "queue_requests_max",
        "connections_max",
        "peer_connections_max",
    ):
        assert documented[name].startswith(f"{getattr(limits, name)} "), name


def test_default_lengths_are_documented() -> None:
    assert f"{COMPLETION_OUTPUT_TOKENS} output tokens and a chat {CHAT_OUTPUT_TOKENS}" in API
