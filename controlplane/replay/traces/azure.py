"""Traces in the format of Azure's LLM inference traces: CSV with a time and two lengths."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Final

from controlplane.replay.traces.lines import Place, lines_of
from controlplane.replay.traces.request import (
    INPUT_TOKENS_MAX,
    OUTPUT_TOKENS_MAX,
    TIME_S_MAX,
    TraceRequest,
)

_HEADER: Final = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")

#: `fromisoformat` takes six digits of a second's fraction in all Pythons; Azure gives seven.
_STAMP_CHARACTERS: Final = len("2023-11-16 18:15:46.680590")


class AzureTrace:
    """A CSV file; nothing is known of its prompts' prefixes, so none is shared."""

    block_tokens = 512
    count: int | None = None

    def __init__(self, path: Path) -> None:
        self.name = path.name.removesuffix(".gz")
        self._path = path

    def __repr__(self) -> str:
        return f"<AzureTrace {self.name}>"

    def requests(self, seed: int) -> Iterator[TraceRequest]:
        """Read; see `Trace`."""
        del seed  # everything is in the file
        place = Place(self._path)
        first: datetime | None = None
        before_s = 0.0
        lines = lines_of(place, self._path)
        header = next(lines, "")
        if tuple(part.strip() for part in header.lstrip("\ufeff").split(",")) != _HEADER:
            place.line = max(1, place.line)
            place.refuse("the header", ",".join(_HEADER), header)
        for text in lines:
            fields = text.split(",")
            if len(fields) != len(_HEADER):
                place.refuse("the line", f"{len(_HEADER)} fields", text)
            stamp = _stamp(place, fields[0])
            first = stamp if first is None else first
            at_s = place.seconds("TIMESTAMP", _since(place, first, stamp), before_s, TIME_S_MAX)
            before_s = at_s
            yield TraceRequest(
                at_s,
                _tokens(place, "ContextTokens", fields[1], INPUT_TOKENS_MAX),
                _tokens(place, "GeneratedTokens", fields[2], OUTPUT_TOKENS_MAX),
            )


def _stamp(place: Place, text: str) -> datetime:
    try:
        return datetime.fromisoformat(text.strip()[:_STAMP_CHARACTERS])
    except ValueError:
        place.refuse("TIMESTAMP", "a time like 2023-11-16 18:15:46.6805900", text)


def _since(place: Place, first: datetime, stamp: datetime) -> float:
    try:
        passed_s = (stamp - first).total_seconds()
    except TypeError:
        place.refuse("TIMESTAMP", "a time zone on all lines or on none", str(stamp))
    if passed_s < 0:
        place.refuse("TIMESTAMP", f"times in order, this one at {first} or later", str(stamp))
    return passed_s


def _tokens(place: Place, field: str, text: str, highest: int) -> int:
    try:
        value = int(text)
    except ValueError:
        place.refuse(field, f"a whole number from 1 to {highest:,}", text)
    return place.whole(field, value, low=1, high=highest)
