from __future__ import annotations

import asyncio
from contextlib import AbstractContextManager
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from kv_builders import (
    ManualClock,
    a_config,
    a_manifest,
    a_report,
    fill_all,
    pieces_of,
    property_settings,
    settle,
)

from controlplane.config import KvConfig
from controlplane.errors import SegmentFailed, SegmentStale, WorkerRefused
from controlplane.wire import KvManifest
from workers.kv import segments as segments_module
from workers.kv.frames import chunk_hasher
from workers.kv.requests import ReportRequest
from workers.kv.segment import Segment
from workers.kv.segments import SegmentStore

MIB = 1 << 20


def a_store(clock: ManualClock | None = None, **overrides: Any) -> SegmentStore:
    values = {"incarnation": "i1", "config": a_config(), "clock": clock or ManualClock()}
    return SegmentStore(**(values | overrides))


def a_request(segment: Segment, **overrides: Any) -> ReportRequest:
    values = {
        "incarnation": "i1",
        "segment_id": segment.segment_id,
        "generation": segment.generation,
        "fingerprint": segment.manifest.fingerprint,
        "scope": segment.manifest.scope,
    }
    return ReportRequest(**(values | overrides))


def a_large_manifest(size_bytes: int = MIB) -> KvManifest:
    return a_manifest(0, state_bytes=size_bytes)


# --- Ids ---------------------------------------------------------------------------------------


def test_every_segment_has_a_new_id_and_a_higher_generation() -> None:
    store = a_store()

    first, second = store.open(a_manifest()), store.open(a_manifest())

    assert first.segment_id != second.segment_id
    assert first.generation < second.generation


# --- Filling -----------------------------------------------------------------------------------


def test_a_filled_segment_hands_out_its_chunks_with_their_checksums() -> None:
    segment = a_store().open(a_manifest())
    pieces = fill_all(segment)

    chunk = asyncio.run(segment.chunk(2))

    hasher = chunk_hasher(segment.segment_id, segment.generation, 2)
    hasher.update(pieces[2].data)
    assert (chunk.data, chunk.digest) == (pieces[2].data, hasher.digest())


@pytest.mark.parametrize(
    "position", [1, 6], ids=["an attention block out of order", "the state too early"]
)
def test_a_piece_out_of_order_is_refused(position: int) -> None:
    segment = a_store().open(a_manifest())

    with pytest.raises(ValueError, match="expected"):
        segment.fill(pieces_of(segment.manifest)[position])


def test_a_piece_of_a_wrong_size_is_refused() -> None:
    segment = a_store().open(a_manifest())
    other = pieces_of(a_manifest(bytes_per_token=65))

    with pytest.raises(ValueError, match="expected"):
        segment.fill(other[0])


def test_a_piece_too_many_is_refused() -> None:
    segment = a_store().open(a_manifest())
    pieces = fill_all(segment)

    with pytest.raises(ValueError, match="already"):
        segment.fill(pieces[-1])


def test_a_segment_with_chunks_missing_cannot_be_completed() -> None:
    segment = a_store().open(a_manifest())
    segment.fill(pieces_of(segment.manifest)[0])

    with pytest.raises(ValueError, match="1 of 7 chunks"):
        segment.complete(a_report())


async def test_a_reader_waits_for_a_chunk_until_it_is_filled() -> None:
    segment = a_store().open(a_manifest())
    pieces = pieces_of(segment.manifest)
    waiting = asyncio.ensure_future(segment.chunk(1))

    segment.fill(pieces[0])
    await settle()
    was_done = waiting.done()
    segment.fill(pieces[1])

    assert not was_done
    assert (await waiting).data == pieces[1].data


async def test_a_report_is_there_once_the_segment_is_complete() -> None:
    segment = a_store().open(a_manifest())
    waiting = asyncio.ensure_future(segment.report())
    await settle()

    fill_all(segment)

    assert await waiting == a_report()


@pytest.mark.parametrize("what", ["chunk", "report"])
@pytest.mark.parametrize(
    ("end", "error"),
    [
        (lambda _store, segment: segment.fail("internal_error", "boom"), SegmentFailed),
        (lambda store, segment: store.abort(segment, "cancelled"), SegmentFailed),
        (lambda store, segment: store.release(segment), SegmentStale),
    ],
    ids=["failed", "aborted", "released"],
)
async def test_whoever_waits_learns_how_a_segment_ended(
    what: str, end: Any, error: type[Exception]
) -> None:
    store = a_store()
    segment = store.open(a_manifest())
    waiting = asyncio.ensure_future(segment.chunk(0) if what == "chunk" else segment.report())
    await settle()

    end(store, segment)

    with pytest.raises(error):
        await waiting


