"""Lines of a trace file, plain or compressed, and the checks that all formats share."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NoReturn

from controlplane.errors import ConfigError

#: The longest line: a prompt of 16 M tokens has 32,768 block ids of ten digits.
_LINE_CHARACTERS_MAX: Final = 4 << 20


class TraceError(ConfigError):
    """A trace that cannot be read: file, line, field, and what was expected."""


class Place:
    """Where in a trace reading is, for messages."""

    __slots__ = ("line", "path")

    def __init__(self, path: Path | str) -> None:
        self.path = path
        self.line = 0

    def __repr__(self) -> str:
        return f"{self.path}:{self.line}"

    def refuse(self, field: str, expected: str, found: object) -> NoReturn:
        """
        Give up on the trace.

        Raises:
            TraceError: Always.
        """
        shown = repr(found)
        if len(shown) > 80:  # noqa: PLR2004 - a line of a terminal
            shown = f"{shown[:77]}..."
        raise TraceError(
            f"{self.path}, line {self.line}, {field}: expected {expected}, got {shown}"
        )

    def whole(self, field: str, value: object, *, low: int, high: int) -> int:
        """
        A whole number within bounds.

        Raises:
            TraceError: It is none.
        """
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        if not is_whole or not low <= value <= high:  # type: ignore[operator]
            self.refuse(field, f"a whole number from {low:,} to {high:,}", value)
        return value  # type: ignore[return-value]

    def seconds(self, field: str, value_s: float, before_s: float, highest_s: float) -> float:
        """
        A time that does not lie before the one of the line before.

        Raises:
            TraceError: It does, or is absurd.
        """
        if not 0 <= value_s <= highest_s:
            self.refuse(field, f"a time from 0 to {highest_s:,.0f} s", value_s)
        if value_s < before_s:
            self.refuse(field, f"times in order, this one at {before_s:g} s or later", value_s)
        return value_s


def lines_of(place: Place, path: Path) -> Iterator[str]:
    """
    The lines of a file without their ends, empty ones left out; `place` follows.

    Raises:
        TraceError: It cannot be read, or a line is no text or too long.
    """
    opened: Any = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8") as file:
            while text := file.readline(_LINE_CHARACTERS_MAX):
                place.line += 1
                if len(text) >= _LINE_CHARACTERS_MAX:
                    place.refuse("the line", f"less than {_LINE_CHARACTERS_MAX:,} characters", text)
                if stripped := text.strip():
                    yield stripped
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise TraceError(
            f"cannot read the trace {path} after line {place.line}: {error}"
        ) from error
