"""
`python -m benchmarks.decide`: what one decision costs, and the upkeep of the view it is made on.

One process, one core, no network: a router's view is filled with workers that are partly busy, and
prompts of 128K tokens are placed one after the other. Between two decisions the view changes as it
does at work: the claim of the last one, the ends of an earlier one, and heartbeats. The decision
counts from the picture it asks for, so that the incremental upkeep of the view is in it. Times are
processor time of this thread, which other processes of the machine disturb least.
"""

from __future__ import annotations

import gc
import json
import time
from collections import deque
from dataclasses import asdict, dataclass
from itertools import pairwise, permutations
from pathlib import Path
from random import Random
from typing import Final

import click
from rich.console import Console
from rich.table import Table

from controlplane.config import LinkConfig
from controlplane.domain.cluster import ClusterView, recorded
from controlplane.domain.decision import Decision, RequestFeatures
from controlplane.domain.health import HealthRules
from controlplane.router.claims import Claim
from controlplane.router.rules import ViewRules
from controlplane.router.view import ViewTracker
from controlplane.store.api import StoreSnapshot, WorkerSeen
from controlplane.wire import Inventory, Load, Profile, WorkerBeat
from policies.api import Policy
from policies.registry import load_policy

#: What a decision in the largest fleet may take, milliseconds, 99 of 100 times.
LIMIT_MS: Final = 1.0

#: New objects that gather between collections of garbage: what `prfaas router` sets.
_YOUNG_MAX: Final = 5_000
_PROMPT_TOKENS: Final = 131_072
_BLOCK_TOKENS: Final = 512
_SHARED_BLOCKS: Final = 8
_IN_FLIGHT: Final = 200
_FLEETS: Final = ((2, 3), (10, 100), (16, 1000))


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """A fleet and what happens in it."""

    datacenters: int
    #: In each datacenter; every other one decodes.
    workers: int
    decisions: int
    #: Heartbeats between two decisions.
    beats: int
    #: Workers that hold the beginning of all prompts, as of a system prompt.
    sharers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Microseconds of one step."""

    p50_us: float
    p99_us: float
    max_us: float

    @classmethod
    def of(cls, seconds: list[float]) -> Figures:
        """Of measured times; at least one."""
        ordered = sorted(seconds)
        return cls(
            p50_us=ordered[len(ordered) // 2] * 1e6,
            p99_us=ordered[len(ordered) * 99 // 100] * 1e6,
            max_us=ordered[-1] * 1e6,
        )


class Fleet:
    """A router's view of workers that are not there."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._rng = Random(7)
        sites = [f"dc-{number:02}" for number in range(setup.datacenters)]
        self._names = [
            (site, "prefill" if number % 2 == 0 else "decode", number)
            for site in sites
            for number in range(setup.workers)
        ]
        self._sequence = 1
        self.tracker = ViewTracker(
            home_datacenter=sites[0],
            links=[
                LinkConfig(from_datacenter=one, to_datacenter=two, capacity_mbit_per_s=100_000)
                for one, two in permutations(sites, 2)
            ],
            ttl_s=1e9,
            # Nobody beats as often as at work: silence says nothing here.
            rules=ViewRules(health=HealthRules(silent_s=1e6)),
            clock=time.monotonic,
        )
        sharers = set(
            self._rng.sample(range(len(self._names)), min(setup.sharers, len(self._names)))
        )
        beats = [self._beat(place, place in sharers) for place in range(len(self._names))]
        self.tracker.apply_snapshot(
            StoreSnapshot(beats=tuple(beats), loads={}, link_reserved_bytes={}, cursor="0-0")
        )

    def beat(self) -> None:
        """One worker says how it is."""
        self._sequence += 1
        beat = self._beat(self._rng.randrange(len(self._names)), is_sharer=False)
        self.tracker.apply_events([WorkerSeen(beat)])

    def _beat(self, place: int, is_sharer: bool) -> WorkerBeat:  # noqa: FBT001 - its own
        site, role, number = self._names[place]
        busy = self._rng.randrange(6)
        stored = {block_of(at).hex(): "as" for at in range(_SHARED_BLOCKS)} if is_sharer else {}
        if place % 997 == 5:
            # A few have read this very document before.
            stored |= {block_of(at).hex(): "as" for at in range(100 + place % 50)}
        return WorkerBeat(
            worker_id=f"{site}/{role}-{number:04}",
            datacenter=site,
            role="prefill" if role == "prefill" else "decode",
            incarnation=f"i{number}",
            sequence=self._sequence,
            url="http://10.0.0.1:9000",
            model="m",
            fingerprint="f",
            vocabulary_size=272,
            block_tokens=_BLOCK_TOKENS,
            context_tokens_max=1 << 20,
            requests_max=128,
            slots=64,
            is_draining=place % 50 == 7,
            can_resume=True,
            # Speeds are measured: those of equal hardware differ by a percent, and no two are equal.
            profile=Profile(
                prefill_s_per_token=2e-5 * self._rng.uniform(0.99, 1.01),
                prefill_fixed_s=0.01,
                decode_step_s=0.02,
                kv_bytes_per_token=60_000,
                kv_state_bytes=20_000_000,
            ),
            load=Load(queue_requests=busy, queue_tokens=busy * 20_000 if role == "prefill" else 0),
            inventory=Inventory.model_validate(
                {"is_full": self._sequence == 1, "stored": stored if self._sequence == 1 else {}}
            ),
        )


