"""Time as arguments: what waits or measures takes these, so that tests own the clock."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeAlias

#: Monotonic seconds; only differences mean something, and only inside one process.
Clock: TypeAlias = Callable[[], float]
#: Waits so many seconds; cancellable.
Sleep: TypeAlias = Callable[[float], Awaitable[None]]
