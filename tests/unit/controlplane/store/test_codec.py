"""Decoding: garbage is absent and counted."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from redis.exceptions import ResponseError
from store_builders import a_beat, a_location, full

from controlplane.store.api import WorkerLeft, WorkerSeen
from controlplane.store.codec import Decoder

BEAT = a_beat().model_dump_json().encode()
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
        (lambda d: d.location(None), None, 0),
        (lambda d: d.location(b"{}"), None, 1),
        (lambda d: d.location(a_location().model_dump_json().encode()), a_location(), 0),
        (lambda d: d.entries([[b"1-0", [b"a", b"b"]], None, [b"2-0", None]]), [("1-0", {b"a": b"b"})], 2),
        (lambda d: d.field({b"a": b"b"}, b"a"), b"b", 0),
        (lambda d: d.field({}, b"a"), None, 1),
        (lambda d: d.event({b"beat": BEAT}), WorkerSeen(a_beat()), 0),
        (lambda d: d.event({b"left": b"p1", b"incarnation": b"one"}), WorkerLeft("p1", "one"), 0),
        (lambda d: d.event({b"beat": b"{"}), None, 1),
        (lambda d: d.event({b"beat": BEAT, b"inventory": b'{"removed":["xyz"]}'}), None, 1),
        (lambda d: d.event({b"left": b"\xff", b"incarnation": b""}), None, 1),
        (lambda d: d.event({}), None, 1),
    ],
)  # fmt: skip
def test_what_is_no_value_is_absent_and_counted(
    decode: Callable[[Decoder], object], expected: object, errors: int
) -> None:
    decoder = Decoder()

    assert decode(decoder) == expected
    assert decoder.errors_total == errors
