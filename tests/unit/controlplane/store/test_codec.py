"""Decoding: garbage is absent and counted."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from redis.exceptions import ResponseError
from store_builders import a_beat, a_location, full

from controlplane.store.api import Blamed, Document, Published, WorkerLeft, WorkerSeen
from controlplane.store.codec import Decoder
from controlplane.wire_types import INVENTORY_BLOCKS_MAX

BEAT = a_beat().model_dump_json().encode()
LOCATION = a_location().model_dump_json().encode()
WRONG_TYPE = ResponseError("WRONGTYPE")


@pytest.mark.parametrize(
    ("decode", "expected", "errors"),
    [
        (lambda d: d.items(None), [], 0),
        (lambda d: d.items(WRONG_TYPE), [], 1),
        (lambda d: d.text(b"ok"), "ok", 0),
        (lambda d: d.text(None), None, 0),
        (lambda d: d.text(b"\xff"), None, 1),
        (lambda d: d.text(WRONG_TYPE), None, 1),
        (lambda d: d.cursor(b"1-0"), "1-0", 0),
        (lambda d: d.cursor(None), None, 0),
        (lambda d: d.cursor(b"x"), None, 1),
        (lambda d: d.numbers([7, 2]), [7], 2),
        (lambda d: d.amounts([b"p:5:a", b"?"]), [5], 1),
        (lambda d: d.live_members([b"b", b"20", b"a", b"30", b"c", b"10"], 10), ["a", "b"], 0),
        (lambda d: d.live_members([b"\xff", b"inf"], 10), [], 1),
        (lambda d: d.beat(None, "p1", None), None, 0),
        (lambda d: d.beat(b"{", "p1", None), None, 1),
        (lambda d: d.beat(BEAT, "p2", None), None, 1),
        (lambda d: d.beat(BEAT, "p1", [b"aa", b"a"]), a_beat(inventory=full(aa="a")), 0),
        (lambda d: d.beat(BEAT, "p1", [b"aa", b"?", b"g", b"a"]), a_beat(inventory=full()), 2),
        (lambda d: d.location(None, "s1"), None, 0),
        (lambda d: d.location(b"{}", "s1"), None, 1),
        (lambda d: d.location(LOCATION, "s1"), a_location(), 0),
        (lambda d: d.location(LOCATION, "s2"), None, 1),
        (lambda d: d.entries([[b"1-0", [b"a", b"b"]], None, [b"2-0", None]]), [("1-0", {b"a": b"b"})], 2),
        (lambda d: d.field({b"a": b"b"}, b"a"), b"b", 0),
        (lambda d: d.field({}, b"a"), None, 1),
        (lambda d: d.event({b"beat": BEAT}), WorkerSeen(a_beat()), 0),
        (lambda d: d.event({b"left": b"p1", b"incarnation": b"one"}), WorkerLeft("p1", "one"), 0),
        (lambda d: d.event({b"beat": b"{"}), None, 1),
        (lambda d: d.event({b"beat": BEAT, b"inventory": b'{"removed":["xyz"]}'}), None, 1),
        (lambda d: d.event({b"left": b"\xff", b"incarnation": b""}), None, 1),
        (lambda d: d.event({}), None, 1),
        (lambda d: d.event({b"blamed": b"f", b"worker": b"p1", b"incarnation": b"one"}), Blamed("f", "p1", "one"), 0),
        (lambda d: d.event({b"blamed": b"f", b"worker": b"p1"}), None, 1),
        (lambda d: d.event({b"published": b"plan", b"version": b"3"}), Published("plan", 3), 0),
        (lambda d: d.event({b"published": b"plan", b"version": b"0"}), None, 1),
        (lambda d: d.event({b"published": b"plan", b"version": b"nan"}), None, 1),
        (lambda d: d.event({b"published": b"weather", b"version": b"3"}), None, 1),
        (lambda d: d.event({b"moved": b"p1", b"to": b"mars"}), None, 1),
        (lambda d: d.document([b"{}", 4, 0]), Document(version=4, body=b"{}"), 0),
        (lambda d: d.document([None, 0, 0]), None, 0),
        (lambda d: d.document([b"{", 4, 0]), None, 1),
        (lambda d: d.document([None, 0, 1]), None, 1),
    ],
)  # fmt: skip
def test_what_is_no_value_is_absent_and_counted(
    decode: Callable[[Decoder], object], expected: object, errors: int
) -> None:
    decoder = Decoder()

    assert decode(decoder) == expected
    assert decoder.errors_total == errors


def beat_with(**changes: Any) -> bytes:
    """A beat as another version of a worker, or a broken one, might write it."""
    values: dict[str, Any] = json.loads(BEAT)
    for path, value in changes.items():
        *parents, name = path.split("__")
        place = values
        for parent in parents:
            place = place[parent]
        place[name] = value
    return json.dumps(values).encode()


def test_a_beat_of_an_old_worker_lacks_what_came_later_and_is_understood() -> None:
    values = json.loads(BEAT)
    for name in ("version", "can_resume", "age_s", "is_draining", "profile", "load", "links"):
        del values[name]
    decoder = Decoder()

    beat = decoder.beat(json.dumps(values).encode(), "p1", None)

    assert beat == a_beat(inventory=full())
    assert beat is not None
    assert not beat.can_resume
    assert beat.age_s is None
    assert decoder.errors_total == 0


def test_a_beat_of_a_newer_worker_may_have_fields_nobody_knows_yet() -> None:
    assert Decoder().beat(beat_with(mood="good"), "p1", None) == a_beat(inventory=full())


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 2},
        {"version": "1"},
        {"age_s": -1},
        {"age_s": 1e300},
        {"age_s": float("nan")},
        {"age_s": float("inf")},
        {"age_s": "yesterday"},
        {"sequence": 0},
        {"sequence": 2**60},
        {"requests_max": 10**400},
        {"load__queue_tokens": 10**400},
        {"load__queue_tokens": -1},
        {"load__kv_bytes": 2**63},
        {"profile__prefill_s_per_token": 1e300},
        {"profile__decode_step_s": float("inf")},
        {"role": "admiral"},
        {"url": "file:///etc/passwd"},
        {"worker_id": "p 1"},
        {"links": [{"from_datacenter": "a", "to_datacenter": "b"}] * 5000},
    ],
    ids=str,
)
def test_a_beat_that_cannot_be_true_is_absent_and_counted(changes: dict[str, Any]) -> None:
    decoder = Decoder()
    raw = beat_with(**changes)

    assert decoder.beat(raw, "p1", None) is None
    assert decoder.event({b"beat": raw}) is None
    assert decoder.errors_total == 2


def test_more_blocks_than_an_inventory_may_have_do_not_cost_the_worker() -> None:
    decoder = Decoder()
    names = [b"%08x" % number for number in range(INVENTORY_BLOCKS_MAX + 3)]
    flat = [part for name in names for part in (name, b"a")]

    beat = decoder.beat(BEAT, "p1", [*flat, b"ab" * 40, b"a"])

    assert beat is not None
    assert len(beat.inventory.stored) == INVENTORY_BLOCKS_MAX
    assert decoder.errors_total == 4
