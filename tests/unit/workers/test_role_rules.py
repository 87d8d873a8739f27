"""Which changes of its role a worker accepts: the whole table."""

from __future__ import annotations

from typing import Any

import pytest

from controlplane.wire import RoleChange
from workers.role_rules import Duties, Refusal, RoleState, step_of


def a_state(**overrides: Any) -> RoleState:
    """A decode worker that can do both and has nothing else to do."""
    values: dict[str, Any] = {
        "incarnation": "i1",
        "roles": ("prefill", "decode"),
        "duties": Duties(role="decode"),
        "is_busy": False,
        "dwell_left_s": 0.0,
    }
    return RoleState(**(values | overrides))


def a_change(**overrides: Any) -> RoleChange:
    """To prefill."""
    values: dict[str, Any] = {"incarnation": "i1", "role": "prefill", "dwell_s": 60.0}
    return RoleChange(**(values | overrides))


def refusal(state: RoleState, change: RoleChange) -> str:
    found = step_of(state, change)
    assert isinstance(found, Refusal)
    return found.code


def test_another_role_is_a_change() -> None:
    assert step_of(a_state(), a_change()) == "role"


def test_another_share_alone_is_lending() -> None:
    assert step_of(a_state(), a_change(role="decode", lend_share=0.25)) == "lending"


@pytest.mark.parametrize("is_busy", [True, False])
def test_what_it_does_already_is_nothing_to_do(*, is_busy: bool) -> None:
    """A call that timed out is made again, and must not be refused for its own success."""
    state = a_state(is_busy=is_busy, dwell_left_s=60)

    assert step_of(state, a_change(role="decode")) == "nothing"


def test_a_change_for_another_life_is_refused() -> None:
    """Whoever asks has not heard of the last change."""
    assert refusal(a_state(), a_change(incarnation="i0")) == "role_incarnation"


def test_another_role_waits_for_its_dwell_time() -> None:
    """The worker counts it, so two planners cannot make it go to and fro."""
    assert refusal(a_state(dwell_left_s=0.1), a_change()) == "role_dwell"


def test_lending_waits_for_nothing() -> None:
    """It needs no drain, and takes no cache away."""
    state = a_state(dwell_left_s=60)

    assert step_of(state, a_change(role="decode", lend_share=0.1)) == "lending"


@pytest.mark.parametrize("change", [a_change(), a_change(role="decode", lend_share=0.1)])
def test_a_worker_that_changes_or_leaves_is_busy(change: RoleChange) -> None:
    assert refusal(a_state(is_busy=True), change) == "role_busy"


@pytest.mark.parametrize("change", [a_change(), a_change(role="decode", lend_share=0.1)])
def test_a_worker_that_is_not_convertible_stays(change: RoleChange) -> None:
    assert refusal(a_state(roles=()), change) == "role_unsupported"


def test_a_prefill_worker_has_nothing_to_lend() -> None:
    state = a_state(duties=Duties(role="prefill"))

    assert refusal(state, a_change(lend_share=0.1)) == "role_unsupported"


def test_a_worker_whose_kv_port_is_mapped_does_not_lend() -> None:
    """A second registration has a port of its own, which the mapping does not know."""
    state = a_state(can_lend=False)

    assert refusal(state, a_change(role="decode", lend_share=0.1)) == "role_unsupported"
    assert step_of(state, a_change()) == "role"
