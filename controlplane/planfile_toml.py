"""Reads a TOML file into a pydantic model, and says of what is wrong where it stands."""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from controlplane.errors import ConfigError

_M = TypeVar("_M", bound=BaseModel)

#: A planning file of 64 datacenters with all links is under 1 MB.
_BYTES_MAX = 4 << 20

_HEADER = re.compile(r"^\s*(\[\[?)\s*([A-Za-z0-9_.-]+)\s*\]\]?\s*(#.*)?$")
_KEY = re.compile(r"^\s*\"?([A-Za-z0-9_-]+)\"?\s*=")

Location = tuple[str | int, ...]


def read_toml(path: Path, model: type[_M]) -> _M:
    """
    Read and check a file.

    Raises:
        ConfigError: Not readable, too large, not TOML, or a field is wrong; names file, line where
            it can be told, field, what was found and what was expected.
    """
    try:
        if path.stat().st_size > _BYTES_MAX:
            raise ConfigError(f"{path} is larger than {_BYTES_MAX >> 20} MiB: not a planning file")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    try:
        # By way of JSON, where a list may stand for a tuple, while text never stands for a number.
        return model.model_validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        raise ConfigError(_complaints(path, text, error, model)) from error


def _complaints(path: Path, text: str, error: ValidationError, model: type[BaseModel]) -> str:
    """All complaints, each with file, line, field, what was found and what was expected."""
    lines = dict(_lines(text))
    said = []
    items = error.errors(include_url=False)
    for item in items:
        location: Location = item["loc"]
        inside = any(len(o["loc"]) > len(location) <= _common(o["loc"], location) for o in items)
        if inside and item["type"] == "too_short":
            # What is wrong inside a list makes it shorter; only the cause is worth saying.
            continue
        line = _line_of(lines, location)
        where = f"{path}:{line}" if line else f"{path}"
        field = ".".join(str(part) for part in location) or "the file as a whole"
        found = item["input"]
        got = f" (got {found!r})" if isinstance(found, str | int | float) else ""
        said.append(
            f"{where}: {field}: {_expected(item['type'], item['msg'], location, model)}{got}"
        )
    return "\n".join(said)


def _common(one: Location, other: Location) -> int:
    """How many parts two locations share from the beginning."""
    return next(
        (n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
        min(len(one), len(other)),
    )


def _expected(kind: str, message: str, location: Location, model: type[BaseModel]) -> str:
    """What was expected, in words; for a key that nobody knows also those that are known."""
    if kind == "extra_forbidden":
        known = _known(model, location[:-1])
        near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.6)
        hint = f"; did you mean {near[0]}?" if near else ""
        return (
            f"no such field (units are part of a field's name), known are {', '.join(known)}{hint}"
        )
    if kind == "missing":
        return "is required, but not there"
    return message.removeprefix("Value error, ")


def _known(model: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    """Names of the fields of the model at a location."""
    found: Any = model
    for part in location:
        if isinstance(part, int):
            continue
        if not (isinstance(found, type) and issubclass(found, BaseModel)):
            break
        field = found.model_fields.get(part)
        if field is not None:
            found = next(_models(field.annotation), found)
    return list(found.model_fields)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:  # noqa: ANN401 - any type expression
    """Models inside a type expression."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in getattr(annotation, "__args__", ()):
        yield from _models(inner)


def _lines(text: str) -> Iterator[tuple[Location, int]]:
    """Where each table and each key begins, in the order of the file."""
    at: Location = ()
    counts: dict[Location, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER.match(line):
            name: Location = _counted(tuple(header[2].split(".")), counts)
            if header[1] == "[[":
                counts[name] = counts.get(name, -1) + 1
                name = (*name, counts[name])
            at = name
            yield at, number
        elif key := _KEY.match(line):
            yield (*at, key[1]), number


def _counted(parts: Sequence[str], counts: dict[Location, int]) -> Location:
    """A table's name with the numbers of the array items it stands in."""
    found: Location = ()
    for position, part in enumerate(parts):
        found = (*found, part)
        if position < len(parts) - 1 and found in counts:
            found = (*found, counts[found])
    return found


def _line_of(lines: dict[Location, int], location: Location) -> int | None:
    """The line of a field, or of the closest thing around it."""
    for length in range(len(location), 0, -1):
        if location[:length] in lines:
            return lines[location[:length]]
    return None
