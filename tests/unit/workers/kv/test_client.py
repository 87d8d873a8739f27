from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kv_builders import (
    BLOCK,
    GenerousBudget,
    ManualClock,
    Peer,
    Received,
    Run,
    a_bad_owner,
    a_config,
    a_link,
    a_location,
    a_manifest,
    a_proxy,
    a_report,
    a_silent_port,
    an_owner,
    eventually,
    fetch,
    fill_all,
    impatient,
    pieces_of,
    property_settings,
    settle,
)

from controlplane.errors import (
    ChunkCorrupt,
    LinkDown,
    LinkStalled,
    MalformedRequest,
    SegmentFailed,
    SegmentStale,
    TransferError,
)
from controlplane.wire import KvGroup, KvLocation
from workers.engine import KvPiece
from workers.kv.client import release_segment, renew_segment
from workers.kv.frames import (
    HEADER_BYTES,
    FrameHeader,
    FrameKind,
    chunk_hasher,
    pack_control,
    pack_failure,
    pack_header,
)
from workers.kv.layout import chunk_plan, manifest_bytes
from workers.kv.owner import Owner
from workers.kv.pacing import LinkPacer
from workers.kv.requests import FetchRequest, ReleaseRequest, ReportRequest

MIB = 1 << 20
#: What an owner of the segment of `a_location` says.
ACCEPTED = pack_control(FrameKind.ACCEPTED, 7)
REPORT = pack_control(FrameKind.REPORT, 7, a_report().model_dump_json().encode())
KEEPALIVE = pack_control(FrameKind.KEEPALIVE, 0)


def a_part(piece: KvPiece, index: int, **overrides: Any) -> bytes:
    """A whole chunk of the segment of `a_location` in one part."""
    hasher = chunk_hasher("a" * 32, 7, index)
    hasher.update(piece.data)
    values = {
        "kind": FrameKind.PART,
        "chunk_index": index,
        "chunk_bytes": len(piece.data),
        "generation": 7,
        "payload_bytes": len(piece.data),
        "digest": hasher.digest(),
    }
    return pack_header(FrameHeader(**(values | overrides))) + piece.data


def state_only() -> Any:
    return a_manifest(0, state_bytes=100)


# --- What arrives ------------------------------------------------------------------------------


def test_every_piece_arrives_once_and_its_bytes_are_the_owners(run: Run) -> None:
    async def main() -> None:
        async with an_owner() as owner:
            pieces, location = owner.filled(a_manifest(500, bytes_per_token=9000))
            received = await fetch(location)

        assert received.in_order == pieces
        assert received.result is not None
        assert received.result.transfer.bytes == manifest_bytes(location.manifest)
        assert received.result.transfer.chunks == len(pieces)
        assert received.result.transfer.refetched_chunks == 0
        assert received.result.prefill == a_report()

    run(main())


def test_a_large_state_arrives_whole(run: Run) -> None:
    async def main() -> None:
        async with an_owner() as owner:
            pieces, location = owner.filled(a_manifest(0, state_bytes=9 * MIB + 7))
            received = await fetch(location)

        assert received.pieces == pieces

    run(main())


def test_a_reader_that_comes_before_the_first_chunk_gets_them_as_they_come(run: Run) -> None:
    async def main() -> None:
        async with an_owner() as owner:
            segment, location = owner.open()
            received = Received()
            fetching = asyncio.ensure_future(fetch(location, received=received))
            pieces = pieces_of(segment.manifest)
            for count, piece in enumerate(pieces, start=1):
                await settle()
                segment.fill(piece)
                await eventually(lambda count=count: len(received.pieces) == count)
            was_done = fetching.done()
            segment.complete(a_report())
            await fetching

        assert received.pieces == pieces
        assert not was_done

    run(main())


