from __future__ import annotations

import asyncio
import errno
import gc
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kv_builders import (
    BLOCK,
    HOST,
    ClosedBudget,
    GenerousBudget,
    RawReader,
    TestOwner,
    a_config,
    a_fetch_request,
    a_link,
    a_manifest,
    a_reader,
    a_report,
    a_report_request,
    an_owner,
    eventually,
    fetch,
    fill_all,
    identity_of,
    impatient,
    pieces_of,
    property_settings,
    settle,
)

from workers.kv.frames import FLAG_WAITED, HEADER_BYTES, NO_DIGEST, FrameKind
from workers.kv.pacing import LinkPacer
from workers.kv.requests import (
    PREFACE_BYTES,
    ReleaseRequest,
    RenewRequest,
    pack_request,
)

MIB = 1 << 20


@pytest.fixture
async def owner() -> AsyncIterator[TestOwner]:
    async with an_owner() as owner:
        yield owner


def a_pacer(budget: Any = None, **link: Any) -> LinkPacer:
    return LinkPacer(a_link(**link), budget or GenerousBudget(), floor_share=0.25)


async def chunk_bytes(raw: RawReader, size: int) -> bytes:
    """The payload of the next chunk, put together from its parts."""
    data = b""
    while len(data) < size:
        header, payload = await raw.answer()
        assert (header.kind, header.offset_bytes) == (FrameKind.PART, len(data))
        data += payload
    return data


# --- Answers -----------------------------------------------------------------------------------


async def test_a_fetch_is_accepted_and_its_chunks_come_in_the_order_asked(
    owner: TestOwner,
) -> None:
    pieces, location = owner.filled()
    async with a_reader(owner) as raw:
        await raw.ask(a_fetch_request(location, ranges=((4, 5, 1), (0, 3, 2))))

        accepted, _ = await raw.answer()
        parts = [await raw.answer() for _ in range(3)]

    assert (accepted.kind, accepted.generation) == (FrameKind.ACCEPTED, location.generation)
    assert [header.chunk_index for header, _ in parts] == [4, 0, 2]
    assert [payload for _, payload in parts] == [pieces[index].data for index in (4, 0, 2)]


async def test_every_part_says_what_chunk_it_belongs_to(owner: TestOwner) -> None:
    _, location = owner.filled(a_manifest(0, state_bytes=2 * MIB + 5))
    async with a_reader(owner) as raw:
        await raw.ask(a_fetch_request(location))
        await raw.answer()

        headers = [(await raw.answer())[0] for _ in range(3)]

    assert [(one.offset_bytes, one.payload_bytes) for one in headers] == [
        (0, MIB),
        (MIB, MIB),
        (2 * MIB, 5),
    ]
    assert {one.chunk_bytes for one in headers} == {2 * MIB + 5}
    assert {one.generation for one in headers} == {location.generation}
    assert len({one.digest for one in headers} - {NO_DIGEST}) == 1


async def test_chunks_leave_as_they_are_filled(owner: TestOwner) -> None:
    segment, location = owner.open()
    pieces = pieces_of(segment.manifest)
    async with a_reader(owner) as raw:
        await raw.ask(a_fetch_request(location))
        await raw.answer()

        for piece in pieces:
            segment.fill(piece)
            assert (await raw.answer())[1] == piece.data


async def test_a_part_says_whether_its_chunk_had_to_be_waited_for(owner: TestOwner) -> None:
    segment, location = owner.open()
    pieces = pieces_of(segment.manifest)
    segment.fill(pieces[0])
    async with a_reader(owner) as raw:
        await raw.ask(a_fetch_request(location, ranges=((0, 2, 1),)))
        await raw.answer()
        ready, _ = await raw.answer()
        await settle()
        segment.fill(pieces[1])
        waited, _ = await raw.answer()

    assert (ready.flags & FLAG_WAITED, waited.flags & FLAG_WAITED) == (0, FLAG_WAITED)


async def test_an_owner_that_computes_says_that_it_lives() -> None:
    async with an_owner(config=impatient()) as owner, a_reader(owner) as raw:
        _, location = owner.open()
        await raw.ask(a_fetch_request(location))
        await raw.answer()

        kinds = {(await raw.frame())[0].kind for _ in range(3)}

    assert kinds == {FrameKind.KEEPALIVE}


