"""How messages travel on a connection: jobs as parcels, decode streams as frames."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pydantic import BaseModel

#: A JSON header may have this many bytes; a peer that announces more is refused unread.
HEADER_BYTES_MAX: Final = 1 << 20
#: One frame of a decode stream may have this many bytes.
FRAME_BYTES_MAX: Final = 32 << 20

_LENGTH = struct.Struct("<I")
_FRAME = struct.Struct("<BI")


def parcel_head(header: BaseModel) -> bytes:
    """What stands before the payload of a parcel: a JSON header with its length before it."""
    head = header.model_dump_json().encode()
    return _LENGTH.pack(len(head)) + head


def pack_parcel(header: BaseModel, payload: bytes) -> bytes:
    """A parcel in one piece; long payloads are better sent behind `parcel_head` uncopied."""
    return parcel_head(header) + payload


def unpack_parcel(body: bytes) -> tuple[bytes, bytes]:
    """
    Header JSON and payload of a parcel.

    Raises:
        ValueError: Too short, or a header length beyond the body or `HEADER_BYTES_MAX`.
    """
    if len(body) < _LENGTH.size:
        raise ValueError(f"a parcel has at least {_LENGTH.size} bytes, this one has {len(body)}")
    (length,) = _LENGTH.unpack_from(body)
    end = _LENGTH.size + length
    if length > HEADER_BYTES_MAX or end > len(body):
        raise ValueError(f"a header of {length} bytes does not fit a parcel of {len(body)} bytes")
    return body[_LENGTH.size : end], body[end:]


class FrameKind(IntEnum):
    """What a frame of a decode stream carries."""

    #: Bytes for the client, as they are: an SSE event, or the whole JSON answer.
    CONTENT = 1
    #: A `DecodeReport`; the stream ended well.
    REPORT = 2
    #: A `DecodeFailure`; the stream ended badly.
    FAILURE = 3
    #: Nothing to say yet, but at work: sent every `alive_interval_s` of silence.
    ALIVE = 4
    #: Output tokens, and the bytes for the client that they made certain (`pack_output`). One
    #: frame, so that a stream that breaks has told both or neither.
    OUTPUT = 5


def pack_output(tokens: Sequence[int], content: bytes) -> bytes:
    """Payload of an `OUTPUT` frame: number of tokens, each in four bytes, content."""
    return struct.pack(f"<I{len(tokens)}I", len(tokens), *tokens) + content


def unpack_output(payload: bytes) -> tuple[tuple[int, ...], bytes]:
    """
    Tokens and content of an `OUTPUT` frame.

    Raises:
        ValueError: Shorter than it says.
    """
    if len(payload) < _LENGTH.size:
        raise ValueError(f"an output frame has at least {_LENGTH.size} bytes, not {len(payload)}")
    (count,) = _LENGTH.unpack_from(payload)
    end = _LENGTH.size * (count + 1)
    if end > len(payload):
        raise ValueError(f"an output frame of {len(payload)} bytes cannot hold {count} tokens")
    return struct.unpack_from(f"<{count}I", payload, _LENGTH.size), payload[end:]


def pack_frame(kind: FrameKind, payload: bytes) -> bytes:
    """One frame of a decode stream: kind, length, payload."""
    return _FRAME.pack(kind, len(payload)) + payload


class FrameReader:
    """
    Cuts a byte stream into frames, whatever pieces it comes in.

    Holds at most one partial frame, so its memory is bounded by `FRAME_BYTES_MAX`.
    """

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, data: bytes) -> list[tuple[FrameKind, bytes]]:
        """
        Frames that `data` completes, in order.

        Raises:
            ValueError: An unknown kind, or a frame over `FRAME_BYTES_MAX`.
        """
        self._pending += data
        buffer = self._pending
        offset = 0
        frames: list[tuple[FrameKind, bytes]] = []
        while len(buffer) - offset >= _FRAME.size:
            kind, length = _FRAME.unpack_from(buffer, offset)
            if length > FRAME_BYTES_MAX:
                raise ValueError(f"a frame of {length} bytes is over {FRAME_BYTES_MAX}")
            end = offset + _FRAME.size + length
            if end > len(buffer):
                break
            frames.append((FrameKind(kind), bytes(buffer[offset + _FRAME.size : end])))
            offset = end
        del buffer[:offset]
        return frames