def test_a_writer_that_comes_late_is_told_to_stop_and_its_bytes_are_not_kept() -> None:
    store = a_store()
    segment = store.open(a_manifest())
    store.release(segment)

    with pytest.raises(SegmentStale):
        segment.fill(pieces_of(segment.manifest)[0])

    assert segment.filled_chunks == 0


def test_completing_a_segment_that_is_gone_only_lets_go() -> None:
    store = a_store()
    segment = store.open(a_manifest())
    store.release(segment)

    segment.complete(a_report())

    assert segment.state == "released"
    assert store.held_bytes == 0


def test_a_failure_after_the_end_changes_nothing() -> None:
    segment = a_store().open(a_manifest())
    fill_all(segment)

    segment.fail("internal_error", "too late")

    assert segment.state == "complete"


# --- One door for readers ----------------------------------------------------------------------


def test_a_request_finds_its_segment() -> None:
    store = a_store()
    segment = store.open(a_manifest())

    assert store.find(a_request(segment)) is segment


@pytest.mark.parametrize(
    "wrong",
    [
        {"incarnation": "i2"},
        {"segment_id": "b" * 32},
        {"generation": 2},
        {"generation": 0},
        {"fingerprint": "g"},
        {"scope": "t"},
    ],
    ids=["incarnation", "segment", "later generation", "older generation", "fingerprint", "scope"],
)
def test_a_request_with_anything_wrong_is_stale(wrong: dict[str, Any]) -> None:
    store = a_store()
    segment = store.open(a_manifest())

    with pytest.raises(SegmentStale):
        store.find(a_request(segment, **wrong))

    assert store.counters.stale_refused_total == 1


def test_a_request_for_a_failed_segment_says_why() -> None:
    store = a_store()
    segment = store.open(a_manifest())
    segment.fail("deadline_exceeded", "no time left")

    with pytest.raises(SegmentFailed, match="deadline_exceeded: no time left"):
        store.find(a_request(segment))


# --- Leases ------------------------------------------------------------------------------------


def test_a_lease_that_nobody_renews_ends_and_gives_the_bytes_back() -> None:
    clock = ManualClock()
    store = a_store(clock)
    segment = store.open(a_manifest())
    fill_all(segment)
    store.find(a_request(segment))

    clock.advance(30)
    dropped = store.sweep()

    assert (dropped, store.held_bytes, segment.state) == (1, 0, "expired")
    assert store.counters.expired_total == 1


def test_a_lease_is_good_until_its_last_moment() -> None:
    clock = ManualClock()
    store = a_store(clock)
    segment = store.open(a_manifest())
    store.find(a_request(segment))

    clock.advance(29.999)

    assert store.sweep() == 0
    assert store.find(a_request(segment)) is segment


@pytest.mark.parametrize(("waited_s", "dropped"), [(4.999, 0), (5, 1)])
def test_a_segment_without_a_reader_has_a_short_lease(waited_s: float, dropped: int) -> None:
    """Its router died before it told a decode worker."""
    clock = ManualClock()
    store = a_store(clock)
    store.open(a_manifest())

    clock.advance(waited_s)

    assert store.sweep() == dropped


def test_the_short_lease_is_never_longer_than_the_normal_one() -> None:
    clock = ManualClock()
    store = a_store(clock, config=KvConfig(lease_s=2, renew_interval_s=1))
    store.open(a_manifest())

    clock.advance(2)

    assert store.sweep() == 1


def test_the_lease_is_cut_when_the_last_connection_of_a_reader_has_left() -> None:
    """A decode worker that died needs no pause; one that comes again has the time to."""
    clock = ManualClock()
    store = a_store(clock)
    segment = store.open(a_manifest())
    for _ in range(2):
        store.find(a_request(segment))
        store.arrive(segment)

    store.leave(segment)
    clock.advance(20)
    kept = store.sweep()
    store.leave(segment)
    clock.advance(4.9)
    store.find(a_request(segment))
    clock.advance(29)
    renewed = store.sweep()
    clock.advance(1)

    assert (kept, renewed, store.sweep()) == (0, 0, 1)


def test_a_reader_that_leaves_makes_no_lease_longer() -> None:
    """It may have let its lease run down."""
    clock = ManualClock()
    store = a_store(clock)
    segment = store.open(a_manifest())
    store.find(a_request(segment))
    store.arrive(segment)

    clock.advance(28)
    store.leave(segment)
    clock.advance(2)

    assert store.sweep() == 1


