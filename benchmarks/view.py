"""
`python -m benchmarks.view`: what following the store costs a router of a large fleet.

A real server, a process that beats for a thousand workers, and in this process the router's own
feed and view, at work. Nothing else runs here, so all processor time of this process is the
cost of following. The pictures that decisions ask for, and reading everything anew, are measured
by themselves and counted at their rates.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import click
import uvloop
from rich.console import Console
from rich.table import Table

from benchmarks.beats import TTL_S
from benchmarks.children import Child, cores, pin
from controlplane.config import LinkConfig, StoreConfig
from controlplane.domain.health import HealthRules
from controlplane.router.claims import Claim
from controlplane.router.feed import RESYNC_S, ViewFeed
from controlplane.router.rules import ViewRules
from controlplane.router.view import ViewTracker
from controlplane.store.embedded import EmbeddedServer
from controlplane.store.redis_store import RedisStore

#: Part of a core that following the store may take.
LIMIT: Final = 0.05

_FLEET: Final = "bench"
#: Decisions measured, and how many are in flight meanwhile.
_DECISIONS: Final = 5000
_IN_FLIGHT: Final = 100
_REGISTER_S: Final = 120.0
_LINK: Final = LinkConfig(from_datacenter="east", to_datacenter="west", capacity_mbit_per_s=10_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """The fleet and its load."""

    workers: int = 1000
    #: Blocks in the prefix cache of each.
    blocks: int = 256
    beats_per_s: float = 50.0
    decisions_per_s: float = 100.0
    seconds: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Processor time, as parts of a core and by its parts."""

    #: Beats that were followed.
    events: int
    #: Of one of them: read, decoded, applied.
    event_us: float
    #: Of one decision's picture, its claim and the end of another one's.
    view_us: float
    #: Of reading everything anew.
    resync_s: float
    #: Parts of a core: for beats, for pictures, and for reading anew, spread over its period.
    following: float
    views: float
    resync: float

    @property
    def total(self) -> float:
        """What is compared with the limit."""
        return self.following + self.views + self.resync


class _Follower:
    """A router's feed and view, and nothing else of it."""

    def __init__(self, url: str) -> None:
        self.store = RedisStore(url, fleet=_FLEET, config=StoreConfig())
        self.tracker = ViewTracker(
            home_datacenter="west",
            links=(_LINK,),
            ttl_s=TTL_S,
            # Beats come every 20 s here: silence is what is longer than that.
            rules=ViewRules(health=HealthRules(silent_s=TTL_S / 2)),
            clock=time.monotonic,
        )
        self.feed = ViewFeed(self.store, self.tracker, time.monotonic)

    def decide(self, count: int) -> None:
        """
        What decisions do to the view, one after the other: a picture, and a claim on it.

        Claims end a while later, so that each picture has four workers and a link to look at anew.
        """
        workers = self.tracker.view().workers
        prefills = [worker for worker in workers if worker.role == "prefill"]
        decodes = [worker for worker in workers if worker.role == "decode"]
        running: deque[Claim] = deque()
        for number in range(count):
            prefill, decode = prefills[number % len(prefills)], decodes[number % len(decodes)]
            claim = Claim(
                prefill_worker=prefill.worker_id,
                prefill_incarnation=prefill.incarnation,
                prefill_tokens=1000,
                decode_worker=decode.worker_id,
                decode_incarnation=decode.incarnation,
                link="east>west" if prefill.datacenter == "east" else None,
                link_bytes=1_000_000,
            )
            self.tracker.view()
            self.tracker.claim(claim)
            running.append(claim)
            if len(running) > _IN_FLIGHT:
                ended = running.popleft()
                self.tracker.prefill_done(ended)
                self.tracker.decode_done(ended)


async def _measure(url: str, setup: Setup) -> Result:
    follower = _Follower(url)
    began_s = time.process_time()
    follower.tracker.apply_snapshot(await follower.store.snapshot())
    follower.tracker.apply_snapshot(await follower.store.snapshot())
    resync_s = (time.process_time() - began_s) / 2
    feed = asyncio.ensure_future(follower.feed.run())
    await follower.feed.is_synced.wait()
    await asyncio.sleep(0.5)

    before, began_s = follower.tracker.beats_total, time.process_time()
    await asyncio.sleep(setup.seconds)
    used_s = time.process_time() - began_s
    events = follower.tracker.beats_total - before
    feed.cancel()
    with suppress(asyncio.CancelledError):
        await feed

    began_s = time.process_time()
    follower.decide(_DECISIONS)
    decision_s = (time.process_time() - began_s) / _DECISIONS
    await follower.store.close()
    return Result(
        events=events,
        event_us=used_s / max(1, events) * 1e6,
        view_us=decision_s * 1e6,
        resync_s=resync_s,
        following=used_s / setup.seconds,
        views=decision_s * setup.decisions_per_s,
        resync=resync_s / RESYNC_S,
    )


def _show(console: Console, setup: Setup, result: Result) -> None:
    table = Table(
        title=f"{setup.workers:,} workers with {setup.blocks} blocks each, "
        f"{setup.beats_per_s:g} heartbeats and {setup.decisions_per_s:g} decisions a second"
    )
    table.add_column("what")
    table.add_column("measured", justify="right")
    table.add_column("limit", justify="right")
    table.add_row("one heartbeat: read, decoded, applied", f"{result.event_us:.0f} us", "")
    table.add_row("one decision: picture, claim, its end", f"{result.view_us:.0f} us", "")
    table.add_row("reading everything anew", f"{result.resync_s:.2f} s", "")
    table.add_row("heartbeats, of a core", f"{result.following:.2%}", "")
    table.add_row("pictures, of a core", f"{result.views:.2%}", "")
    table.add_row(f"reading anew every {RESYNC_S:g} s, of a core", f"{result.resync:.2%}", "")
    table.add_row("together, of a core", f"{result.total:.2%}", f"{LIMIT:.0%}")
    console.print(table)


@click.command()
@click.option("--workers", type=click.IntRange(4, 100_000), default=1000, show_default=True)
@click.option("--blocks", type=click.IntRange(1, 10_000), default=256, show_default=True)
@click.option("--seconds", type=click.FloatRange(0.5, 600), default=10.0, show_default=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path, dir_okay=False))
def main(*, workers: int, blocks: int, seconds: float, json_path: Path | None) -> None:
    """Measure what following the store costs; ends with 1 when it is over the limit."""
    setup = Setup(workers=workers, blocks=blocks, seconds=seconds)
    console = Console(width=max(100, Console().width))
    server = EmbeddedServer()
    server.start()
    try:
        command = ("benchmarks.beats", server.url, _FLEET, workers, blocks, setup.beats_per_s)
        with Child("beats", *map(str, command)) as beats:
            both = cores()
            if both is not None:
                pin(beats.pid, both[1])
            beats.read(_REGISTER_S)
            result = uvloop.run(_measure(server.url, setup))
    finally:
        server.stop()
    _show(console, setup, result)
    if json_path is not None:
        document = {**asdict(setup), **asdict(result), "total": result.total, "limit": LIMIT}
        json_path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    if result.total > LIMIT:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
