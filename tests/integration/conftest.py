"""Real fleets, shared by the tests that leave them as they found them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fleets import Fleet, a_fleet, running


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """The default fleet of `make up`, on free ports."""
    with running(a_fleet(), tmp_path_factory.mktemp("fleet")) as running_fleet:
        yield running_fleet