async def test_a_fully_held_prefix_costs_the_state_and_nothing_else() -> None:
    async with an_owner() as owner:
        pieces, location = owner.filled()

        received = await fetch(location, held_tokens=location.manifest.token_count)

    assert received.pieces == pieces[-1:]
    assert received.result is not None
    transfer = received.result.transfer
    assert (transfer.bytes, transfer.chunks, transfer.held_tokens) == (1000, 1, 83)
    assert owner.server.counters.connections_total == 1


async def test_a_held_prefix_is_not_sent() -> None:
    async with an_owner() as owner:
        pieces, location = owner.filled()

        received = await fetch(location, held_tokens=2 * BLOCK)

    assert received.in_order == pieces[2:]
    assert owner.server.counters.payload_bytes_total == sum(len(one.data) for one in pieces[2:])


async def test_a_segment_without_any_chunk_brings_its_report() -> None:
    groups = (KvGroup(name="attention", bytes_per_token=4, fixed_bytes=0),)
    async with an_owner() as owner:
        _, location = owner.filled(a_manifest(2 * BLOCK, groups=groups))

        received = await fetch(location, held_tokens=2 * BLOCK)

    assert received.pieces == []
    assert received.result is not None
    assert received.result.prefill == a_report()
    assert received.result.transfer.bytes == 0


async def test_chunks_without_bytes_arrive() -> None:
    async with an_owner() as owner:
        pieces, location = owner.filled(a_manifest(bytes_per_token=0, state_bytes=0))

        received = await fetch(location)

    assert received.in_order == pieces


@pytest.mark.parametrize(
    ("connections", "token_count", "expected"),
    [(1, 100, 1), (2, 100, 2), (16, 2 * BLOCK, 3), (4, 0, 1)],
    ids=["one", "two", "as many as chunks", "state alone"],
)
async def test_a_fetch_opens_no_more_connections_than_it_has_chunks(
    connections: int, token_count: int, expected: int
) -> None:
    async with an_owner() as owner:
        _, location = owner.filled(a_manifest(token_count))

        await fetch(location, config=a_config(connections=connections))

    assert owner.server.counters.connections_total == expected


async def test_early_chunks_leave_first_on_all_connections() -> None:
    asked: list[tuple[Any, ...]] = []

    async def handler(peer: Peer) -> None:
        request = await peer.request()
        assert isinstance(request, FetchRequest)
        asked.append(request.ranges)
        await peer.silence()

    async with a_bad_owner(handler) as port:
        config = impatient(connections=3)
        with pytest.raises(LinkStalled):
            await fetch(a_location(port), config=config)

    assert sorted(asked) == [((0, 7, 3),), ((1, 5, 3),), ((2, 6, 3),)]


@settings(property_settings, max_examples=25)
@given(st.integers(0, 120), st.integers(0, 8), st.integers(1, 5))
def test_any_segment_arrives_over_any_number_of_connections(
    token_count: int, held_blocks: int, connections: int
) -> None:
    async def main() -> None:
        async with an_owner() as owner:
            pieces, location = owner.filled(a_manifest(token_count))
            held = min(held_blocks * BLOCK, token_count)
            received = await fetch(
                location, held_tokens=held, config=a_config(connections=connections)
            )
        expected = [one for one in pieces if one.group == "state" or one.token_end > held]
        assert received.in_order == expected

    asyncio.run(main())


# --- What is measured --------------------------------------------------------------------------


async def test_times_count_from_the_arrival_of_the_job() -> None:
    clock = ManualClock()
    async with an_owner() as owner:
        segment, location = owner.open()
        fetching = asyncio.ensure_future(fetch(location, arrived_s=clock() - 2, clock=clock))
        await eventually(lambda: segment._readers > 0)
        await settle()
        clock.advance(3)
        pieces = pieces_of(segment.manifest)
        segment.fill(pieces[0])
        await eventually(lambda: owner.server.counters.chunks_total == 1)
        await settle()
        clock.advance(4)
        for piece in pieces[1:]:
            segment.fill(piece)
        segment.complete(a_report())
        received = await fetching

    assert received.result is not None
    assert received.result.transfer.first_byte_s == 5
    assert received.result.transfer.finished_s == 9


