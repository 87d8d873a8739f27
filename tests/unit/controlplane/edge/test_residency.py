from __future__ import annotations

from hashlib import sha256

import pytest
from multidict import CIMultiDict

from controlplane.config_links import TenantConfig
from controlplane.edge.residency import Residency
from controlplane.errors import MalformedRequest

SITES = ("west", "east", "north")
TOKEN = "sk-acme-1"
ACME = TenantConfig(
    name="acme",
    tokens_sha256=(sha256(TOKEN.encode()).hexdigest(),),
    datacenters=("west", "north"),
)
GLOBEX = TenantConfig(name="globex", datacenters=("east",))


def allowed(
    *asked: str, token: str | None = None, user: str | None = None
) -> tuple[str, ...] | None:
    headers = CIMultiDict(("X-Prfaas-Datacenters", one) for one in asked)
    authorization = None if token is None else f"Bearer {token}"
    return Residency(SITES, (ACME, GLOBEX)).allowed(headers, authorization, user)


@pytest.mark.parametrize(
    ("asked", "token", "user", "expected"),
    [
        pytest.param((), None, None, None, id="nobody says anything"),
        pytest.param((), None, "initech", None, id="a tenant that is not listed"),
        pytest.param((), None, "acme", ("north", "west"), id="by its user"),
        pytest.param((), TOKEN, None, ("north", "west"), id="by its token"),
        pytest.param((), "sk-other", None, None, id="a token that is not listed"),
        pytest.param((), "sk-other", "acme", ("north", "west"), id="a user with another token"),
        pytest.param(("east,west",), None, None, ("east", "west"), id="by the header"),
        pytest.param((" east , west ",), None, None, ("east", "west"), id="with spaces"),
        pytest.param(("west",), TOKEN, None, ("west",), id="the header narrows the tenant"),
        pytest.param(
            ("east,west",), TOKEN, None, ("west",), id="the header opens nothing to the tenant"
        ),
    ],
)
def test_each_statement_narrows(
    asked: tuple[str, ...],
    token: str | None,
    user: str | None,
    expected: tuple[str, ...] | None,
) -> None:
    assert allowed(*asked, token=token, user=user) == expected


@pytest.mark.parametrize("given", ["south", "east,south", "", "east,", ",", "EAST", "east;west"])
def test_an_unknown_datacenter_is_refused_with_those_there_are(given: str) -> None:
    with pytest.raises(MalformedRequest, match="there are: east, north, west") as refusal:
        allowed(given)

    assert refusal.value.param == "x-prfaas-datacenters"
    assert "south" not in refusal.value.message


def test_two_headers_are_refused() -> None:
    with pytest.raises(MalformedRequest, match="expected one, got 2"):
        allowed("east", "west")


@pytest.mark.parametrize(
    ("asked", "user", "param"),
    [
        pytest.param(("east",), None, "x-prfaas-datacenters", id="the header asks for another"),
        pytest.param((), "globex", "user", id="token and user are of two tenants"),
    ],
)
def test_when_nothing_is_left_the_request_is_refused(
    asked: tuple[str, ...], user: str | None, param: str
) -> None:
    with pytest.raises(MalformedRequest, match="no datacenter is left") as refusal:
        allowed(*asked, token=TOKEN, user=user)

    assert refusal.value.param == param
