"""The NIXL protocol's two legs: each wrong field is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from fakes.nixl_legs import decode_faults, prefill_faults

PARAMS = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}
PREFILL = {"prompt": [1, 2], "max_tokens": 1, "stream": False, "kv_transfer_params": PARAMS}
ANSWERED = {
    "do_remote_prefill": True,
    "remote_block_ids": [[3]],
    "remote_host": "a",
    "new": {"x": 1},
}


def pulled(params: object = ANSWERED, **changes: Any) -> tuple[str, ...]:
    told = {"prompt": [1, 2], "prefilled": [1, 2], "age_s": 1.0, "lease_s": 30.0, "uses": 0}
    return decode_faults(params, ANSWERED, **(told | changes))


def test_a_right_prefill_leg_has_no_faults() -> None:
    assert prefill_faults(PREFILL) == ()


def test_the_null_fields_may_be_left_out() -> None:
    short = {"do_remote_decode": True, "do_remote_prefill": False}
    assert prefill_faults(PREFILL | {"kv_transfer_params": short}) == ()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 16),
        ("max_completion_tokens", 16),
        ("min_tokens", 8),
        ("stream", True),
        ("stream_options", {"include_usage": True}),
        ("kv_transfer_params", None),
    ],
)
def test_a_wrong_field_of_the_prefill_leg_is_named(field: str, value: object) -> None:
    (fault,) = prefill_faults(PREFILL | {field: value})
    assert field in fault


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("do_remote_decode", False),
        ("do_remote_prefill", True),
        ("remote_engine_id", "e"),
        ("remote_block_ids", [[1]]),
        ("remote_host", "h"),
        ("remote_port", 1),
        ("other", 1),
    ],
)
def test_a_wrong_parameter_of_the_prefill_leg_is_named(field: str, value: object) -> None:
    (fault,) = prefill_faults(PREFILL | {"kv_transfer_params": PARAMS | {field: value}})
    assert field in fault


def test_a_right_decode_leg_has_no_faults() -> None:
    assert pulled() == ()


def test_the_host_may_be_rewritten() -> None:
    assert pulled(ANSWERED | {"remote_host": "b"}) == ()


@pytest.mark.parametrize("field", list(ANSWERED))
def test_a_dropped_parameter_is_named(field: str) -> None:
    (fault,) = pulled({name: value for name, value in ANSWERED.items() if name != field})
    assert field in fault


@pytest.mark.parametrize("field", [name for name in ANSWERED if name != "remote_host"])
def test_a_changed_parameter_is_named(field: str) -> None:
    (fault,) = pulled(ANSWERED | {field: "changed"})
    assert field in fault


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"prompt": [1, 3]}, "tokens"),
        ({"age_s": 31.0}, "lease"),
        ({"uses": 1}, "before"),
        ({"params": ANSWERED | {"added": 1}}, "added"),
        ({"params": None}, "missing"),
    ],
)
def test_a_wrong_pull_is_refused_with_its_reason(changes: dict[str, Any], reason: str) -> None:
    (fault,) = pulled(**changes)
    assert reason in fault