async def test_waiting_for_the_prefill_does_not_count_as_slow() -> None:
    clock = ManualClock()
    async with an_owner() as owner:
        segment, location = owner.open()
        fetching = asyncio.ensure_future(fetch(location, arrived_s=clock(), clock=clock))
        await eventually(lambda: segment._readers > 0)
        await settle()
        clock.advance(3600)
        fill_all(segment)
        received = await fetching

    assert received.result is not None
    assert received.result.goodput_bps == 0


async def test_the_round_trip_is_from_request_to_first_answer() -> None:
    clock = ManualClock()

    async def handler(peer: Peer) -> None:
        await peer.request()
        clock.advance(0.25)
        await peer.send(ACCEPTED, a_part(pieces[0], 0), REPORT)
        await peer.silence()

    pieces = pieces_of(state_only())
    async with a_bad_owner(handler) as port:
        received = await fetch(a_location(port, state_only()), arrived_s=clock(), clock=clock)

    assert received.result is not None
    assert received.result.rtt_s == 0.25


# --- The lease ---------------------------------------------------------------------------------


async def test_a_finished_fetch_releases_its_segment() -> None:
    dropped: list[str] = []
    async with an_owner(on_drop=lambda _, cause: dropped.append(cause)) as owner:
        _, location = owner.filled()

        await fetch(location)
        await eventually(lambda: bool(dropped))

        assert owner.store.held_bytes == 0
    assert dropped == ["released"]


async def test_the_report_costs_no_round_trip_after_the_last_chunk() -> None:
    """It is asked for together with the chunks."""
    asked: list[type] = []

    async def handler(peer: Peer) -> None:
        asked.extend([type(await peer.request()), type(await peer.request())])
        await peer.send(ACCEPTED, a_part(pieces[0], 0), REPORT)
        asked.append(type(await peer.request()))

    pieces = pieces_of(state_only())
    async with a_bad_owner(handler) as port:
        await fetch(a_location(port, state_only()))
        await eventually(lambda: len(asked) == 3)

    assert asked == [FetchRequest, ReportRequest, ReleaseRequest]


async def test_a_lease_is_renewed_while_the_reader_works() -> None:
    renewed: list[int] = []
    config = a_config(renew_interval_s=0.02)
    async with an_owner(on_renew=lambda one: renewed.append(one.generation)) as owner:
        segment, location = owner.open()
        fetching = asyncio.ensure_future(fetch(location, config=config))

        await eventually(lambda: len(renewed) >= 3)
        fill_all(segment)
        await fetching

    assert set(renewed) == {segment.generation}


async def test_a_job_that_waits_can_renew() -> None:
    renewed: list[int] = []
    async with an_owner(on_renew=lambda one: renewed.append(one.generation)) as owner:
        _, location = owner.filled()

        await renew_segment(location, config=a_config())

    assert renewed == [location.generation]


async def test_renewing_what_is_gone_is_stale() -> None:
    async with an_owner() as owner:
        _, location = owner.filled()
        stale = location.model_copy(update={"incarnation": "i0"})

        with pytest.raises(SegmentStale):
            await renew_segment(stale, config=a_config())


async def test_renewing_at_something_else_is_a_link_that_is_down() -> None:
    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n".ljust(HEADER_BYTES))

    async with a_bad_owner(handler) as port:
        with pytest.raises(LinkDown, match="protocol"):
            await renew_segment(a_location(port), config=a_config())


async def test_a_cancelled_request_can_release_its_segment() -> None:
    async with an_owner() as owner:
        segment, location = owner.open()

        was_released = await release_segment(location, config=a_config())

        assert was_released
        assert segment.state == "released"


