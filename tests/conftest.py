"""What every test leaves behind for the next one: nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import structlog


@pytest.fixture(autouse=True)
def logs_as_they_were() -> Iterator[None]:
    """A test that sets up the process's logs does not silence those of tests after it."""
    before = structlog.get_config()
    yield
    if structlog.get_config() == before:
        return
    structlog.configure(**before)
    for module in tuple(sys.modules.values()):
        # A logger keeps what it was first used with; without that it asks again.
        logger = getattr(module, "_log", None)
        if isinstance(logger, structlog._config.BoundLoggerLazyProxy):
            vars(logger).pop("bind", None)
