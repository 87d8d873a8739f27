"""
Where workers were last, in a file: for a router that starts while the store is away.

Only addresses are kept, and none is believed: whoever is named there is asked, and counts when it
answers by the same name.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from pydantic import Field, TypeAdapter, ValidationError

from controlplane.errors import ConfigError
from controlplane.observe.logs import get_logger
from controlplane.router.view import ViewTracker
from controlplane.wire import WorkerBeat
from controlplane.wire_types import Message, Name

_log = get_logger()

#: The file is written when addresses have changed, and so often at most, seconds.
_PAUSE_S: Final = 1.0
#: Bytes of a file that is read: ten thousand workers.
_BYTES_MAX: Final = 4 << 20


class LastAddress(Message):
    """A worker and where it listened."""

    worker_id: Name
    url: str = Field(max_length=512, pattern=r"^http://")


_FILE: Final = TypeAdapter(tuple[LastAddress, ...])


class LastKnown:
    """The file of one router. Without a directory it keeps nothing and knows nobody."""

    def __init__(self, directory: Path | None, *, router: str) -> None:
        """
        Args:
            directory: Of files that outlive a process; made when it is not there.
            router: The router's name, one for each of a directory.

        Raises:
            ConfigError: The directory cannot be made.
        """
        self._path = None if directory is None else directory / f"{router}.workers.json"
        self._written: frozenset[tuple[str, str]] = frozenset()
        if directory is not None:
            try:
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise ConfigError(f"PRFAAS_STATE_DIR: cannot make {directory}: {error}") from error

    def __repr__(self) -> str:
        return f"<LastKnown {len(self._written)} workers>"

    def read(self) -> tuple[LastAddress, ...]:
        """What an earlier life has written; nobody when there is none, or it cannot be read."""
        if self._path is None:
            return ()
        try:
            with self._path.open("rb") as file:
                return _FILE.validate_json(file.read(_BYTES_MAX))
        except FileNotFoundError:
            return ()
        except (OSError, ValidationError) as error:
            _log.warning("state.unreadable", cause=type(error).__name__)
            return ()

    def write(self, beats: Iterable[WorkerBeat]) -> None:
        """Keep where these workers are, if that is news; nobody at all is none."""
        known = frozenset((beat.worker_id, beat.url) for beat in beats)
        if self._path is None or not known or known == self._written:
            return
        rows = tuple(LastAddress(worker_id=name, url=url) for name, url in sorted(known))
        beside = self._path.with_suffix(".new")
        try:
            with open(beside, "wb", opener=_private) as file:
                file.write(_FILE.dump_json(rows))
            beside.replace(self._path)
        except OSError as error:
            _log.warning("state.unwritable", cause=type(error).__name__)
        # A disk that is full is not tried again for the same.
        self._written = known

    async def run(self, tracker: ViewTracker) -> None:
        """Write what a store says of workers, until cancelled; what is guessed without it is not kept."""
        while self._path is not None:
            if not tracker.is_store_away:
                await asyncio.to_thread(self.write, tracker.beats())
            await asyncio.sleep(_PAUSE_S)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