@pytest.mark.parametrize("is_gone", [True, False], ids=["owner is gone", "owner is silent"])
async def test_releasing_is_best_effort_and_bounded(is_gone: bool) -> None:  # noqa: FBT001
    async with a_bad_owner(Peer.silence) as port:
        target = a_silent_port() if is_gone else port

        assert not await release_segment(a_location(target), config=impatient())


# --- Corruption --------------------------------------------------------------------------------


def flip(position: int, *, connections: range) -> Any:
    """Flip a bit at a position in what these connections bring."""

    def tamper(number: int, offset: int, data: bytearray) -> None:
        if number in connections and offset <= position < offset + len(data):
            data[position - offset] ^= 1

    return tamper


FIRST_PAYLOAD = 2 * HEADER_BYTES


async def test_a_corrupt_chunk_is_refused_and_fetched_once_more_over_a_new_connection() -> None:
    async with (
        an_owner() as owner,
        a_proxy(owner.server.port, flip(FIRST_PAYLOAD + 5, connections=range(1))) as port,
    ):
        pieces, location = owner.filled()

        received = await fetch(
            location.model_copy(update={"port": port}), config=a_config(connections=1)
        )

    assert received.in_order == pieces
    assert received.result is not None
    assert received.result.transfer.refetched_chunks == 1
    assert received.result.transfer.bytes == manifest_bytes(location.manifest) + 1024
    assert owner.server.counters.connections_total == 2


async def test_a_chunk_that_is_corrupt_twice_ends_the_fetch_and_is_never_handed_on() -> None:
    received = Received()
    async with (
        an_owner() as owner,
        a_proxy(owner.server.port, flip(FIRST_PAYLOAD, connections=range(99))) as port,
    ):
        pieces, location = owner.filled()

        with pytest.raises(ChunkCorrupt, match="chunk 0"):
            await fetch(
                location.model_copy(update={"port": port}),
                received=received,
                config=a_config(connections=1),
            )

    assert pieces[0] not in received.pieces
    assert all(piece in pieces for piece in received.pieces)


async def test_memory_that_changed_at_the_owner_is_refused() -> None:
    received = Received()
    async with an_owner() as owner:
        segment, location = owner.open()
        pieces = fill_all(segment)
        chunks = segment._chunks
        chunks[1], chunks[2] = chunks[2], chunks[1]

        with pytest.raises(ChunkCorrupt):
            await fetch(location, received=received)

    assert all(piece in pieces for piece in received.pieces)


@settings(property_settings, max_examples=40)
@given(
    st.integers(0, 8 * HEADER_BYTES + 6500),
    st.integers(1, 255),
    st.integers(1, 2),
)
def test_no_changed_byte_ever_reaches_the_engine(
    position: int, mask: int, connections: int
) -> None:
    """Wherever one byte changes, the fetch is right or ends with a typed error."""

    def tamper(number: int, offset: int, data: bytearray) -> None:
        if number == 0 and offset <= position < offset + len(data):
            data[position - offset] ^= mask

    async def main() -> None:
        received = Received()
        config = impatient(connections=connections)
        async with (
            an_owner() as owner,
            a_proxy(owner.server.port, tamper) as port,
        ):
            pieces, location = owner.filled()
            target = location.model_copy(update={"port": port})
            try:
                await fetch(target, received=received, config=config)
            except TransferError:
                pass
            else:
                assert received.in_order == pieces
            assert all(piece in pieces for piece in received.pieces)

    asyncio.run(main())