async def test_an_owner_that_waits_for_budget_says_that_it_lives() -> None:
    pacer = a_pacer(ClosedBudget())
    async with an_owner(config=impatient(), pacers=(pacer,)) as owner, a_reader(owner) as raw:
        _, location = owner.filled()
        await raw.ask(a_fetch_request(location, destination="west"))
        await raw.answer()

        kinds = {(await raw.frame())[0].kind for _ in range(3)}

    assert kinds == {FrameKind.KEEPALIVE}


async def test_a_report_comes_once_the_segment_is_complete(owner: TestOwner) -> None:
    segment, location = owner.open()
    async with a_reader(owner) as raw:
        await raw.ask(a_report_request(location))
        await settle()
        fill_all(segment)

        header, payload = await raw.answer()

    assert header.kind is FrameKind.REPORT
    assert json.loads(payload) == a_report().model_dump(mode="json")


async def test_requests_on_one_connection_are_answered_in_turn(owner: TestOwner) -> None:
    _, location = owner.filled()
    async with a_reader(owner) as raw:
        await raw.ask(a_fetch_request(location, ranges=((0, 1, 1),)))
        await raw.ask(a_report_request(location))
        await raw.ask(a_fetch_request(location, ranges=((6, 7, 1),)))

        kinds = [(await raw.answer())[0].kind for _ in range(5)]

    part = FrameKind.PART
    assert kinds == [FrameKind.ACCEPTED, part, FrameKind.REPORT, FrameKind.ACCEPTED, part]


async def test_a_fetch_of_nothing_is_accepted(owner: TestOwner) -> None:
    _, location = owner.filled()
    async with a_reader(owner) as raw:
        await raw.ask(a_fetch_request(location, ranges=()))
        await raw.ask(a_report_request(location))

        kinds = [(await raw.answer())[0].kind for _ in range(2)]

    assert kinds == [FrameKind.ACCEPTED, FrameKind.REPORT]


async def test_a_renewal_acts_and_is_answered_in_the_middle_of_a_fetch() -> None:
    renewed: list[int] = []
    async with an_owner(on_renew=lambda one: renewed.append(one.generation)) as owner:
        segment, location = owner.open()
        async with a_reader(owner) as raw:
            await raw.ask(a_fetch_request(location))
            await raw.answer()

            await raw.ask(RenewRequest(**identity_of(location)))
            done, _ = await raw.answer()
            segment.fill(pieces_of(segment.manifest)[0])
            part, _ = await raw.answer()

    assert (done.kind, part.kind) == (FrameKind.DONE, FrameKind.PART)
    assert renewed == [segment.generation]


async def test_a_one_way_renewal_is_not_answered(owner: TestOwner) -> None:
    _, location = owner.filled()
    async with a_reader(owner) as raw:
        await raw.ask(RenewRequest(**identity_of(location), wants_answer=False))
        await raw.ask(a_report_request(location))

        header, _ = await raw.answer()

    assert header.kind is FrameKind.REPORT


async def test_a_release_gives_the_bytes_back(owner: TestOwner) -> None:
    _, location = owner.filled()
    async with a_reader(owner) as raw:
        await raw.ask(ReleaseRequest(**identity_of(location)))

        header, _ = await raw.answer()

    assert header.kind is FrameKind.DONE
    assert owner.store.held_bytes == 0


async def test_a_second_release_is_stale(owner: TestOwner) -> None:
    _, location = owner.filled()
    async with a_reader(owner) as raw:
        await raw.ask(ReleaseRequest(**identity_of(location)))
        await raw.answer()
        await raw.ask(ReleaseRequest(**identity_of(location)))

        assert await raw.failure() == "segment_stale"


# --- Refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"incarnation": "i2"},
        {"segment_id": "b" * 32},
        {"generation": 99},
        {"fingerprint": "g"},
        {"scope": "t"},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
