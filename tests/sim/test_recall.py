"""Test the tests: a bug in the product must be seen."""

from __future__ import annotations

import pytest
from sim.bugs.catalogue import BUGS
from sim.recall import hunt, known_catches

#: Bug and the seed that caught it last.
CATCHES = known_catches()

#: When the code has changed, another seed may be the one.
OTHERS = range(60)


def test_every_bug_has_been_caught_once() -> None:
    """At least twenty, each with its seed."""
    assert set(CATCHES) == set(BUGS)
    assert len(BUGS) >= 20


@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", sorted(BUGS))
def test_a_planted_bug_is_caught(name: str) -> None:
    """The product with this bug violates an invariant."""
    found = hunt(name, [CATCHES[name]]) or hunt(name, OTHERS)

    assert found is not None, f"{BUGS[name].what}: no seed sees it"
