"""Who a worker is; constant for one life of it."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from controlplane.wire import Role


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A worker's name, place, role and life."""

    #: `<datacenter>/<name>`.
    worker_id: str
    datacenter: str
    role: Role
    #: Random for each life: what was said of an earlier one never fits this one.
    incarnation: str

    @property
    def name(self) -> str:
        """Its name in its datacenter."""
        return self.worker_id.removeprefix(f"{self.datacenter}/")

    def reborn(self, role: Role) -> Identity:
        """The same worker in another role: another life of it."""
        return Identity.new(datacenter=self.datacenter, name=self.name, role=role)

    @classmethod
    def new(cls, *, datacenter: str, name: str, role: Role) -> Identity:
        """A fresh life."""
        return cls(
            worker_id=f"{datacenter}/{name}",
            datacenter=datacenter,
            role=role,
            incarnation=secrets.token_hex(8),
        )
