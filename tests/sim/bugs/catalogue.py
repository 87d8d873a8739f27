"""All planted bugs."""

from __future__ import annotations

import sim.bugs.at_routers
import sim.bugs.at_store
import sim.bugs.at_workers  # noqa: F401 - each enters its bugs
from sim.bugs.plant import BUGS, Bug, planted

__all__ = ["BUGS", "Bug", "planted"]
