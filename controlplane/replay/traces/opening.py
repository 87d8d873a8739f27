"""Finds out what kind of trace somebody means."""

from __future__ import annotations

import json
from pathlib import Path

from controlplane.replay.traces.azure import AzureTrace
from controlplane.replay.traces.decisions import DecisionTrace
from controlplane.replay.traces.lines import Place, TraceError, lines_of
from controlplane.replay.traces.mooncake import MooncakeTrace
from controlplane.replay.traces.request import Trace
from controlplane.replay.traces.synthetic import SYNTHETIC_PREFIX, parse_synthetic


def open_trace(spec: str) -> Trace:
    """
    The trace of a file or of a specification, by what its first line looks like.

    Args:
        spec: A path, or `synthetic:...`.

    Raises:
        TraceError: It cannot be read, or is of no kind that is known.
    """
    if spec.startswith(SYNTHETIC_PREFIX):
        return parse_synthetic(spec)
    path = Path(spec)
    place = Place(path)
    first = next(lines_of(place, path), None)
    if first is None:
        raise TraceError(f"{path} is empty: a trace has at least one request")
    if not first.startswith("{"):
        return AzureTrace(path)
    try:
        row = json.loads(first)
    except ValueError:
        place.refuse("the line", "a JSON object, or the header of Azure's CSV", first)
    return DecisionTrace(path) if "decision_id" in row else MooncakeTrace(path)