@pytest.mark.parametrize(
    "wrong",
    [
        {"chunk_index": 1},
        {"chunk_bytes": 101, "payload_bytes": 100},
        {"chunk_bytes": 99, "payload_bytes": 99},
        {"offset_bytes": 0, "payload_bytes": 101, "chunk_bytes": 101},
    ],
    ids=["another index", "larger", "smaller", "more than announced"],
)
async def test_a_chunk_that_is_not_the_one_asked_for_is_refused_twice_and_given_up(
    wrong: dict[str, Any],
) -> None:
    pieces = pieces_of(state_only())
    connections: list[int] = []

    async def handler(peer: Peer) -> None:
        connections.append(peer.number)
        await peer.request()
        await peer.send(ACCEPTED, a_part(pieces[0], 0, **wrong), REPORT)
        await peer.silence()

    async with a_bad_owner(handler) as port:
        with pytest.raises(ChunkCorrupt, match="also when asked for again"):
            await fetch(a_location(port, state_only()))

    assert connections == [0, 1]


async def test_parts_that_disagree_about_the_checksum_are_refused() -> None:
    piece = pieces_of(state_only())[0]

    async def handler(peer: Peer) -> None:
        await peer.request()
        first = a_part(piece, 0, payload_bytes=50)[: HEADER_BYTES + 50]
        second = a_part(piece, 0, offset_bytes=50, payload_bytes=50, digest=bytes(16))
        await peer.send(ACCEPTED, first, second[: HEADER_BYTES + 50])
        await peer.silence()

    async with a_bad_owner(handler) as port:
        with pytest.raises(ChunkCorrupt, match="different checksums"):
            await fetch(a_location(port, state_only()))


async def test_another_generation_is_stale_at_once() -> None:
    piece = pieces_of(state_only())[0]
    connections: list[int] = []

    async def handler(peer: Peer) -> None:
        connections.append(peer.number)
        await peer.request()
        await peer.send(ACCEPTED, a_part(piece, 0, generation=8))
        await peer.silence()

    async with a_bad_owner(handler) as port:
        with pytest.raises(SegmentStale, match="generation 8, not 7"):
            await fetch(a_location(port, state_only()))

    assert connections == [0]


@pytest.mark.parametrize(
    "answer",
    [
        b"\0" * 200,
        b"SSH-2.0-OpenSSH_9.6\r\n".ljust(100),
        REPORT,
        ACCEPTED + REPORT,
        ACCEPTED + pack_control(FrameKind.FAILURE, 7, b"{"),
        ACCEPTED + a_part(pieces_of(state_only())[0], 0) + ACCEPTED,
        ACCEPTED + a_part(pieces_of(state_only())[0], 0) + pack_control(FrameKind.REPORT, 7, b"{}"),
    ],
    ids=[
        "zeros",
        "ssh",
        "a report too early",
        "a report instead of a chunk",
        "a failure that is none",
        "no report",
        "a report that is none",
    ],
)
async def test_an_owner_that_talks_nonsense_is_given_up_after_a_second_try(
    answer: bytes,
) -> None:
    connections: list[int] = []

    async def handler(peer: Peer) -> None:
        connections.append(peer.number)
        await peer.request()
        await peer.send(answer)
        await peer.silence()

    async with a_bad_owner(handler) as port:
        with pytest.raises(ChunkCorrupt):
            await fetch(a_location(port, state_only()))

    assert connections == [0, 1]


async def test_keep_alives_between_parts_are_fine() -> None:
    piece = pieces_of(state_only())[0]

    async def handler(peer: Peer) -> None:
        await peer.request()
        first = a_part(piece, 0, payload_bytes=50)[: HEADER_BYTES + 50]
        second = a_part(piece, 0, offset_bytes=50, payload_bytes=50)[:HEADER_BYTES]
        await peer.send(
            ACCEPTED, KEEPALIVE, first, KEEPALIVE, second, piece.data[50:], KEEPALIVE, REPORT
        )
        await peer.silence()

    async with a_bad_owner(handler) as port:
        received = await fetch(a_location(port, state_only()))

    assert received.pieces == [piece]


