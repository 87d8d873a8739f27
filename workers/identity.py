"""Who a worker is; constant for the life of its process."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from controlplane.wire import Role


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A worker's name, place, role and process life."""

    #: `<datacenter>/<name>`.
    worker_id: str
    datacenter: str
    role: Role
    #: Random for each process: what was said of an earlier life never fits this one.
    incarnation: str

    @classmethod
    def new(cls, *, datacenter: str, name: str, role: Role) -> Identity:
        """A fresh process life."""
        return cls(
            worker_id=f"{datacenter}/{name}",
            datacenter=datacenter,
            role=role,
            incarnation=secrets.token_hex(8),
        )
