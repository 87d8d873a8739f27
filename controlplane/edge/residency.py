"""Where the data of a request may be: what its tenant is bound to, and what its client asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Final

from controlplane.config_links import TenantConfig
from controlplane.edge.client_headers import Headers, bearer_token, single
from controlplane.errors import MalformedRequest

DATACENTERS_HEADER: Final = "x-prfaas-datacenters"

#: Names that are listed in an error.
_LISTED_MAX: Final = 64


class Residency:
    """What a fleet file says of tenants, looked up for each request."""

    def __init__(self, datacenters: Sequence[str], tenants: Sequence[TenantConfig] = ()) -> None:
        """
        Nothing is looked up yet.

        Args:
            datacenters: All there are.
            tenants: Those that are bound to some of them.
        """
        self._datacenters = tuple(sorted(datacenters))
        self._by_user: Mapping[str, frozenset[str]] = {
            one.name: frozenset(one.datacenters) for one in tenants
        }
        self._by_token: Mapping[str, frozenset[str]] = {
            token: frozenset(one.datacenters) for one in tenants for token in one.tokens_sha256
        }

    def allowed(
        self, headers: Headers, authorization: str | None, user: str | None
    ) -> tuple[str, ...] | None:
        """
        Datacenters that prompt and KV may be in, sorted; None is anywhere. Pure.

        Token, user and header only narrow: none of them opens what another one closes.

        Args:
            headers: For `x-prfaas-datacenters`.
            authorization: That header, if there is one.
            user: The field of the body, if there is one.

        Raises:
            MalformedRequest: An unknown datacenter, or none is left.
        """
        asked = self._asked(headers)
        bounds = [bound for bound in (self._bound(authorization, user), asked) if bound is not None]
        if not bounds:
            return None
        left = frozenset.intersection(*bounds)
        if not left:
            raise MalformedRequest(
                f"{DATACENTERS_HEADER}: no datacenter is left of those that the tenant is bound to",
                param=DATACENTERS_HEADER if asked is not None else "user",
            )
        return tuple(sorted(left))

    def _bound(self, authorization: str | None, user: str | None) -> frozenset[str] | None:
        if not self._by_user:
            return None
        token = bearer_token(authorization)
        digest = (
            "" if token is None else sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
        )
        found = [self._by_token.get(digest), self._by_user.get(user or "")]
        bounds = [bound for bound in found if bound is not None]
        return frozenset.intersection(*bounds) if bounds else None

    def _asked(self, headers: Headers) -> frozenset[str] | None:
        given = single(headers, DATACENTERS_HEADER)
        if given is None:
            return None
        names = frozenset(name.strip() for name in given.split(","))
        if names - set(self._datacenters):
            known = ", ".join(self._datacenters[:_LISTED_MAX])
            raise MalformedRequest(
                f"{DATACENTERS_HEADER}: expected names of datacenters with commas between; "
                f"there are: {known}",
                param=DATACENTERS_HEADER,
            )
        return names