async def test_a_report_that_was_garbled_is_asked_for_again() -> None:
    piece = pieces_of(state_only())[0]
    asked: list[Any] = []

    async def handler(peer: Peer) -> None:
        asked.append((await peer.request()).ranges)
        if peer.number == 0:
            await peer.send(ACCEPTED, a_part(piece, 0), b"x" * HEADER_BYTES)
        else:
            await peer.send(ACCEPTED, REPORT)
        await peer.silence()

    async with a_bad_owner(handler) as port:
        received = await fetch(a_location(port, state_only()))

    assert received.pieces == [piece]
    assert asked == [((0, 1, 1),), ()]


async def test_more_corrupt_chunks_than_a_request_can_name_are_given_up() -> None:
    """Pairs of wrong chunks with pairs of right ones between: a range for each pair."""
    manifest = a_manifest(5000, block_tokens=1, bytes_per_token=1, state_bytes=1)
    answer = ACCEPTED
    for index, piece in enumerate(pieces_of(manifest)):
        is_wrong = index % 4 in (0, 1)
        answer += a_part(piece, index, **({"digest": bytes(16)} if is_wrong else {}))
    answer += REPORT

    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer)
        await peer.silence()

    async with a_bad_owner(handler) as port:
        with pytest.raises(ChunkCorrupt, match="too many to ask again"):
            await fetch(a_location(port, manifest), config=a_config(connections=1))


# --- Refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [{"incarnation": "i0"}, {"segment_id": "b" * 32}, {"generation": 99}],
    ids=lambda wrong: next(iter(wrong)),
)
async def test_a_location_that_is_not_true_any_more_is_stale(wrong: dict[str, Any]) -> None:
    async with an_owner() as owner:
        _, location = owner.filled()

        with pytest.raises(SegmentStale):
            await fetch(location.model_copy(update=wrong))


@pytest.mark.parametrize("field", ["fingerprint", "scope"])
async def test_kv_of_another_fingerprint_or_scope_is_not_served(field: str) -> None:
    async with an_owner() as owner:
        _, location = owner.filled()
        manifest = location.manifest.model_copy(update={field: "other"})

        with pytest.raises(SegmentStale):
            await fetch(location.model_copy(update={"manifest": manifest}))


async def test_a_prefill_that_fails_in_the_middle_fails_the_fetch() -> None:
    received = Received()
    async with an_owner() as owner:
        segment, location = owner.open()
        fetching = asyncio.ensure_future(fetch(location, received=received))
        segment.fill(pieces_of(segment.manifest)[0])
        await eventually(lambda: len(received.pieces) == 1)

        segment.fail("internal_error", "boom")

        with pytest.raises(SegmentFailed, match="internal_error: boom"):
            await fetching


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("segment_stale", SegmentStale),
        ("segment_failed", SegmentFailed),
        ("worker_refused", LinkDown),
        ("from_the_future", LinkDown),
    ],
)
async def test_a_refusal_becomes_the_error_of_its_code(code: str, error: type[Exception]) -> None:
    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.send(pack_failure(code, "because"))
        await peer.silence()

    async with a_bad_owner(handler) as port:
        with pytest.raises(error, match="because"):
            await fetch(a_location(port))


async def test_an_owner_without_a_link_to_the_reader_is_down() -> None:
    async with an_owner() as owner:
        _, location = owner.filled()

        with pytest.raises(LinkDown, match="no link"):
            await fetch(location, destination="mars")


async def test_a_manifest_that_cannot_be_is_refused_before_connecting() -> None:
    manifest = a_manifest(10**12)

    with pytest.raises(MalformedRequest) as caught:
        await fetch(a_location(1, manifest))

    assert caught.value.param == "location.manifest"


# --- Links that break --------------------------------------------------------------------------


def test_an_owner_that_is_gone_is_a_link_that_is_down(run: Run) -> None:
    async def main() -> None:
        with pytest.raises(LinkDown, match="no connection"):
            await fetch(a_location(a_silent_port()))

    run(main())


async def test_an_error_does_not_name_the_address() -> None:
    port = a_silent_port()

    with pytest.raises(LinkDown) as caught:
        await fetch(a_location(port))

    assert str(port) not in str(caught.value)
    assert "127.0.0.1" not in str(caught.value)


