"""Reading the store: what routers and the admin API see, garbage left out."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Final

from redis.exceptions import ResponseError

from controlplane.store.api import (
    Cursor,
    StoredDecision,
    StoreEvent,
    StoreSnapshot,
    WorkerLoad,
)
from controlplane.store.calls import Calls
from controlplane.store.codec import FIRST, Decoder, Entry
from controlplane.store.keys import LIFE_MAX_MS, Keys
from controlplane.store.scripts import Argument, Command
from controlplane.wire import KvLocation, WorkerBeat

#: Events of one answer; a router that fell behind gets the rest with its next call.
EVENTS_BATCH: Final = 512


async def snapshot(calls: Calls, keys: Keys, decoder: Decoder) -> StoreSnapshot:
    """See `RedisStore.snapshot`."""
    newest, clock, workers, links = await calls.read(
        "snapshot",
        (
            ("XREVRANGE", keys.events, "+", "-", "COUNT", 1),
            ("TIME",),
            ("ZRANGE", keys.workers, 0, -1, "WITHSCORES"),
            ("ZRANGE", keys.links, 0, -1, "WITHSCORES"),
        ),
    )
    entries = decoder.entries(newest)
    now_ms = decoder.milliseconds(clock)
    worker_ids = decoder.live_members(workers, now_ms)
    link_ids = decoder.live_members(links, now_ms)

    #: Scores of reservations that are neither over nor later than any may end.
    live = (f"({now_ms}", f"({now_ms + LIFE_MAX_MS}")
    commands: list[Command] = []
    for worker_id in worker_ids:
        commands += [
            ("HGET", keys.worker(worker_id), "beat"),
            ("HGETALL", keys.inventory(worker_id)),
            ("ZRANGEBYSCORE", keys.reserved(worker_id), *live),
        ]
    commands += [("ZRANGEBYSCORE", keys.link(link_id), *live) for link_id in link_ids]
    replies = iter(await calls.read("snapshot", commands) if commands else ())

    beats: list[WorkerBeat] = []
    loads: dict[str, WorkerLoad] = {}
    for worker_id in worker_ids:
        beat = decoder.beat(next(replies), worker_id, next(replies))
        amounts = decoder.amounts(next(replies))
        if beat is not None:
            beats.append(beat)
            loads[worker_id] = WorkerLoad(
                reserved_requests=len(amounts), reserved_tokens=sum(amounts)
            )
        # Inventories are large; requests must not wait until all of them are decoded.
        await asyncio.sleep(0)
    sizes = {link_id: decoder.amounts(next(replies)) for link_id in link_ids}
    return StoreSnapshot(
        beats=tuple(beats),
        loads=loads,
        link_reserved_bytes={link_id: sum(each) for link_id, each in sizes.items() if each},
        cursor=entries[0][0] if entries else FIRST,
    )


async def events(
    calls: Calls, keys: Keys, decoder: Decoder, cursor: Cursor, *, wait_s: float
) -> tuple[Cursor, Sequence[StoreEvent]]:
    """See `RedisStore.events`."""
    if calls.breaker.is_open:
        # This call would be the probe, and must not wait for news before it tells the answer.
        wait_s = 0.0
    block: tuple[Argument, ...] = ("BLOCK", math.ceil(wait_s * 1000)) if wait_s > 0 else ()
    reply = await calls.wait(
        "events",
        ("XREAD", "COUNT", EVENTS_BATCH, *block, "STREAMS", keys.events, cursor),
        wait_s=wait_s,
    )
    if isinstance(reply, ResponseError):
        # A key of a wrong type answers at once and for ever; nobody could wait on it.
        decoder.errors_total += 1
        await calls.ask_one("events", ("DEL", keys.events))
        return cursor, ()
    entries: list[Entry] = []
    for stream in decoder.items(reply):
        if isinstance(stream, list):
            entries += decoder.entries(stream[-1])
    found = [decoder.event(fields) for _, fields in entries]
    return (
        entries[-1][0] if entries else cursor,
        [event for event in found if event is not None],
    )


async def segments(
    calls: Calls, keys: Keys, decoder: Decoder, *, count: int
) -> Sequence[KvLocation]:
    """See `RedisStore.segments`."""
    if count <= 0:
        return ()
    (reply,) = await calls.ask("segments", (("ZREVRANGE", keys.segments, 0, count - 1),))
    texts = [decoder.text(name) for name in decoder.items(reply)]
    names = [name for name in texts if name is not None]
    if not names:
        return ()
    found = await calls.ask_one("segments", ("MGET", *map(keys.segment, names)))
    raws = decoder.items(found)
    locations = [decoder.location(raw, name) for raw, name in zip(raws, names, strict=True)]
    return [location for location in locations if location is not None]


async def traffic(calls: Calls, keys: Keys, decoder: Decoder, *, count: int) -> Sequence[bytes]:
    """See `RedisStore.traffic`."""
    (reply,) = await calls.ask("traffic", (("ZREVRANGE", keys.traffic, 0, count - 1),))
    texts = [decoder.text(name) for name in decoder.items(reply)]
    names = [name for name in texts if name is not None]
    if not names:
        return ()
    found = await calls.ask_one("traffic", ("MGET", *map(keys.traffic_of, names)))
    bodies = [decoder.json(raw) for raw in decoder.items(found)]
    return [body for body in bodies if body is not None]


async def decisions(
    calls: Calls, keys: Keys, decoder: Decoder, *, count: int, before: Cursor | None
) -> Sequence[StoredDecision]:
    """See `RedisStore.decisions`."""
    if count <= 0:
        return ()
    newest = "+" if before is None else f"({before}"
    (reply,) = await calls.ask(
        "decisions", (("XREVRANGE", keys.decisions, newest, "-", "COUNT", count),)
    )
    return [
        StoredDecision(cursor=entry_id, record=record)
        for entry_id, fields in decoder.entries(reply)
        if (record := decoder.field(fields, b"record")) is not None
    ]


async def decision(
    calls: Calls, keys: Keys, decoder: Decoder, decision_id: str
) -> StoredDecision | None:
    """See `RedisStore.decision`."""
    (reply,) = await calls.ask("decision", (("HGET", keys.decision_index, decision_id),))
    cursor = decoder.cursor(reply)
    if cursor is None:
        return None
    (found,) = await calls.ask("decision", (("XRANGE", keys.decisions, cursor, cursor),))
    for entry_id, fields in decoder.entries(found):
        if decoder.field(fields, b"id") == decision_id.encode():
            record = decoder.field(fields, b"record")
            if record is not None:
                return StoredDecision(cursor=entry_id, record=record)
    return None
