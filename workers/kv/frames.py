"""
What the owner of KV sends: frames with a header of 48 bytes, then payload. Bytes only, no I/O.

`docs/kv-wire.md` describes the format exactly. Whatever comes from the wire is checked here,
before memory is taken for it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import xxhash

from controlplane.wire import WorkerError
from workers.kv.layout import CHUNK_BYTES_MAX

#: Peers of different versions refuse each other.
VERSION: Final = 1
MAGIC: Final = b"PFKV"

_HEADER: Final = struct.Struct("<4sBBHIIQII16s")
_CHUNK_IDENTITY: Final = struct.Struct("<QI")

HEADER_BYTES: Final = _HEADER.size
#: JSON of one frame that is not a part of a chunk.
CONTROL_BYTES_MAX: Final = 8 << 10
#: Bit 0 of a part's flags: the owner had to wait until this chunk was computed, so the time before
#: it says nothing about the link.
FLAG_WAITED: Final = 1
#: The other bits of a part's flags: whole milliseconds since the owner sent the part before it, or
#: accepted. Owners before 0.4 leave them at 0; newer ones say at least 1 where they waited.
GAP_MS_MAX: Final = (1 << 15) - 1
NO_DIGEST: Final = bytes(16)

_MESSAGE_MAX: Final = 1024


class WireError(ValueError):
    """Bytes that are not this protocol; the connection cannot go on."""


class FrameKind(IntEnum):
    """What a frame says."""

    #: A fetch was understood and its segment is there; the first frame of every answer to one.
    ACCEPTED = 1
    #: A part of a chunk. Parts of a chunk follow each other, with nothing but KEEPALIVE and DONE
    #: between them.
    PART = 2
    #: The owner lives, but what was asked for is not computed yet or waits for the link's budget.
    KEEPALIVE = 3
    #: A `PrefillReport`.
    REPORT = 4
    #: A renewal or release was done.
    DONE = 5
    #: The request failed; a `WorkerError`. The connection stays usable unless it was garbage.
    FAILURE = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameHeader:
    """The fixed part of a frame; fields that a kind does not use are zero."""

    kind: FrameKind
    #: `FLAG_...` bits; unknown ones are ignored.
    flags: int = 0
    chunk_index: int = 0
    #: Bytes of the whole chunk.
    chunk_bytes: int = 0
    generation: int = 0
    #: Position of this part within its chunk, in bytes.
    offset_bytes: int = 0
    #: Bytes that follow the header.
    payload_bytes: int = 0
    #: Of the whole chunk, from `chunk_hasher`; the same in each of its parts.
    digest: bytes = NO_DIGEST


def part_flags(*, has_waited: bool, gap_ms: int) -> int:
    """Flags of a part; the gap is cut to `GAP_MS_MAX`."""
    return (FLAG_WAITED if has_waited else 0) | min(gap_ms, GAP_MS_MAX) << 1


def gap_s(flags: int) -> float:
    """Seconds between the owner's sends, as a part's flags tell; 0 when they do not."""
    return (flags >> 1) / 1000


def pack_header(header: FrameHeader) -> bytes:
    """The 48 bytes of a header."""
    return _HEADER.pack(
        MAGIC,
        VERSION,
        header.kind,
        header.flags,
        header.chunk_index,
        header.chunk_bytes,
        header.generation,
        header.offset_bytes,
        header.payload_bytes,
        header.digest,
    )


def pack_control(kind: FrameKind, generation: int, payload: bytes = b"") -> bytes:
    """A whole frame of any kind but PART."""
    header = FrameHeader(kind=kind, generation=generation, payload_bytes=len(payload))
    return pack_header(header) + payload


def pack_failure(code: str, message: str, *, generation: int = 0) -> bytes:
    """A FAILURE frame; the message is cut to what the wire takes."""
    error = WorkerError(code=code, message=message[:_MESSAGE_MAX])
    return pack_control(FrameKind.FAILURE, generation, error.model_dump_json().encode())


def parse_header(data: bytes | bytearray | memoryview) -> FrameHeader:
    """
    The header in 48 bytes.

    Raises:
        WireError: Not this protocol, another version, an unknown kind, or sizes that do not fit
            together or are over `CHUNK_BYTES_MAX` or `CONTROL_BYTES_MAX`.
    """
    if len(data) != HEADER_BYTES:
        raise WireError(f"a frame header has {HEADER_BYTES} bytes, got {len(data)}")
    magic, version, kind, flags, index, size, generation, offset, payload, digest = _HEADER.unpack(
        data
    )
    check_start(magic, version)
    try:
        known = FrameKind(kind)
    except ValueError as error:
        raise WireError(f"there is no frame of kind {kind}") from error
    if known is FrameKind.PART:
        _check_part(size, offset, payload)
    elif payload > CONTROL_BYTES_MAX:
        raise WireError(f"a {known.name} frame of {payload} bytes is over {CONTROL_BYTES_MAX}")
    return FrameHeader(
        kind=known,
        flags=flags,
        chunk_index=index,
        chunk_bytes=size,
        generation=generation,
        offset_bytes=offset,
        payload_bytes=payload,
        digest=digest,
    )


def chunk_hasher(segment_id: str, generation: int, index: int) -> xxhash.xxh3_128:
    """
    A checksum that already covers which chunk this is; the caller feeds it the payload.

    Without the identity two chunks of one size that changed places, or came from an older use of
    the buffer, would each pass with their own checksum.
    """
    hasher = xxhash.xxh3_128(segment_id.encode())
    hasher.update(_CHUNK_IDENTITY.pack(generation, index))
    return hasher


def check_start(magic: bytes, version: int) -> None:
    """
    What requests and frames begin with.

    Raises:
        WireError: Not this protocol, or another version of it.
    """
    if magic != MAGIC:
        raise WireError(f"expected a KV frame or request, which begins with {MAGIC!r}")
    if version != VERSION:
        raise WireError(f"the peer speaks version {version}, expected {VERSION}")


def _check_part(chunk_bytes: int, offset_bytes: int, payload_bytes: int) -> None:
    if chunk_bytes > CHUNK_BYTES_MAX:
        raise WireError(f"a chunk of {chunk_bytes} bytes is over {CHUNK_BYTES_MAX}")
    if offset_bytes + payload_bytes > chunk_bytes:
        raise WireError(
            f"a part of {payload_bytes} bytes at {offset_bytes} leaves its chunk of {chunk_bytes}"
        )
    if payload_bytes == 0 and chunk_bytes != 0:
        raise WireError("a part without bytes would go on for ever")