async def test_a_name_without_an_address_is_a_link_that_is_down() -> None:
    with pytest.raises(LinkDown):
        await fetch(a_location(1, host="no-such-host.invalid"))


async def test_a_connection_that_does_not_come_about_in_time_is_a_link_that_is_down(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def never(*_: object) -> None:
        await asyncio.get_running_loop().create_future()

    monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", never, raising=False)

    # Renewals, which have no connection yet, do not mind.
    with pytest.raises(LinkDown, match=r"within 0\.2 s"):
        await fetch(a_location(1), config=impatient(renew_interval_s=0.02))


@pytest.mark.parametrize("is_reset", [True, False], ids=["reset", "closed"])
def test_an_owner_that_dies_in_the_middle_is_noticed_at_once(
    run: Run,
    is_reset: bool,  # noqa: FBT001
) -> None:
    piece = pieces_of(a_manifest())[0]

    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.send(ACCEPTED, a_part(piece, 0)[: HEADER_BYTES + 10])
        if is_reset:
            peer.reset()

    async def main() -> None:
        async with a_bad_owner(handler) as port:
            # Silence would be borne for a minute, this must not be.
            patient = a_config(connections=1, stall_timeout_s=60)
            async with asyncio.timeout(20):
                with pytest.raises(LinkDown):
                    await fetch(a_location(port), config=patient)

    run(main())


@pytest.mark.parametrize(
    "said",
    [b"", ACCEPTED, ACCEPTED + KEEPALIVE, ACCEPTED + a_part(pieces_of(a_manifest())[0], 0)[:99]],
    ids=["from the start", "after the acceptance", "after a keep-alive", "in a chunk"],
)
def test_an_owner_that_falls_silent_is_stalled(run: Run, said: bytes) -> None:
    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.send(said)
        await peer.silence()

    async def main() -> None:
        async with a_bad_owner(handler) as port:
            with pytest.raises(LinkStalled):
                await fetch(a_location(port), config=impatient(connections=1))

    run(main())


async def test_a_break_of_the_connection_that_carries_the_lease_is_noticed() -> None:
    """It has nothing more to bring, but without it the lease of the other ones would end."""
    pieces = pieces_of(a_manifest(BLOCK))

    async def handler(peer: Peer) -> None:
        request = await peer.request()
        if request.ranges == ((0, 1, 1),):
            await peer.send(ACCEPTED, a_part(pieces[0], 0), REPORT)
            await peer.request()
            await eventually(lambda: len(received.pieces) == 1)
            peer.reset()
        else:
            await peer.send(ACCEPTED)
            await peer.silence()

    received = Received()
    async with a_bad_owner(handler) as port:
        with pytest.raises(LinkDown):
            await fetch(
                a_location(port, a_manifest(BLOCK)),
                received=received,
                config=a_config(renew_interval_s=0.02),
            )


async def test_an_owner_that_does_not_read_is_stalled(monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(*_: object) -> None:
        raise TimeoutError

    monkeypatch.setattr("workers.kv.stream.Stream.write", full)
    async with a_bad_owner(Peer.silence) as port:
        with pytest.raises(LinkStalled):
            await fetch(a_location(port), config=impatient())


async def test_keep_alives_carry_a_reader_over_a_long_prefill() -> None:
    """The prefill takes four times as long as silence is borne."""
    loop = asyncio.get_running_loop()
    async with an_owner(config=impatient()) as owner:
        segment, location = owner.open()
        fetching = asyncio.ensure_future(fetch(location, config=impatient()))
        end_s = loop.time() + 0.8
        await eventually(lambda: loop.time() >= end_s)
        pieces = fill_all(segment)

        received = await fetching

    assert received.in_order == pieces


# --- Ends from the caller's side ---------------------------------------------------------------


def test_what_the_engine_raises_comes_out_as_it_is_and_ends_the_fetch(run: Run) -> None:
    def refuse(_: KvPiece) -> None:
        raise ValueError("not expected")

    async def main() -> None:
        async with an_owner() as owner:
            _, location = owner.filled()
            with pytest.raises(ValueError, match="not expected"):
                await fetch(location, on_piece=refuse)
            await eventually(lambda: owner.server.connections == 0)

    run(main())


def test_cancelling_at_any_await_closes_all_and_leaves_nothing(run: Run) -> None:
    async def main() -> None:
        async with an_owner() as owner:
            for turns in range(40):
                segment, location = owner.open()
                pieces = pieces_of(segment.manifest)
                segment.fill(pieces[0])
                fetching = asyncio.ensure_future(fetch(location))
                for _ in range(turns):
                    await asyncio.sleep(0)
                fetching.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await fetching
                await eventually(lambda: owner.server.connections == 0)
                assert segment._readers == 0
                assert asyncio.all_tasks() == {asyncio.current_task(), owner.server._sweeper}
                segment.fail("internal_error", "over")

    run(main())


async def test_a_cancelled_fetch_releases_the_segment() -> None:
    """Its router has gone: the prefill need not go on for nobody."""
    async with an_owner() as owner:
        segment, location = owner.open()
        fetching = asyncio.ensure_future(fetch(location))
        await eventually(lambda: segment._readers == 2)

        fetching.cancel()
        await asyncio.wait([fetching])

        await eventually(lambda: segment.state == "released")


async def test_a_reader_that_dies_leaves_the_segment_to_a_short_lease() -> None:
    """Its connections close without a word."""
    async with an_owner(config=a_config(unread_lease_s=0.05)) as owner:
        segment, location = owner.open()
        dying = Stripe(location)
        await dying.begin()
        await eventually(lambda: segment._readers == 1)
        lease_s = segment.lease_ends_s - time.monotonic()

        dying.close()

        await eventually(lambda: segment.state == "expired")
    assert lease_s > 20


class Stripe:
    """One connection of a reader."""

    def __init__(self, location: KvLocation) -> None:
        self.location = location

    async def begin(self) -> None:
        """Ask for everything."""
        self.owner = await Owner.connect(self.location, a_config())
        await self.owner.ask_fetch(chunk_plan(self.location.manifest), destination="east")
        await self.owner.accepted()

    def close(self) -> None:
        """As the kernel does for a process that was killed."""
        self.owner.close()


async def test_many_fetches_at_once_do_not_mix() -> None:
    async with an_owner() as owner:
        filled = [owner.filled(a_manifest(BLOCK * (1 + number % 5))) for number in range(20)]

        received = await asyncio.gather(*(fetch(location) for _, location in filled))

    for one, (pieces, _) in zip(received, filled, strict=True):
        assert one.in_order == pieces


async def test_two_readers_may_fetch_one_segment() -> None:
    async with an_owner() as owner:
        segment, location = owner.open()
        fetching = [asyncio.ensure_future(fetch(location)) for _ in range(2)]
        await eventually(lambda: segment._readers == 4)
        # Whoever is first releases; the other one has its bytes already or is told.
        pieces = fill_all(segment)

        ends = await asyncio.gather(*fetching, return_exceptions=True)

    for end in ends:
        assert isinstance(end, SegmentStale) or end.in_order == pieces
    assert any(isinstance(end, Received) for end in ends)


async def test_a_paced_fetch_brings_the_same_bytes() -> None:
    pacer = LinkPacer(a_link(emulated_delay_ms=5), GenerousBudget(), floor_share=0.25)
    async with an_owner(pacers=(pacer,)) as owner:
        pieces, location = owner.filled(a_manifest(300, bytes_per_token=5000))

        received = await fetch(location, destination="west")

    assert received.in_order == pieces
    assert received.result.prefill == a_report()