def block_of(place: int) -> bytes:
    """Hash of a block of the one document all prompts begin with."""
    return place.to_bytes(16, "big")


def measure(setup: Setup, policy: Policy) -> dict[str, Figures]:
    """Place prompts one after the other; the times of each step."""
    fleet = Fleet(setup)
    tracker = fleet.tracker
    hashes = tuple(block_of(at) for at in range(_PROMPT_TOKENS // _BLOCK_TOKENS))
    running: deque[Claim] = deque()
    times: dict[str, list[float]] = {
        name: []
        for name in ("match", "claims and beats", "picture", "policy", "decision", "explanation")
    }
    tracker.view()
    # As a router does when it has started.
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_MAX)
    for number in range(setup.decisions):
        clock = [time.thread_time()]
        hits = tracker.match(hashes, block_tokens=_BLOCK_TOKENS)
        clock.append(time.thread_time())
        view = tracker.view()
        clock.append(time.thread_time())
        decision = policy.decide(
            RequestFeatures(
                request_id=f"r{number}",
                model="m",
                input_tokens=_PROMPT_TOKENS,
                output_tokens_max=1024,
                sequence=number,
                prefix_hits=hits,
            ),
            view,
            Random(number),
        )
        clock.append(time.thread_time())
        # Candidates are made now, when they are first read: a router does it behind the decision.
        recorded(view, decision.named_workers)
        clock.append(time.thread_time())
        _go_on(fleet, setup, view, decision, running)
        clock.append(time.thread_time())
        match, picture, policy_s, explained, upkeep = (
            after - before for before, after in pairwise(clock)
        )
        for name, seconds in (
            ("match", match),
            ("picture", picture),
            ("policy", policy_s),
            ("decision", picture + policy_s),
            ("explanation", explained),
            ("claims and beats", upkeep),
        ):
            times[name].append(seconds)
    gc.unfreeze()
    return {name: Figures.of(seconds) for name, seconds in times.items()}


def _go_on(
    fleet: Fleet, setup: Setup, view: ClusterView, decision: Decision, running: deque[Claim]
) -> None:
    """The view changes: a claim, the ends of an earlier one, and heartbeats."""
    placement, prediction = decision.placement, decision.prediction
    assert placement is not None
    assert prediction is not None
    prefill, decode = view.worker(placement.prefill_worker), view.worker(placement.decode_worker)
    assert prefill is not None
    assert decode is not None
    claim = Claim(
        prefill_worker=prefill.worker_id,
        prefill_incarnation=prefill.incarnation,
        prefill_tokens=prediction.uncached_tokens,
        decode_worker=decode.worker_id,
        decode_incarnation=decode.incarnation,
        link=f"{prefill.datacenter}>{decode.datacenter}" if placement.is_offloaded else None,
        link_bytes=prediction.transfer_bytes if placement.is_offloaded else 0,
    )
    fleet.tracker.claim(claim)
    running.append(claim)
    if len(running) > _IN_FLIGHT:
        ended = running.popleft()
        fleet.tracker.prefill_done(ended)
        fleet.tracker.decode_done(ended)
    for _ in range(setup.beats):
        fleet.beat()


def _show(console: Console, title: str, setup: Setup, figures: dict[str, Figures]) -> None:
    table = Table(
        title=f"{title}: {setup.datacenters * setup.workers:,} workers in {setup.datacenters} "
        f"datacenters, {setup.decisions:,} decisions, {setup.beats} heartbeats after each"
    )
    for name in ("step, microseconds", "p50", "p99", "max"):
        table.add_column(name, justify="left" if "," in name else "right")
    for name, one in figures.items():
        table.add_row(name, f"{one.p50_us:.0f}", f"{one.p99_us:.0f}", f"{one.max_us:.0f}")
    console.print(table)


@click.command()
@click.option("--policy", "policies", multiple=True, default=("prfaas",), show_default=True)
@click.option("--decisions", type=click.IntRange(10, 1_000_000), default=3000, show_default=True)
@click.option("--beats", type=click.IntRange(0, 1000), default=2, show_default=True)
@click.option("--sharers", type=click.IntRange(0, 100_000), default=40, show_default=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path, dir_okay=False))
def main(
    *, policies: tuple[str, ...], decisions: int, beats: int, sharers: int, json_path: Path | None
) -> None:
    """Measure what decisions cost; ends with 1 when the largest fleet is over the limit."""
    console = Console(width=max(100, Console().width))
    report: list[dict[str, object]] = []
    is_over = False
    for name in policies:
        policy = load_policy(name, {})
        for datacenters, workers in _FLEETS:
            setup = Setup(
                datacenters=datacenters,
                workers=workers,
                decisions=decisions,
                beats=beats,
                sharers=sharers,
            )
            figures = measure(setup, policy)
            _show(console, name, setup, figures)
            report.append(
                {
                    "policy": name,
                    **asdict(setup),
                    **{step: asdict(figures[step]) for step in figures},
                }
            )
            is_over |= figures["decision"].p99_us > LIMIT_MS * 1000
    verdict = "over" if is_over else "within"
    console.print(f"decision = picture + policy: p99 {verdict} the limit of {LIMIT_MS:g} ms")
    if json_path is not None:
        json_path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if is_over:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
