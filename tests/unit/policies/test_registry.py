from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest
from builders import a_request, a_view

from controlplane.config import DEFAULT_FLEET
from policies.local_only import LocalOnlyPolicy
from policies.prfaas import PrfaasPolicy
from policies.registry import PolicyError, load_policy, policy_names
from policies.round_robin import RoundRobinPolicy

Install = Callable[[str, str, str], None]


GREEDY = """
from typing import ClassVar, Self
from pydantic import model_validator
from policies.api import Parameters
from policies.local_only import LocalOnlyPolicy

class GreedyParameters(Parameters):
    low: int = 0
    high: int = 1

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError("low must not be above high")
        return self

class GreedyPolicy(LocalOnlyPolicy):
    name: ClassVar[str] = "greedy"
    parameters_model = GreedyParameters
"""


def test_the_built_in_policies_are_installed_and_sorted() -> None:
    names = policy_names()

    assert {"local_only", "prfaas", "round_robin"} <= set(names)
    assert list(names) == sorted(names)


@pytest.mark.parametrize("kind", [LocalOnlyPolicy, PrfaasPolicy, RoundRobinPolicy])
def test_a_built_in_policy_is_found_under_its_own_name(kind: type) -> None:
    assert isinstance(load_policy(kind.name, {}), kind)  # type: ignore[attr-defined]


def test_the_default_fleet_names_a_policy_and_parameters_it_takes() -> None:
    router = DEFAULT_FLEET.router

    policy = load_policy(router.policy, router.policy_parameters)

    assert policy.name == "prfaas"


def test_an_unknown_policy_is_told_what_there_is() -> None:
    with pytest.raises(PolicyError) as caught:
        load_policy("prefas", {})

    assert str(caught.value) == (
        f"unknown policy 'prefas'; installed are: {', '.join(policy_names())}"
    )


@pytest.mark.parametrize(
    ("name", "parameters", "said"),
    [
        pytest.param(
            "prfaas",
            {"treshold_tokens": 1},
            "policy 'prfaas': treshold_tokens: Extra inputs are not permitted; "
            "its parameters are: threshold_tokens, follows_plan, copies, spills_home, spills_away, "
            "margin_s, margin_share",
            id="misspelt",
        ),
        pytest.param(
            "prfaas",
            {"threshold_tokens": -1},
            "policy 'prfaas': threshold_tokens: Input should be greater than or equal to 0; "
            "its parameters are: threshold_tokens, follows_plan, copies, spills_home, spills_away, "
            "margin_s, margin_share",
            id="out of range",
        ),
        pytest.param(
            "local_only",
            {"threshold_tokens": 1},
            "policy 'local_only': threshold_tokens: Extra inputs are not permitted; "
            "its parameters are: none",
            id="a policy without parameters",
        ),
    ],
)
def test_a_wrong_parameter_is_told_which_there_are(
    name: str, parameters: dict[str, int], said: str
) -> None:
    with pytest.raises(PolicyError) as caught:
        load_policy(name, parameters)

    assert str(caught.value) == said


def test_another_package_can_bring_a_policy(install: Install) -> None:
    install("greedy_one", "greedy = greedy_one:GreedyPolicy", GREEDY)

    policy = load_policy("greedy", {"high": 2})

    assert "greedy" in policy_names()
    assert policy.name == "greedy"


def test_parameters_that_do_not_fit_together_are_refused(install: Install) -> None:
    install("greedy_two", "greedy = greedy_two:GreedyPolicy", GREEDY)

    with pytest.raises(PolicyError) as caught:
        load_policy("greedy", {"low": 2})

    assert str(caught.value) == (
        "policy 'greedy': parameters: Value error, low must not be above high; "
        "its parameters are: low, high"
    )


@pytest.mark.parametrize(
    ("package", "entry_point", "source", "said"),
    [
        pytest.param(
            "broken_one",
            "broken = broken_one:Missing",
            "",
            "module 'broken_one' has no attribute 'Missing'",
            id="no such class",
        ),
        pytest.param(
            "broken_two",
            "broken = absent_module:Policy",
            "",
            "No module named 'absent_module'",
            id="no such module",
        ),
        pytest.param(
            "broken_three",
            "broken = broken_three:policy",
            "def policy(): ...",
            "'function' object has no attribute 'parameters_model'",
            id="not a policy",
        ),
    ],
)
def test_a_policy_that_cannot_be_loaded_says_why(
    install: Install, package: str, entry_point: str, source: str, said: str
) -> None:
    install(package, entry_point, source)

    with pytest.raises(PolicyError) as caught:
        load_policy("broken", {})

    value = entry_point.partition(" = ")[2]
    assert str(caught.value) == f"policy 'broken' ({value}) cannot be loaded: {said}"


def test_a_name_that_two_packages_claim_is_refused(install: Install) -> None:
    install("rival", "prfaas = rival:GreedyPolicy", GREEDY)

    with pytest.raises(PolicyError) as caught:
        load_policy("prfaas", {})

    assert str(caught.value) == (
        "policy 'prfaas' is there more than once: policies.prfaas:PrfaasPolicy, rival:GreedyPolicy"
    )


def test_policy_names_come_once(install: Install) -> None:
    install("rival_two", "prfaas = rival_two:GreedyPolicy", GREEDY)

    assert policy_names().count("prfaas") == 1


@pytest.mark.parametrize("name", policy_names())
def test_a_loaded_policy_decides(name: str) -> None:
    decision = load_policy(name, {}).decide(a_request(), a_view(), Random(0))

    assert decision.placement is not None
