from __future__ import annotations

from typing import Any

import pytest
from multidict import CIMultiDict

from controlplane.edge.client_headers import (
    client_id_of,
    idempotency_key_of,
    tenant_of,
    timeout_of,
    ttft_deadline_of,
)
from controlplane.errors import MalformedRequest


def headers(*pairs: tuple[str, str]) -> CIMultiDict[str]:
    return CIMultiDict(pairs)


# --- Tenant -----------------------------------------------------------------------------------


def test_a_tenant_is_its_bearer_token_then_its_user_field_then_nobody() -> None:
    token, user, nobody = (
        tenant_of("Bearer secret", "ada", salt="s"),
        tenant_of(None, "ada", salt="s"),
        tenant_of(None, None, salt="s"),
    )

    assert token == tenant_of("bearer  secret", "grace", salt="s")
    assert nobody == "anonymous"
    assert len({token, user, nobody}) == 3


def test_a_tenant_is_never_told_by_name() -> None:
    for tenant in (tenant_of("Bearer secret", None, salt="s"), tenant_of(None, "ada", salt="s")):
        assert len(tenant) == 32
        assert set(tenant) <= set("0123456789abcdef")


def test_without_the_salt_nobody_can_try_names() -> None:
    assert tenant_of(None, "ada", salt="one") != tenant_of(None, "ada", salt="two")


def test_a_user_cannot_pass_for_a_token() -> None:
    assert tenant_of(None, "secret", salt="s") != tenant_of("Bearer secret", None, salt="s")


@pytest.mark.parametrize("authorization", ["Basic abc", "Bearer", "Bearer  ", "", "secret"])
def test_what_is_no_bearer_token_names_nobody(authorization: str) -> None:
    assert tenant_of(authorization, None, salt="s") == "anonymous"


def test_a_token_may_hold_any_byte() -> None:
    assert len(tenant_of("Bearer \udcff\udc80", None, salt="s")) == 32


# --- Timeout ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("given", "seconds"), [("5", 5.0), ("0.25", 0.25), ("300", 300.0)])
def test_a_client_may_ask_for_less_time(given: str, seconds: float) -> None:
    found = timeout_of(headers(("X-Request-Timeout", given)), longest_s=300)

    assert found == seconds


def test_a_client_that_asks_for_nothing_has_all_the_time_there_is() -> None:
    assert timeout_of(headers(), longest_s=300) == 300


@pytest.mark.parametrize(
    "given",
    [
        "0",
        "0.000",
        "-1",
        "300.001",
        "1e2",
        "inf",
        "nan",
        "",
        " 5",
        "5s",
        "0.0001",
        "\uff19",
        "9" * 99,
    ],
)
def test_a_wrong_timeout_is_refused_by_name(given: str) -> None:
    with pytest.raises(MalformedRequest, match="up to 300") as refusal:
        timeout_of(headers(("x-request-timeout", given)), longest_s=300)

    assert refusal.value.param == "x-request-timeout"


def test_two_timeouts_are_refused() -> None:
    with pytest.raises(MalformedRequest, match="expected one, got 2"):
        timeout_of(headers(("x-request-timeout", "1"), ("X-Request-Timeout", "2")), longest_s=300)


# --- Idempotency key --------------------------------------------------------------------------


def key(*values: str, tenant: str = "t") -> str | None:
    return idempotency_key_of(
        headers(*(("Idempotency-Key", value) for value in values)), tenant=tenant
    )


def test_a_key_is_kept_as_a_digest_of_tenant_and_key() -> None:
    found = key("order-17")

    assert found is not None
    assert len(found) == 64
    assert found == key("order-17")
    assert len({found, key("order-18"), key("order-17", tenant="u")}) == 3


def test_a_request_without_a_key_has_none() -> None:
    assert key() is None


@pytest.mark.parametrize("value", ["x", "!" * 255, "~a/b=c"])
def test_any_visible_text_may_be_a_key(value: str) -> None:
    assert key(value) is not None


@pytest.mark.parametrize("value", ["", " ", "a b", "x" * 256, "é", "a\tb", "\udcff"])
def test_a_wrong_key_is_refused_by_name(value: str) -> None:
    with pytest.raises(MalformedRequest, match="1 to 255 visible ASCII") as refusal:
        key(value)

    assert refusal.value.param == "idempotency-key"
    assert value.strip() == "" or value not in refusal.value.message


def test_two_keys_are_refused() -> None:
    with pytest.raises(MalformedRequest, match="expected one, got 2"):
        key("a", "b")


# --- The client's own id ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "kept"),
    [("abc", "abc"), ("", None), ("a\x07b", "ab"), ("x" * 200, "x" * 128)],
)
def test_a_clients_own_id_is_kept_within_bounds(given: str, kept: Any) -> None:
    assert client_id_of({"x-request-id": given}) == kept


def test_a_client_without_an_id_has_none() -> None:
    assert client_id_of({}) is None


@pytest.mark.parametrize(
    ("given", "seconds"), [("1", 0.001), ("250", 0.25), ("300000", 300.0), ("0250", 0.25)]
)
def test_a_deadline_of_the_first_token_is_in_milliseconds(given: str, seconds: float) -> None:
    found = ttft_deadline_of(headers(("X-Prfaas-TTFT-Deadline-Ms", given)), longest_s=300)

    assert found == seconds


def test_without_a_wish_there_is_no_deadline_of_the_first_token() -> None:
    assert ttft_deadline_of(headers(), longest_s=300) is None


@pytest.mark.parametrize(
    "given", ["0", "-1", "1.5", "1e3", "300001", "9999999999", "", " 1", "inf"]
)
def test_a_wrong_deadline_of_the_first_token_is_refused_by_name(given: str) -> None:
    with pytest.raises(MalformedRequest, match="a whole number from 1 to 300000") as refusal:
        ttft_deadline_of(headers(("x-prfaas-ttft-deadline-ms", given)), longest_s=300)

    assert refusal.value.param == "x-prfaas-ttft-deadline-ms"
