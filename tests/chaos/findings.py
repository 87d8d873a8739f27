"""What a check says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

EXAMPLES_MAX: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a check found."""

    value: float
    #: Of how many; 0 means that the check saw nothing and cannot have passed.
    n: int
    what: str
    unit: str = ""
    #: The value must be at least the bound, not at most.
    is_floor: bool = False
    #: Examples, for people.
    examples: tuple[str, ...] = ()


def counted(found: list[str], n: int, what: str) -> Finding:
    """A number of things that must not be, with some of them as examples."""
    return Finding(value=len(found), n=n, what=what, examples=tuple(found[:EXAMPLES_MAX]))
