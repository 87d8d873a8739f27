"""Planting a bug: the product's own code, changed for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from sim.probes import swapped


class Patch:
    """Collects changes."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    def set(self, owner: Any, name: str, value: Any) -> None:
        """Another value for an attribute."""
        getattr(owner, name)
        self._stack.enter_context(swapped(owner, name, value))

    def wrap(self, owner: Any, name: str, change: Callable[[Any], Any]) -> None:
        """Another function, made of the real one."""
        self.set(owner, name, change(getattr(owner, name)))


@dataclass(frozen=True, slots=True)
class Bug:
    """A mistake somebody could make."""

    name: str
    what: str
    plant: Callable[[Patch], None]
    #: Kinds of faults that bring it out: seeds with all of them are tried first.
    needs: frozenset[str] = frozenset()


BUGS: dict[str, Bug] = {}


def bug(what: str, *needs: str) -> Callable[[Callable[[Patch], None]], Callable[[Patch], None]]:
    """Enter a function that plants a bug, by its name."""

    def enter(plant: Callable[[Patch], None]) -> Callable[[Patch], None]:
        name = plant.__name__
        BUGS[name] = Bug(name, what, plant, frozenset(needs))
        return plant

    return enter


@contextmanager
def planted(name: str) -> Iterator[None]:
    """The product with one bug."""
    with ExitStack() as stack:
        BUGS[name].plant(Patch(stack))
        yield
