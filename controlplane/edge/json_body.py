"""
The body of a request as a JSON object, or a precise 400.

`json.loads` alone takes UTF-16, NaN and duplicate keys (the last one wins silently), and leaks
`RecursionError` on deep nesting; none of that may pass the edge.
"""

from __future__ import annotations

import gc
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NoReturn

from controlplane.errors import MalformedRequest

#: Names that a client chose are shown cut to this: enough to find them, too short to carry text.
_SHOWN_CHARACTERS_MAX: Final = 64


def shown(name: str) -> str:
    """
    A field name fit for messages, logs and `param`: cut, and ASCII with JSON escapes.

    Escaping also defuses lone surrogates, which no UTF-8 log or answer could hold.
    """
    cut = name if len(name) <= _SHOWN_CHARACTERS_MAX else name[:_SHOWN_CHARACTERS_MAX] + "..."
    return json.dumps(cut)[1:-1]


_KINDS: Final[dict[type, str]] = {
    type(None): "null",
    bool: "a boolean",
    int: "an integer",
    float: "a decimal number",
    str: "a string",
    list: "an array",
    dict: "an object",
}


def json_kind(value: object) -> str:
    """What a parsed JSON value is, with its article, for messages."""
    return _KINDS[type(value)]


def parse_object(body: bytes) -> dict[str, object]:
    """
    The JSON object in a body. Pure.

    Strings may still hold U+0000 and lone surrogates: JSON can write them, and the schema refuses
    them with the name of their field.

    Raises:
        MalformedRequest: Not UTF-8, not JSON, not an object, a key twice, NaN or Infinity, an
            integer of thousands of digits, or nested too deep. The message has no content but a
            field name.
    """
    if not body:
        raise MalformedRequest("the body is empty: expected a JSON object")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MalformedRequest(
            f"the body is not UTF-8 at byte {error.start}: expected a JSON object in UTF-8"
        ) from error
    if text.startswith("\ufeff"):
        raise MalformedRequest("the body begins with a byte order mark: send UTF-8 without one")
    document = _decode(text)
    if type(document) is not dict:
        raise MalformedRequest(f"the body is {json_kind(document)}: expected a JSON object")
    return document


def _decode(text: str) -> object:
    try:
        if len(text) <= _SHORT_CHARACTERS:
            return _DECODER.decode(text)
        with _no_garbage_collection():
            return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise MalformedRequest(
            f"the body is not valid JSON at line {error.lineno} column {error.colno}: {error.msg}"
        ) from error
    except RecursionError as error:
        raise MalformedRequest(
            "the body is nested too deep: expected a handful of levels of arrays and objects"
        ) from error
    except ValueError as error:
        # The only other ValueError of the decoder: int() refuses to convert so many digits.
        raise MalformedRequest("the body holds an integer of more than 4300 digits") from error


#: A text up to this holds too few values to matter.
_SHORT_CHARACTERS: Final = 16 << 10


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """
    Make values without looking for cycles among them: JSON has none.

    A body of a hundred thousand empty arrays would start dozens of collections, each of which
    stops every thread of the process, for nothing.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        ((key, _),) = Counter(key for key, _ in pairs).most_common(1)
        name = shown(key)
        raise MalformedRequest(
            f'the body has the key "{name}" twice in one object: expected it once', param=name
        )
    return fields


def _refuse_constant(name: str) -> NoReturn:
    raise MalformedRequest(f"the body holds {name}, which is not JSON: expected a finite number")


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse_constant)