def test_a_lease_that_is_over_is_refused_even_before_a_sweep() -> None:
    clock = ManualClock()
    store = a_store(clock)
    segment = store.open(a_manifest())

    clock.advance(5)

    with pytest.raises(SegmentStale, match="lease"):
        store.find(a_request(segment))
    assert store.readable_segments == 0


def test_each_request_of_a_reader_begins_the_lease_anew() -> None:
    clock = ManualClock()
    store = a_store(clock)
    segment = store.open(a_manifest())
    store.find(a_request(segment))

    clock.advance(29)
    store.find(a_request(segment))
    clock.advance(29)

    assert store.sweep() == 0


def test_a_sweep_looks_at_all_leases_whatever_their_order() -> None:
    clock = ManualClock()
    store = a_store(clock)
    kept, swept = store.open(a_manifest()), store.open(a_manifest())
    clock.advance(4)
    store.renew(kept)

    clock.advance(15)
    store.sweep()

    assert (kept.is_readable, swept.is_readable) == (True, False)


def test_renewing_a_segment_that_is_gone_does_nothing() -> None:
    renewed: list[Segment] = []
    store = a_store(on_renew=renewed.append)
    segment = store.open(a_manifest())
    store.release(segment)

    store.renew(segment)

    assert not renewed


def test_a_failed_segment_is_remembered_until_its_lease_is_over() -> None:
    clock = ManualClock()
    store = a_store(clock)
    segment = store.open(a_manifest())
    segment.fail("internal_error", "boom")
    clock.advance(30)

    store.sweep()

    with pytest.raises(SegmentStale):
        store.find(a_request(segment))


# --- Two owners --------------------------------------------------------------------------------


def test_bytes_stay_accounted_until_the_reader_lets_go() -> None:
    store = a_store()
    segment = store.open(a_manifest())
    fill_all(segment)

    with segment.reading():
        store.release(segment)
        while_reading = (store.held_bytes, segment.filled_chunks)

    assert while_reading == (segment.total_bytes, 7)
    assert (store.held_bytes, segment.filled_chunks) == (0, 0)


def test_bytes_stay_accounted_until_the_writer_lets_go() -> None:
    store = a_store()
    segment = store.open(a_manifest())
    segment.fill(pieces_of(segment.manifest)[0])

    store.abort(segment, "the client left")
    while_writing = store.held_bytes
    segment.fail("internal_error", "stopped")

    assert while_writing == segment.total_bytes
    assert store.held_bytes == 0


def test_bytes_stay_accounted_until_both_let_go() -> None:
    store = a_store()
    segment = store.open(a_manifest())

    with segment.reading():
        store.release(segment)
        segment.complete(a_report())
        after_the_writer = store.held_bytes

    assert after_the_writer == segment.total_bytes
    assert store.held_bytes == 0


# --- Bounds ------------------------------------------------------------------------------------


def test_a_segment_that_would_not_fit_is_refused() -> None:
    store = a_store(config=a_config(segment_bytes_max=MIB))
    store.open(a_large_manifest(MIB - 10))

    with pytest.raises(WorkerRefused, match="does not fit"):
        store.open(a_large_manifest(11))

    assert store.counters.refused_total == 1


def test_a_segment_that_just_fits_is_taken() -> None:
    store = a_store(config=a_config(segment_bytes_max=MIB))

    store.open(a_large_manifest(MIB))

    assert store.held_bytes == MIB


def test_bytes_that_a_reader_still_sends_leave_no_room() -> None:
    store = a_store(config=a_config(segment_bytes_max=MIB))
    segment = store.open(a_large_manifest())
    fill_all(segment)

    with segment.reading():
        store.release(segment)
        with pytest.raises(WorkerRefused):
            store.open(a_large_manifest(1))


def test_too_many_small_segments_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments_module, "SEGMENTS_MAX", 2)
    store = a_store()
    store.open(a_manifest()).fail("internal_error", "boom")
    store.open(a_manifest())

    with pytest.raises(WorkerRefused):
        store.open(a_manifest())


# --- Hooks -------------------------------------------------------------------------------------


def test_each_segment_is_dropped_once_with_its_cause() -> None:
    clock = ManualClock()
    dropped: list[tuple[int, str]] = []
    store = a_store(clock, on_drop=lambda one, cause: dropped.append((one.generation, cause)))
    released, failed, expired = (store.open(a_manifest()) for _ in range(3))
    store.release(released)
    released.complete(a_report())
    failed.fail("internal_error", "boom")

    clock.advance(30)
    store.sweep()
    expired.complete(a_report())

    assert dropped == [
        (released.generation, "released"),
        (failed.generation, "failed"),
        (expired.generation, "expired"),
    ]


