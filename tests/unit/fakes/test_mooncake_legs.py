"""The fake's rules for Mooncake: each wrong field is one fault that names it."""

from __future__ import annotations

from typing import Any

import pytest
from fakes.mooncake_legs import mooncake_faults

PREFILL = {"do_remote_decode": True, "do_remote_prefill": False, "transfer_id": "xfer-1"}
DECODE = {
    "do_remote_decode": False,
    "do_remote_prefill": True,
    "transfer_id": "xfer-1",
    "remote_bootstrap_addr": "http://p:8998",
    "remote_engine_id": "e",
}


def prefill(rank: str | None = "0", params: dict[str, Any] | None = None, **body: Any) -> Any:
    asked = {"max_tokens": 1, "stream": False, "kv_transfer_params": {**PREFILL, **(params or {})}}
    return mooncake_faults({**asked, **body}, rank)


def decode(**params: Any) -> Any:
    return mooncake_faults({"kv_transfer_params": {**DECODE, **params}}, None)


def test_both_legs_as_they_should_be_have_no_fault() -> None:
    assert prefill() == ()
    assert decode() == ()


@pytest.mark.parametrize(
    ("faults", "said"),
    [
        (prefill(max_tokens=8), "max_tokens"),
        (prefill(stream=True), "not streamed"),
        (prefill(rank=None), "X-data-parallel-rank"),
        (prefill(params={"transfer_id": "1"}), "transfer_id"),
        (prefill(params={"do_remote_prefill": True}), "do_remote_decode and do_remote_prefill"),
        (prefill(params={"remote_host": "h"}), "remote_host is unknown"),
        (decode(remote_bootstrap_addr="p:8998"), "remote_bootstrap_addr"),
        (decode(remote_engine_id=""), "remote_engine_id"),
    ],
)
def test_each_wrong_field_is_one_fault(faults: tuple[str, ...], said: str) -> None:
    assert len(faults) == 1
    assert said in faults[0]
