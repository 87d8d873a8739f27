"""Our own decision records as a trace: JSON lines as the admin API and the store give them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from controlplane.replay.traces.lines import Place, lines_of
from controlplane.replay.traces.request import (
    INPUT_TOKENS_MAX,
    OUTPUT_TOKENS_MAX,
    TIME_S_MAX,
    TraceRequest,
)


class DecisionTrace:
    """
    A file of decision records, oldest first.

    Records hold no prompt and no block hashes, so requests share no prefix here. What was cached
    then can be seen in the recorded hits; a request is replayed as if nothing were.
    """

    block_tokens = 512
    count: int | None = None

    def __init__(self, path: Path) -> None:
        self.name = path.name.removesuffix(".gz")
        self._path = path

    def __repr__(self) -> str:
        return f"<DecisionTrace {self.name}>"

    def requests(self, seed: int) -> Iterator[TraceRequest]:
        """Read; see `Trace`. Requests without a decision (shed, refused) are left out."""
        del seed  # everything is in the file
        place = Place(self._path)
        first_s: float | None = None
        before_s = 0.0
        for text in lines_of(place, self._path):
            row = _parsed(place, text)
            at = row.get("at")
            if isinstance(at, bool) or not isinstance(at, int | float):
                place.refuse("at", "Unix seconds", at)
            first_s = float(at) if first_s is None else first_s
            before_s = place.seconds("at", at - first_s, before_s, TIME_S_MAX)
            features = _features(place, row)
            if features is None:
                continue
            report = row.get("report") or {}
            produced = report.get("output_tokens", features.get("output_tokens_max"))
            yield TraceRequest(
                before_s,
                place.whole(
                    "attempts[0].features.input_tokens",
                    features.get("input_tokens"),
                    low=1,
                    high=INPUT_TOKENS_MAX,
                ),
                place.whole("report.output_tokens", produced, low=1, high=OUTPUT_TOKENS_MAX),
            )


def _parsed(place: Place, text: str) -> dict[str, Any]:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        place.refuse("the line", "a decision record", text)
    if not isinstance(row, dict) or "decision_id" not in row:
        place.refuse("the line", "a decision record", text)
    return row


def _features(place: Place, row: dict[str, Any]) -> dict[str, Any] | None:
    attempts = row.get("attempts")
    if not isinstance(attempts, list):
        place.refuse("attempts", "a list", attempts)
    if not attempts:
        return None
    features = attempts[0].get("features") if isinstance(attempts[0], dict) else None
    if not isinstance(features, dict):
        place.refuse("attempts[0].features", "an object", features)
    return features