@pytest.mark.parametrize("op", ["fetch", "report", "renew", "release"])
async def test_a_request_with_anything_wrong_gets_no_byte(
    owner: TestOwner, op: str, wrong: dict[str, Any]
) -> None:
    _, location = owner.filled()
    requests = {
        "fetch": a_fetch_request(location),
        "report": a_report_request(location),
        "renew": RenewRequest(**identity_of(location)),
        "release": ReleaseRequest(**identity_of(location)),
    }
    async with a_reader(owner) as raw:
        await raw.ask(requests[op].model_copy(update=wrong))

        assert await raw.failure() == "segment_stale"
    assert owner.store.readable_segments == 1


async def test_a_reader_somewhere_unknown_is_refused(owner: TestOwner) -> None:
    _, location = owner.filled()
    async with a_reader(owner) as raw:
        await raw.ask(a_fetch_request(location, destination="mars"))

        assert await raw.failure() == "link_down"


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (lambda _owner, one: one.fail("internal_error", "boom"), "segment_failed"),
        (lambda owner, one: owner.store.abort(one, "cancelled"), "segment_failed"),
        (lambda owner, one: owner.store.release(one), "segment_stale"),
    ],
    ids=["failed", "aborted", "released"],
)
async def test_a_reader_that_waits_learns_how_a_segment_ended(
    owner: TestOwner, end: Any, code: str
) -> None:
    segment, location = owner.open()
    async with a_reader(owner) as raw:
        await raw.ask(a_fetch_request(location))
        await raw.answer()
        await settle()

        end(owner, segment)

        assert await raw.failure() == code


async def test_a_connection_serves_on_after_a_failure(owner: TestOwner) -> None:
    _, location = owner.filled()
    async with a_reader(owner) as raw:
        await raw.ask(a_fetch_request(location, generation=99))
        await raw.failure()
        await raw.ask(a_report_request(location))

        header, _ = await raw.answer()

    assert header.kind is FrameKind.REPORT


async def test_a_lease_that_ends_under_a_waiting_reader_ends_the_fetch() -> None:
    config = impatient(lease_s=0.3, renew_interval_s=0.1)
    async with an_owner(config=config) as owner, a_reader(owner) as raw:
        _, location = owner.open()
        await raw.ask(a_fetch_request(location))
        await raw.answer()

        assert await raw.failure() == "segment_stale"
    assert owner.store.counters.expired_total == 1


# --- Two owners --------------------------------------------------------------------------------


async def test_bytes_of_an_aborted_segment_stay_accounted_while_a_reader_is_sent_to() -> None:
    pacer = a_pacer(ClosedBudget())
    async with an_owner(pacers=(pacer,)) as owner:
        segment, location = owner.open()
        fill_all(segment)
        async with a_reader(owner) as raw:
            await raw.ask(a_fetch_request(location, destination="west"))
            await raw.answer()
            await settle()

            owner.store.abort(segment, "cancelled")
            while_sending = owner.store.held_bytes

        await eventually(lambda: owner.store.held_bytes == 0)
    assert while_sending == segment.total_bytes


async def test_bytes_stay_accounted_while_they_travel() -> None:
    """The reader got nothing yet: all bytes are in the delay line, which refers to them."""
    pacer = a_pacer(emulated_delay_ms=10_000)
    async with an_owner(pacers=(pacer,)) as owner:
        segment, location = owner.open()
        fill_all(segment)
        async with a_reader(owner) as raw:
            await raw.ask(a_fetch_request(location, destination="west"))
            await eventually(lambda: owner.server.counters.payload_bytes_total > 7000 - 2000)

            owner.store.release(segment)
            await settle()
            while_travelling = owner.store.held_bytes

        await eventually(lambda: owner.store.held_bytes == 0)
    assert while_travelling == segment.total_bytes


async def test_a_reader_that_leaves_lets_go_at_once(owner: TestOwner) -> None:
    segment, location = owner.open()
    segment.fill(pieces_of(segment.manifest)[0])
    async with a_reader(owner) as raw:
        await raw.ask(a_fetch_request(location))
        await raw.answer()
        await eventually(lambda: segment._readers == 1)

    await eventually(lambda: segment._readers == 0)
    assert owner.server.counters.broken_total == 0


