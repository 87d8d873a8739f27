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


@pytest.mark.parametrize("kind", leaves(), ids=lambda kind: kind.code)
def test_every_error_is_listed_with_its_status_and_what_to_do(kind: type[PrfaasError]) -> None:
    status = "none" if kind is ConfigError else str(kind.http_status)
    retry = "yes" if kind.is_retryable else "no"

    (row,) = [row for row in rows(ERRORS) if row[1] == f"`{kind.__name__}`"]

    assert row[0] == f"`{kind.code}`"
    assert row[2:4] == [status, retry]
    assert all(row[4:6])


def test_no_error_is_listed_that_does_not_exist() -> None:
    assert {row[1] for row in rows(ERRORS)} == {f"`{kind.__name__}`" for kind in leaves()}


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

    assert documented["body_bytes_max"] == f"{limits.body_bytes_max >> 20} MiB"
    assert documented["body_timeout_s"].startswith(f"{limits.body_timeout_s:g} s ")
    assert documented["requests_max"].startswith(f"{limits.requests_max} ")
    assert documented["request_timeout_s"].startswith(f"{limits.request_timeout_s:g} s ")
    assert documented["client_write_timeout_s"].startswith(f"{limits.client_write_timeout_s:g} s ")


def test_default_lengths_are_documented() -> None:
    assert f"{COMPLETION_OUTPUT_TOKENS} output tokens and a chat {CHAT_OUTPUT_TOKENS}" in API
