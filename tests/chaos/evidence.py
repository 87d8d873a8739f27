"""A saved run, read for judging: history, events, records and what was left at the end."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from chaos.history import Attempt, Request, read_history, read_lines
from chaos.pool import Item, read_pool

#: A connection may end so long before or after its process is written down as dead.
_DEATH_SLACK_S: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that is known of a run."""

    scenario: dict[str, Any]
    pool: list[Item]
    requests: list[Request]
    events: list[dict[str, Any]]
    #: Held when the load was over and one time to live had passed, if the scenario waits for it.
    end: dict[str, Any]
    records: list[dict[str, Any]]
    probes: list[dict[str, Any]]

    @classmethod
    def read(cls, directory: Path) -> Evidence:
        """The evidence of a directory that a run has left."""
        history = directory / "history.jsonl"
        requests = read_history(history) if history.exists() else []
        # Routers remember what was before the load, too, and each lists those of the others.
        asked = {attempt.request_id for request in requests for attempt in request.attempts}
        records = {
            record["request_id"]: record
            for record in read_lines(directory / "records.jsonl")
            if record["request_id"] in asked
        }
        return cls(
            scenario=json.loads((directory / "scenario.json").read_text(encoding="utf-8")),
            pool=read_pool(directory / "pool.jsonl"),
            requests=requests,
            events=list(read_lines(directory / "events.jsonl")),
            end=json.loads((directory / "end.json").read_text(encoding="utf-8")),
            records=list(records.values()),
            probes=list(read_lines(directory / "probes.jsonl")),
        )

    def named(self, *names: str, target: str = "") -> list[dict[str, Any]]:
        """Events of these names, of targets that begin so."""
        return [
            event
            for event in self.events
            if event["event"] in names and event.get("target", "").startswith(target)
        ]

    def spans(self, begin: str, end: str, target: str = "") -> list[tuple[float, float]]:
        """Pairs of times from each `begin` to the next `end` of the same target."""
        found = []
        for event in self.named(begin, target=target):
            later = (
                other["at_s"]
                for other in self.named(end)
                if other.get("target") == event["target"] and other["at_s"] > event["at_s"]
            )
            found.append((event["at_s"], next(later, float("inf"))))
        return found

    def killed_beside(self, attempt: Attempt) -> bool:
        """Whether the router of an attempt was killed while the attempt was open."""
        return any(
            event["target"] == attempt.router
            and attempt.sent_s - _DEATH_SLACK_S <= event["at_s"] <= attempt.ended_s + _DEATH_SLACK_S
            for event in self.named("kill", target="router")
        )

    def attempts(self) -> Iterable[tuple[Request, Attempt]]:
        """All attempts of all requests."""
        for request in self.requests:
            for attempt in request.attempts:
                yield request, attempt


def quantile(values: Iterable[float], share: float) -> float:
    """The value that a share of all do not exceed; 0 of none."""
    ordered = sorted(values)
    if not ordered:
        return 0.0
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