async def test_a_release_stops_a_large_chunk_in_its_middle() -> None:
    budget = ClosedBudget()
    async with an_owner(pacers=(a_pacer(budget),)) as owner, a_reader(owner) as raw:
        segment, location = owner.open(a_manifest(0, state_bytes=8 * MIB))
        fill_all(segment)
        await raw.ask(a_fetch_request(location, destination="west"))
        await raw.answer()
        await raw.ask(ReleaseRequest(**identity_of(location), wants_answer=False))
        await eventually(lambda: not segment.is_readable)

        budget.is_open = True

        assert await raw.failure() == "segment_stale"
    assert owner.server.counters.payload_bytes_total == 0


async def test_a_reader_that_does_not_read_is_cut_off_and_lets_go() -> None:
    config = impatient(segment_bytes_max=256 * MIB)
    async with an_owner(config=config) as owner:
        segment, location = owner.open(a_manifest(0, state_bytes=64 * MIB))
        fill_all(segment)
        async with a_reader(owner) as raw:
            # Buffers of reader and kernel take a few MiB, then nothing moves any more.
            raw._reader._transport.pause_reading()
            await raw.ask(a_fetch_request(location))

            await eventually(lambda: owner.server.counters.stalled_total == 1)
            await eventually(lambda: segment._readers == 0)
    assert owner.server.counters.payload_bytes_total < 64 * MIB


# --- Pacing ------------------------------------------------------------------------------------


async def test_bytes_for_another_datacenter_are_paced_headers_included() -> None:
    pacer = a_pacer()
    async with an_owner(pacers=(pacer,)) as owner:
        pieces, location = owner.filled()

        await fetch(location, destination="west")

    payload = sum(len(piece.data) for piece in pieces)
    assert pacer.counters.bytes_total == payload + len(pieces) * HEADER_BYTES


async def test_bytes_inside_a_datacenter_are_not_paced() -> None:
    pacer = a_pacer(ClosedBudget())
    async with an_owner(pacers=(pacer,)) as owner:
        _, location = owner.filled()

        await fetch(location, destination="east")

    assert pacer.counters.bytes_total == 0


async def test_a_paced_chunk_leaves_in_turns() -> None:
    pacer = a_pacer(capacity_mbit_per_s=100)
    async with an_owner(pacers=(pacer,)) as owner, a_reader(owner) as raw:
        _, location = owner.filled(a_manifest(0, state_bytes=250_000))
        await raw.ask(a_fetch_request(location, destination="west"))
        await raw.answer()

        sizes = [(await raw.answer())[0].payload_bytes for _ in range(3)]

    turn = pacer.slice_bytes - HEADER_BYTES
    assert sizes == [turn, turn, 250_000 - 2 * turn]


async def test_another_transfer_goes_on_while_one_waits_for_its_budget() -> None:
    async with an_owner(pacers=(a_pacer(ClosedBudget()),)) as owner, a_reader(owner) as raw:
        _, waiting = owner.filled()
        await raw.ask(a_fetch_request(waiting, destination="west"))
        await raw.answer()
        pieces, location = owner.filled()

        received = await fetch(location, destination="east")

    assert len(received.pieces) == len(pieces)


async def test_an_emulated_delay_is_on_all_that_leaves_but_once() -> None:
    pacer = a_pacer(emulated_delay_ms=50)
    async with an_owner(pacers=(pacer,)) as owner:
        _, location = owner.filled(a_manifest(400 * BLOCK))

        received = await fetch(location, destination="west", config=a_config(connections=1))

    assert received.result is not None
    assert received.result.rtt_s >= 0.05
    # 401 chunks would take twenty seconds if each had the delay to itself.
    assert 0.05 <= received.result.transfer.finished_s < 10


# --- Hostile peers -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\0" * 100,
        b"PFKV\2\0\0\0" + bytes(4),
        b"PFKV\1\0\0\0" + b"\xff" * 4,
        b"PFKV\1\0\0\0" + (65537).to_bytes(4, "little"),
        b"PFKV\1\0\0\0" + (3).to_bytes(4, "little") + b"{}!",
        b"PFKV\1\0\0\0" + (9).to_bytes(4, "little") + b'{"op": 1}',
        b"PFKV\1\0\0\0" + bytes(4),
        b"PFKV\1\0\0\0" + (60_000).to_bytes(4, "little") + b"[" * 60_000,
    ],
    ids=[
        "http",
        "zeros",
        "another version",
        "4 GiB of request",
        "a byte too many",
        "no json",
        "no request",
        "empty",
        "deep json",
    ],
)
async def test_what_is_not_the_protocol_is_refused_and_closed(
    owner: TestOwner, data: bytes
) -> None:
    async with a_reader(owner) as raw:
        await raw.send(data)

        answer = await raw.rest()

    assert b"bad_request" in answer or answer == b""
    await eventually(lambda: owner.server.connections == 0)
    assert owner.server.counters.garbage_total == 1


