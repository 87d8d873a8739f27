"""What a scenario is: a load, timed events, and checks; all of it data."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Literal, TypeAlias

from chaos.plant import Topology

Form: TypeAlias = Literal["short", "long"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that is done to the plant."""

    #: Seconds after the load begins.
    at_s: float
    #: Name of an action of `chaos.injector`.
    do: str
    #: Process, or pattern of links.
    target: str = ""
    #: For how long, for what is undone by itself.
    for_s: float = 0.0
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A promise with its figure; `name` is a function of `chaos.checks`."""

    name: str
    bound: float
    #: Row of the table of promises it belongs to.
    promise: str
    #: It must have seen so many; what a short run may miss by chance needs none.
    needs: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)


#: Events of a load of so many seconds.
Plan: TypeAlias = Callable[[float, Random], tuple[Event, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One scenario in one form."""

    name: str
    #: The fault, in words.
    fault: str
    plan: Plan
    checks: tuple[Check, ...]
    #: Requests of the load; 0 for as many as `seconds` have.
    requests: int = 0
    seconds: float = 0.0
    #: Part of the measured capacity.
    load_share: float = 0.6
    leave_share: float = 0.0
    #: Ask for long answers only, so that most requests are in mid-stream at any moment.
    has_long_answers: bool = False
    #: Wait one time to live after the load and count what is left.
    counts_leaks: bool = False
    #: Fetch decision records of the routers.
    reads_records: bool = False
    #: Questions asked beside the load, by name of a function of `chaos.probes`.
    probe: str = ""
    #: What it needs of its plant.
    topology: Topology = field(default_factory=Topology)


def write_scenario(path: Path, scenario: Scenario, *, facts: Mapping[str, Any]) -> None:
    """What a judge needs to know, as JSON."""
    document = {
        "name": scenario.name,
        "fault": scenario.fault,
        "checks": [asdict(check) for check in scenario.checks],
        **facts,
    }
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
