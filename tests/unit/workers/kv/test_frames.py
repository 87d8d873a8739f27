from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from kv_builders import property_settings

from workers.kv.frames import (
    CONTROL_BYTES_MAX,
    HEADER_BYTES,
    FrameHeader,
    FrameKind,
    WireError,
    chunk_hasher,
    pack_control,
    pack_failure,
    pack_header,
    parse_header,
)
from workers.kv.layout import CHUNK_BYTES_MAX


def a_part(**overrides: object) -> FrameHeader:
    values = {
        "kind": FrameKind.PART,
        "flags": 1,
        "chunk_index": 3,
        "chunk_bytes": 1000,
        "generation": 1 << 40,
        "offset_bytes": 600,
        "payload_bytes": 400,
        "digest": bytes(range(16)),
    }
    return FrameHeader(**(values | overrides))


def test_a_header_has_exactly_the_documented_bytes() -> None:
    assert pack_header(a_part()) == bytes.fromhex(
        "50464b560102010003000000e8030000"
        "00000000000100005802000090010000000102030405060708090a0b0c0d0e0f"
    )  # fmt: skip


@property_settings
@given(
    st.sampled_from(sorted(FrameKind)),
    st.integers(0, 0xFFFF),
    st.integers(0, 0xFFFFFFFF),
    st.integers(0, (1 << 64) - 1),
    st.integers(1, CHUNK_BYTES_MAX),
    st.binary(min_size=16, max_size=16),
    st.data(),
)
def test_a_header_comes_back_as_it_was(
    kind: FrameKind,
    flags: int,
    index: int,
    generation: int,
    chunk_bytes: int,
    digest: bytes,
    data: st.DataObject,
) -> None:
    offset = data.draw(st.integers(0, chunk_bytes - 1))
    payload_max = chunk_bytes - offset if kind is FrameKind.PART else CONTROL_BYTES_MAX
    header = FrameHeader(
        kind=kind,
        flags=flags,
        chunk_index=index,
        chunk_bytes=chunk_bytes,
        generation=generation,
        offset_bytes=offset,
        payload_bytes=data.draw(st.integers(1, payload_max)),
        digest=digest,
    )

    assert parse_header(pack_header(header)) == header


@property_settings
@given(st.binary(max_size=2 * HEADER_BYTES))
@example(b"")
@example(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".ljust(HEADER_BYTES))
def test_arbitrary_bytes_are_a_header_or_a_wire_error(data: bytes) -> None:
    try:
        header = parse_header(data)
    except WireError:
        return
    assert pack_header(header) == data


@property_settings
@given(st.integers(0, HEADER_BYTES - 1), st.integers(0, 255))
def test_any_changed_byte_gives_a_consistent_header_or_a_wire_error(
    position: int, value: int
) -> None:
    data = bytearray(pack_header(a_part()))
    data[position] = value

    try:
        header = parse_header(data)
    except WireError:
        return
    assert header.offset_bytes + header.payload_bytes <= max(
        header.chunk_bytes, header.offset_bytes + CONTROL_BYTES_MAX
    )


@pytest.mark.parametrize(
    ("header", "complaint"),
    [
        (a_part(chunk_bytes=CHUNK_BYTES_MAX + 1), "is over"),
        (a_part(offset_bytes=601), "leaves its chunk"),
        (a_part(payload_bytes=0), "without bytes"),
        (a_part(kind=FrameKind.REPORT, payload_bytes=CONTROL_BYTES_MAX + 1), "is over"),
    ],
    ids=["huge chunk", "beyond the chunk", "no progress", "huge report"],
)
def test_sizes_that_cannot_be_are_refused_before_memory_is_taken(
    header: FrameHeader, complaint: str
) -> None:
    data = pack_header(header)

    with pytest.raises(WireError, match=complaint):
        parse_header(data)


@pytest.mark.parametrize(
    ("position", "value", "complaint"),
    [(0, 0, "begins with"), (4, 2, "version 2, expected 1"), (5, 0, "kind 0"), (5, 7, "kind 7")],
    ids=["magic", "version", "kind below", "kind above"],
)
def test_another_protocol_version_or_kind_is_refused(
    position: int, value: int, complaint: str
) -> None:
    data = bytearray(pack_header(a_part()))
    data[position] = value

    with pytest.raises(WireError, match=complaint):
        parse_header(data)


def test_an_empty_chunk_is_one_part_without_bytes() -> None:
    header = a_part(chunk_bytes=0, offset_bytes=0, payload_bytes=0)

    assert parse_header(pack_header(header)) == header


def test_a_failure_carries_code_and_a_message_cut_to_size() -> None:
    frame = pack_failure("segment_stale", "\N{OLD PERSONAL COMPUTER}" * 5000, generation=4)

    header = parse_header(frame[:HEADER_BYTES])
    said = json.loads(frame[HEADER_BYTES:])
    assert (header.kind, header.generation) == (FrameKind.FAILURE, 4)
    assert header.payload_bytes == len(frame) - HEADER_BYTES <= CONTROL_BYTES_MAX
    assert (said["code"], len(said["message"])) == ("segment_stale", 1024)


def test_a_control_frame_is_header_and_payload() -> None:
    frame = pack_control(FrameKind.REPORT, 9, b"{}")

    assert frame[HEADER_BYTES:] == b"{}"
    assert parse_header(frame[:HEADER_BYTES]).payload_bytes == 2


@pytest.mark.parametrize(
    "other",
    [("b" * 32, 1, 0), ("a" * 32, 2, 0), ("a" * 32, 1, 1)],
    ids=["segment", "generation", "index"],
)
def test_equal_bytes_of_different_chunks_have_different_checksums(
    other: tuple[str, int, int],
) -> None:
    mine, theirs = chunk_hasher("a" * 32, 1, 0), chunk_hasher(*other)
    mine.update(b"same")
    theirs.update(b"same")

    assert mine.digest() != theirs.digest()


def test_a_checksum_does_not_depend_on_how_the_bytes_came() -> None:
    whole, parts = chunk_hasher("a", 1, 2), chunk_hasher("a", 1, 2)
    whole.update(b"abcdef")
    for part in (b"ab", b"", b"cdef"):
        parts.update(part)

    assert whole.digest() == parts.digest()