@pytest.mark.parametrize(
    "ranges", [((7, 8, 1),), ((0, 7, 1), (0, 1, 1))], ids=["beyond the plan", "more than all"]
)
async def test_a_fetch_of_chunks_that_are_not_there_is_refused_and_closed(
    owner: TestOwner, ranges: Any
) -> None:
    _, location = owner.filled()
    async with a_reader(owner) as raw:
        await raw.ask(a_fetch_request(location, ranges=ranges))

        assert await raw.failure() == "bad_request"
        assert await raw.rest() == b""


async def test_more_requests_ahead_than_allowed_are_refused_and_closed(
    owner: TestOwner,
) -> None:
    _, location = owner.open()
    async with a_reader(owner) as raw:
        await raw.send(pack_request(a_report_request(location)) * 6)

        assert await raw.failure() == "bad_request"


@pytest.mark.parametrize(
    "begin",
    [b"", b"P", b"PFKV\1\0\0\0" + (500).to_bytes(4, "little") + b"{"],
    ids=["nothing", "half a preface", "half a request"],
)
async def test_a_peer_that_falls_silent_before_its_request_is_complete_is_closed(
    begin: bytes,
) -> None:
    async with an_owner(config=impatient(stall_timeout_s=60)) as owner, a_reader(owner) as raw:
        await raw.send(begin)

        assert await raw.rest() == b""
    assert owner.server.counters.stalled_total == 1


async def test_a_byte_now_and_then_does_not_keep_a_request_open() -> None:
    """The peer sends whenever the loop turns, so no single byte is late; the whole is."""
    async with an_owner(config=impatient(stall_timeout_s=60)) as owner, a_reader(owner) as raw:
        await raw.send(b"PFKV\1\0\0\0" + (65_000).to_bytes(4, "little"))

        async with asyncio.timeout(5):
            while owner.server.connections or not owner.server.counters.connections_total:
                if not raw._writer.is_closing():
                    raw._writer.write(b"{")
                for _ in range(50):
                    await asyncio.sleep(0)

    assert owner.server.counters.stalled_total == 1


async def test_a_reader_that_stays_without_asking_is_closed_after_a_lease() -> None:
    async with (
        an_owner(config=impatient(lease_s=0.3, renew_interval_s=0.1)) as owner,
        a_reader(owner) as raw,
    ):
        _, location = owner.filled()
        await raw.ask(a_report_request(location))
        await raw.answer()

        assert await raw.rest() == b""
    assert owner.server.counters.stalled_total == 1


async def test_one_reader_too_many_is_refused_at_once() -> None:
    async with an_owner(connections_max=1) as owner, a_reader(owner):
        await eventually(lambda: owner.server.connections == 1)
        async with a_reader(owner) as second:
            assert await second.failure() == "worker_refused"
            assert await second.rest() == b""
        assert owner.server.connections == 1
    assert owner.server.counters.refused_total == 1


