"""`docs/policies.md` is part of the specification: its lists are complete, its example runs."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, get_args

import pytest
from builders import a_request, a_view, a_worker
from pydantic import TypeAdapter

from controlplane.domain.decision import Decision, Reason, RejectedBy
from policies.registry import PolicyError, load_policy, policy_names

PAGE = (Path(__file__).parents[3] / "docs" / "policies.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    return PAGE.partition(f"## {title}\n")[2].partition("\n## ")[0]


def first_column(title: str) -> list[str]:
    return re.findall(r"^\| `(\w+)` \|", section(title), flags=re.MULTILINE)


def code(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def _example(install: Callable[[str, str, str], None]) -> None:
    source = code("python")[0]
    points = tomllib.loads(code("toml")[0])["project"]["entry-points"]["prfaas.policies"]
    ((name, value),) = points.items()
    install("prfaas_fastest", f"{name} = {value}", source)


def router() -> dict[str, Any]:
    return tomllib.loads(code("toml")[1])["router"]


def test_every_reason_is_explained() -> None:
    assert sorted(first_column("Why a placement was chosen")) == sorted(get_args(Reason))


def test_every_reason_of_rejection_is_explained() -> None:
    assert sorted(first_column("Why a worker is rejected")) == sorted(get_args(RejectedBy))


def test_every_built_in_policy_is_explained() -> None:
    assert sorted(first_column("The policies")) == list(policy_names())


@pytest.mark.usefixtures("_example")
@pytest.mark.parametrize(
    ("pending_tokens", "prefill_worker", "explanation"),
    [
        pytest.param(
            200, "west/p1", "leaving west saves 0.130 s, 0.200 s are asked for", id="not worth it"
        ),
        pytest.param(
            900, "east/p1", "leaving west saves 0.830 s, 0.200 s are asked for", id="worth it"
        ),
    ],
)
def test_the_example_decides_as_it_says(
    pending_tokens: int, prefill_worker: str, explanation: str
) -> None:
    policy = load_policy(router()["policy"], router()["policy_parameters"])
    busy = a_worker("west/p1", pending_tokens=pending_tokens)
    view = a_view(a_worker("east/p1"), a_worker("west/d1"), busy)

    decision = policy.decide(a_request(), view, Random(0))

    assert decision.placement is not None
    assert decision.placement.prefill_worker == prefill_worker
    assert decision.explanation == explanation


@pytest.mark.usefixtures("_example")
def test_the_example_leaves_when_nobody_is_there() -> None:
    policy = load_policy("fastest", {})
    view = a_view(a_worker("east/p1"), a_worker("west/d1"))

    decision = policy.decide(a_request(), view, Random(0))

    assert decision.placement is not None
    assert decision.placement.is_offloaded


@pytest.mark.usefixtures("_example")
def test_the_example_can_be_recorded() -> None:
    adapter = TypeAdapter(Decision)

    decision = load_policy("fastest", {}).decide(a_request(), a_view(), Random(0))

    assert adapter.validate_json(adapter.dump_json(decision)) == decision


@pytest.mark.usefixtures("_example")
def test_the_example_refuses_a_misspelt_parameter() -> None:
    with pytest.raises(PolicyError, match="its parameters are: gain_s_min"):
        load_policy("fastest", {"gain_min_s": 0.2})