def test_a_renewal_is_told() -> None:
    renewed: list[Segment] = []
    store = a_store(on_renew=renewed.append)
    segment = store.open(a_manifest())

    store.renew(segment)

    assert renewed == [segment]


def test_a_hook_may_let_the_writer_go() -> None:
    store = a_store(on_drop=lambda segment, _cause: segment.fail("internal_error", "stopped"))
    segment = store.open(a_manifest())

    store.release(segment)

    assert store.held_bytes == 0


def test_releasing_or_aborting_twice_is_doing_it_once() -> None:
    dropped: list[str] = []
    store = a_store(on_drop=lambda _segment, cause: dropped.append(cause))
    released, aborted = store.open(a_manifest()), store.open(a_manifest())

    for _ in range(2):
        store.release(released)
        released.drop("expired")
        store.abort(aborted, "cancelled")

    assert dropped == ["released", "failed"]
    assert (released.state, aborted.state) == ("released", "failed")


def test_what_a_segment_and_its_store_say_of_themselves_is_counts() -> None:
    store = a_store()
    segment = store.open(a_manifest())

    said = f"{segment!r} {store!r}"

    assert said == (
        "<Segment generation 1, filling: 0 of 7 chunks, 0 readers> "
        "<SegmentStore 1 known, 6312 bytes held>"
    )
    assert segment.segment_id not in said


def test_integrity_notices_a_wrong_account() -> None:
    store = a_store()
    store.open(a_manifest())
    store._held_bytes -= 1

    with pytest.raises(AssertionError):
        store.check_integrity()


# --- Anything in any order ---------------------------------------------------------------------


class SegmentMachine(RuleBasedStateMachine):
    """Whatever writers, readers, clients and time do, bytes are accounted while they are held."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.dropped: list[int] = []
        self.store = a_store(
            self.clock,
            config=a_config(segment_bytes_max=MIB),
            on_drop=lambda segment, _cause: self.dropped.append(segment.generation),
        )
        self.segments: list[Segment] = []
        self.writing: set[int] = set()
        self.reading: dict[int, list[AbstractContextManager[None]]] = {}

    @rule(size_bytes=st.integers(0, MIB // 2))
    def open(self, size_bytes: int) -> None:
        try:
            segment = self.store.open(a_large_manifest(size_bytes))
        except WorkerRefused:
            assert self.model_bytes() + size_bytes > MIB
            return
        self.segments.append(segment)
        self.writing.add(segment.generation)

    @precondition(lambda self: self.segments)
    @rule(data=st.data(), action=st.sampled_from(["fill", "fail", "abort", "release", "renew"]))
    def act(self, data: st.DataObject, action: str) -> None:
        segment = data.draw(st.sampled_from(self.segments))
        if action == "fill":
            if segment.generation not in self.writing:
                return
            if segment.is_readable:
                fill_all(segment)
            else:
                segment.complete(a_report())
            self.writing.discard(segment.generation)
        elif action == "fail":
            segment.fail("internal_error", "boom")
            self.writing.discard(segment.generation)
        elif action == "abort":
            self.store.abort(segment, "cancelled")
        elif action == "release":
            self.store.release(segment)
        else:
            self.store.renew(segment)

    @precondition(lambda self: self.segments)
    @rule(data=st.data())
    def begin_reading(self, data: st.DataObject) -> None:
        segment = data.draw(st.sampled_from(self.segments))
        try:
            self.store.find(a_request(segment))
        except (SegmentStale, SegmentFailed):
            return
        reading = segment.reading()
        reading.__enter__()
        self.reading.setdefault(segment.generation, []).append(reading)

    @precondition(lambda self: self.reading)
    @rule(data=st.data())
    def end_reading(self, data: st.DataObject) -> None:
        generation = data.draw(st.sampled_from(sorted(self.reading)))
        self.reading[generation].pop().__exit__(None, None, None)
        if not self.reading[generation]:
            del self.reading[generation]

    @rule(seconds=st.sampled_from([1.0, 15.0, 31.0]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.store.sweep()

    def model_bytes(self) -> int:
        return sum(
            segment.total_bytes
            for segment in self.segments
            if segment.is_readable
            or segment.generation in self.writing
            or segment.generation in self.reading
        )

    @invariant()
    def bytes_are_accounted_while_anybody_holds_them(self) -> None:
        assert self.store.held_bytes == self.model_bytes()
        self.store.check_integrity()

    @invariant()
    def each_segment_is_dropped_at_most_once(self) -> None:
        gone = [segment.generation for segment in self.segments if not segment.is_readable]
        assert sorted(self.dropped) == gone


TestSegmentMachine = SegmentMachine.TestCase
TestSegmentMachine.settings = property_settings