async def test_hostile_peers_do_not_touch_a_transfer(owner: TestOwner) -> None:
    segment, location = owner.open()
    pieces = pieces_of(segment.manifest)
    fetching = asyncio.ensure_future(fetch(location))
    for number in range(20):
        async with a_reader(owner) as raw:
            await raw.send(bytes([number]) * 50)
            if number % 7 == 0 and number < len(pieces) * 7:
                segment.fill(pieces[number // 7])
            await raw.rest()
    for piece in pieces[3:]:
        segment.fill(piece)
    segment.complete(a_report())

    received = await fetching

    assert {piece.data for piece in received.pieces} == {piece.data for piece in pieces}


@settings(property_settings, max_examples=30)
@given(st.lists(st.binary(max_size=200), max_size=5))
@example([b"PFKV\1\0\0\0", b"\x05\0\0\0", b"null\0"])
def test_arbitrary_bytes_end_a_connection_and_nothing_else(pieces: list[bytes]) -> None:
    async def main() -> None:
        bugs: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, bug: bugs.append(bug))
        async with an_owner() as owner:
            expected, location = owner.filled()
            async with a_reader(owner) as raw:
                for piece in pieces:
                    await raw.send(piece)
                    await asyncio.sleep(0)
                raw._writer.write_eof()
                await raw.rest()
            received = await fetch(location)
            assert len(received.pieces) == len(expected)
        assert not bugs

    asyncio.run(main())


# --- Life of the server ------------------------------------------------------------------------


async def test_closing_cuts_readers_and_leaves_nothing(owner: TestOwner) -> None:
    segment, location = owner.open()
    async with a_reader(owner) as raw:
        await raw.ask(a_fetch_request(location))
        await raw.answer()

        await owner.server.close()

        assert await raw.rest() == b""
    assert owner.server.connections == 0
    assert segment._readers == 0


async def test_a_reader_accepted_in_the_moment_of_closing_is_closed_too(
    owner: TestOwner,
) -> None:
    async with a_reader(owner) as raw:
        while not owner.server.connections:
            owner.server._accept()
        await owner.server.close()

        assert await raw.rest() == b""
    gc.collect()  # a socket that nobody closed would warn now


async def test_closing_twice_is_closing_once(owner: TestOwner) -> None:
    await owner.server.close()
    await owner.server.close()


async def test_a_server_that_is_not_started_has_no_port(owner: TestOwner) -> None:
    await owner.server.close()

    with pytest.raises(RuntimeError, match="not started"):
        owner.server.port  # noqa: B018 - the property is what is tested


async def test_without_file_descriptors_the_server_pauses_and_goes_on(
    owner: TestOwner,
) -> None:
    class Exhausted:
        def accept(self) -> None:
            raise OSError(errno.EMFILE, "too many open files")

        def __getattr__(self, name: str) -> Any:
            return getattr(listener, name)

    listener = owner.server._listener
    assert isinstance(listener, socket.socket)
    owner.server._listener = Exhausted()
    owner.server._accept()
    was_pausing = owner.server._accept_again is not None
    owner.server._listener = listener
    owner.server._resume()

    async with a_reader(owner) as raw:
        _, location = owner.filled()
        await raw.ask(a_report_request(location))
        header, _ = await raw.answer()

    assert was_pausing
    assert header.kind is FrameKind.REPORT


async def test_a_bug_in_one_connection_is_told_and_ends_that_connection_only(
    owner: TestOwner, monkeypatch: pytest.MonkeyPatch
) -> None:
    bugs: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, bug: bugs.append(bug))
    _, location = owner.filled()

    def broken(_request: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(owner.store, "find", broken)
        async with a_reader(owner) as raw:
            await raw.ask(a_report_request(location))
            assert await raw.rest() == b""
    received = await fetch(location)

    assert len(received.pieces) == 7
    assert [bug["message"] for bug in bugs] == ["a KV connection ended by a bug"]


async def test_a_name_can_be_listened_on(owner: TestOwner) -> None:
    await owner.server.close()

    owner.server.start("localhost")
    _, location = owner.filled()
    received = await fetch(location.model_copy(update={"host": "localhost"}))

    assert len(received.pieces) == 7


async def test_a_location_says_all_a_reader_needs(owner: TestOwner) -> None:
    segment, _ = owner.open()

    location = owner.server.location(segment, host=HOST)

    assert (location.worker_id, location.datacenter, location.incarnation) == (
        "east/p1",
        "east",
        "i1",
    )
    assert (location.segment_id, location.generation) == (
        segment.segment_id,
        segment.generation,
    )
    assert (location.host, location.port) == (HOST, owner.server.port)
    assert location.manifest == segment.manifest


async def test_a_server_says_how_many_readers_it_has(owner: TestOwner) -> None:
    async with a_reader(owner):
        await eventually(lambda: owner.server.connections == 1)

        assert repr(owner.server) == (
            "<KvServer 1 connections, <SegmentStore 0 known, 0 bytes held>>"
        )


def test_a_preface_is_twelve_bytes() -> None:
    assert PREFACE_BYTES == 12
