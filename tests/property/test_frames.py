from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from controlplane.wire import (
    FrameKind,
    FrameReader,
    WorkerError,
    pack_frame,
    pack_parcel,
    unpack_parcel,
)

frames = st.lists(st.tuples(st.sampled_from(FrameKind), st.binary(max_size=40)), max_size=8)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """The bytes in pieces, cut at these places; some may be empty."""
    edges = [0, *sorted(min(place, len(data)) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


@given(frames, st.lists(st.integers(0, 400), max_size=20))
def test_frames_come_together_however_they_are_cut(
    sent: list[tuple[FrameKind, bytes]], places: list[int]
) -> None:
    stream = b"".join(pack_frame(kind, payload) for kind, payload in sent)
    reader = FrameReader()

    received = [frame for piece in cut(stream, places) for frame in reader.feed(piece)]

    assert received == sent


@given(frames)
def test_a_frame_comes_with_its_last_byte(sent: list[tuple[FrameKind, bytes]]) -> None:
    reader = FrameReader()

    for kind, payload in sent:
        *head, last = (bytes([byte]) for byte in pack_frame(kind, payload))
        early = [frame for byte in head for frame in reader.feed(byte)]
        assert early == []
        assert reader.feed(last) == [(kind, payload)]


@given(st.text(max_size=200), st.binary(max_size=200))
def test_a_parcel_is_unpacked_to_what_was_packed(message: str, payload: bytes) -> None:
    header = WorkerError(code="worker_refused", message=message)

    head, body = unpack_parcel(pack_parcel(header, payload))

    assert WorkerError.model_validate_json(head) == header
    assert body == payload


@given(st.binary(max_size=40))
def test_any_bytes_are_a_parcel_or_a_value_error(body: bytes) -> None:
    try:
        head, payload = unpack_parcel(body)
    except ValueError:
        return

    assert body == len(head).to_bytes(4, "little") + head + payload
