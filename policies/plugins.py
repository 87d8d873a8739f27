"""
Runs filters, scorers and pickers of other packages: bounded, counted, and never the router's end.

This is the edge to code that nobody here has read. What it raises is caught, whatever it is: a request
is not lost because a score could not be told.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

from controlplane.domain.cluster import ClusterView, WorkerView
from controlplane.domain.decision import RequestFeatures
from policies.api import Filter, Picker, Scorer
from policies.filters import Rejection


@dataclass(slots=True)
class Failures:
    """What went wrong in plug-ins during one decision."""

    counts: Counter[str] = field(default_factory=Counter)
    _first: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, what: str) -> None:
        """One more failure of a plug-in."""
        self.counts[name] += 1
        self._first.setdefault(name, what)

    def said(self) -> str:
        """All of them in words; empty when there were none."""
        parts = [
            f"{name} failed {count} times ({self._first[name]})"
            for name, count in sorted(self.counts.items())
        ]
        return "; ".join(parts)


def sifted(
    filters: Sequence[Filter],
    request: RequestFeatures,
    worker: WorkerView,
    view: ClusterView,
    failures: Failures,
) -> Rejection | None:
    """The first filter's reason to keep a worker out; None when all let it pass."""
    for one in filters:
        try:
            rejection = one(request, worker, view)
        except Exception as error:  # noqa: BLE001 - the edge to foreign code
            failures.add(one.name, type(error).__name__)
            if one.is_safety:
                return Rejection("filter", f"{one.name} could not look at it")
            continue
        if rejection is not None:
            return rejection
    return None


def scored(
    scorer: Scorer,
    request: RequestFeatures,
    worker: WorkerView,
    view: ClusterView,
    failures: Failures,
) -> float:
    """A scorer's opinion from 0 to 1; 0 when it has none."""
    try:
        score = float(scorer(request, worker, view))
    except Exception as error:  # noqa: BLE001 - the edge to foreign code
        failures.add(scorer.name, type(error).__name__)
        return 0.0
    if 0 <= score <= 1:
        return score
    failures.add(scorer.name, f"{score:g} is not from 0 to 1")
    return 0.0 if math.isnan(score) else min(1.0, max(0.0, score))


def picked(picker: Picker, scores: Sequence[float], rng: Random, failures: Failures) -> int:
    """The picker's place; that of the highest score when it cannot tell."""
    try:
        place = picker(scores, rng)
    except Exception as error:  # noqa: BLE001 - the edge to foreign code
        failures.add("picker", type(error).__name__)
        return highest(scores, rng)
    if 0 <= place < len(scores):
        return place
    failures.add("picker", f"{place} of {len(scores)}")
    return highest(scores, rng)


def highest(scores: Sequence[float], rng: Random) -> int:
    """The place of the highest score; equals by chance. The usual picker."""
    best = max(scores)
    tied = [place for place, score in enumerate(scores) if score == best]
    return tied[rng.randrange(len(tied))] if len(tied) > 1 else tied[0]
