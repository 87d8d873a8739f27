"""Traces in Mooncake's format: JSON lines with `timestamp`, lengths and `hash_ids`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any, Final

from controlplane.replay.traces.lines import Place, lines_of
from controlplane.replay.traces.request import (
    INPUT_TOKENS_MAX,
    OUTPUT_TOKENS_MAX,
    TIME_S_MAX,
    TraceRequest,
)

BLOCK_TOKENS: Final = 512

#: Block ids are numbers of a store of at most so many blocks.
_BLOCK_ID_MAX: Final = 2**63 - 1

#: Some traces were cut to steps of about so many seconds. Requests of one step are spread over it,
#: for else each would be a burst; a longer pause after it is a pause.
_STEP_S_MAX: Final = 3.0

#: Requests of one step that are held to be spread; more pass as they come.
_STEP_REQUESTS_MAX: Final = 10_000


class MooncakeTrace:
    """A file of JSON lines; see `shared prefixes` in docs/replay.md for what block ids mean."""

    block_tokens = BLOCK_TOKENS
    count: int | None = None

    def __init__(self, path: Path, *, spreads: bool = True) -> None:
        """
        A trace that is read when it is asked for.

        Args:
            path: The file, perhaps compressed (`.gz`).
            spreads: Requests of one instant are spread up to the next one, at random.
        """
        self.name = path.name.removesuffix(".gz")
        self._path = path
        self._spreads = spreads

    def __repr__(self) -> str:
        return f"<MooncakeTrace {self.name}>"

    def requests(self, seed: int) -> Iterator[TraceRequest]:
        """Read; see `Trace`."""
        rows = self._rows()
        if not self._spreads:
            yield from rows
            return
        rng = Random(seed)
        step: list[TraceRequest] = []
        for row in rows:
            if step and (row.at_s > step[0].at_s or len(step) >= _STEP_REQUESTS_MAX):
                yield from _spread(step, row.at_s, rng)
                step = []
            step.append(row)
        yield from _spread(step, step[0].at_s + 1.0 if step else 0.0, rng)

    def _rows(self) -> Iterator[TraceRequest]:
        place = Place(self._path)
        first_s: float | None = None
        before_s = 0.0
        for text in lines_of(place, self._path):
            row = _parsed(place, text)
            at_s = place.seconds("timestamp", _milliseconds(place, row), before_s, TIME_S_MAX)
            before_s = at_s
            first_s = at_s if first_s is None else first_s
            tokens = place.whole(
                "input_length", row.get("input_length"), low=1, high=INPUT_TOKENS_MAX
            )
            yield TraceRequest(
                at_s - first_s,
                tokens,
                place.whole(
                    "output_length", row.get("output_length"), low=1, high=OUTPUT_TOKENS_MAX
                ),
                _blocks(place, row.get("hash_ids"), tokens),
            )


def _parsed(place: Place, text: str) -> dict[str, Any]:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        place.refuse("the line", "a JSON object", text)
    if not isinstance(row, dict):
        place.refuse("the line", "a JSON object", text)
    return row


def _milliseconds(place: Place, row: dict[str, Any]) -> float:
    value = row.get("timestamp")
    if isinstance(value, bool) or not isinstance(value, int | float):
        place.refuse("timestamp", "milliseconds since the beginning", value)
    return value / 1000


def _blocks(place: Place, value: object, tokens: int) -> tuple[int, ...]:
    wanted = -(-tokens // BLOCK_TOKENS)
    if not isinstance(value, list):
        place.refuse("hash_ids", f"a list of {wanted} block ids", value)
    if len(value) != wanted:
        place.refuse(
            "hash_ids",
            f"{wanted} block ids, one for each {BLOCK_TOKENS} of {tokens} tokens",
            f"{len(value)} of them",
        )
    for one in value:
        if type(one) is not int or not 0 <= one <= _BLOCK_ID_MAX:
            place.refuse("hash_ids", "whole numbers >= 0", one)
    return tuple(value)


def _spread(step: Sequence[TraceRequest], next_s: float, rng: Random) -> Iterator[TraceRequest]:
    """The requests of one instant, at random times up to the next, in their order."""
    if len(step) <= 1:
        yield from step
        return
    began_s = step[0].at_s
    length_s = min(_STEP_S_MAX, max(0.0, next_s - began_s))
    times_s = sorted(began_s + length_s * rng.random() for _ in step)
    for at_s, row in zip(times_s, step, strict=True):
        yield TraceRequest(at_s, row.input_tokens, row.output_tokens, row.blocks)
