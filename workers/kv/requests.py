"""
What a reader asks the owner of KV: a preface of 12 bytes, then JSON. Bytes only, no I/O.

`docs/kv-wire.md` describes the format exactly.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Annotated, Final, Literal, TypeAlias

from pydantic import Field, TypeAdapter

from controlplane.wire import Message
from controlplane.wire_types import Name
from workers.kv.frames import MAGIC, VERSION, WireError, check_start
from workers.kv.layout import CHUNKS_MAX

_PREFACE: Final = struct.Struct("<4sB3xI")

PREFACE_BYTES: Final = _PREFACE.size
#: JSON of one request. 1,024 ranges take about 20 KiB.
REQUEST_BYTES_MAX: Final = 64 << 10
#: Ranges of one fetch: one for each stripe, more only after corruption.
RANGES_MAX: Final = 1024

_Index: TypeAlias = Annotated[int, Field(ge=0, le=CHUNKS_MAX)]
#: `start, stop, step` as in Python's `range`, `step >= 1`.
ChunkRange: TypeAlias = tuple[_Index, _Index, Annotated[int, Field(ge=1, le=CHUNKS_MAX)]]


class SegmentRequest(Message):
    """What every request carries: which segment, in which life of which owner, for which scope."""

    incarnation: Name
    segment_id: Name
    generation: Annotated[int, Field(ge=0, lt=1 << 64)]
    fingerprint: Name
    scope: Name


class FetchRequest(SegmentRequest):
    """Send these chunks in this order, each as soon as it is there."""

    op: Literal["fetch"] = "fetch"
    #: Datacenter of the reader: names the link whose budget the bytes use.
    destination: Name
    ranges: Annotated[tuple[ChunkRange, ...], Field(max_length=RANGES_MAX)]


class ReportRequest(SegmentRequest):
    """Send the prefill report once the segment is complete."""

    op: Literal["report"] = "report"


class RenewRequest(SegmentRequest):
    """Start the lease anew."""

    op: Literal["renew"] = "renew"
    #: Whether the owner answers with DONE or FAILURE; a reader in mid-transfer needs neither.
    wants_answer: bool = True


class ReleaseRequest(SegmentRequest):
    """Nobody needs the segment any more; takes effect at once, even while it is filling."""

    op: Literal["release"] = "release"
    wants_answer: bool = True


Request: TypeAlias = FetchRequest | ReportRequest | RenewRequest | ReleaseRequest

_REQUESTS: Final[TypeAdapter[Request]] = TypeAdapter(
    Annotated[Request, Field(discriminator="op")],
)


def pack_request(request: Request) -> bytes:
    """Preface and JSON of a request."""
    body = request.model_dump_json().encode()
    if len(body) > REQUEST_BYTES_MAX:
        raise ValueError(f"a request of {len(body)} bytes is over {REQUEST_BYTES_MAX}")
    return _PREFACE.pack(MAGIC, VERSION, len(body)) + body


def parse_preface(data: bytes | bytearray | memoryview) -> int:
    """
    Bytes of JSON that follow a preface.

    Raises:
        WireError: Not this protocol, another version, or a length over `REQUEST_BYTES_MAX`.
    """
    if len(data) != PREFACE_BYTES:
        raise WireError(f"a preface has {PREFACE_BYTES} bytes, got {len(data)}")
    magic, version, length = _PREFACE.unpack(data)
    check_start(magic, version)
    if length > REQUEST_BYTES_MAX:
        raise WireError(f"a request of {length} bytes is over {REQUEST_BYTES_MAX}")
    return int(length)


def parse_request(body: bytes | bytearray) -> Request:
    """
    The request in a JSON body.

    Raises:
        WireError: Not JSON, an unknown `op`, or a field that is missing or out of range.
    """
    try:
        return _REQUESTS.validate_json(body)
    except ValueError as error:
        # The text of a validation error repeats its input, which may be anything.
        raise WireError("the request is not one of fetch, report, renew and release") from error


def to_ranges(indexes: Sequence[int]) -> tuple[tuple[int, int, int], ...]:
    """Ascending chunk indexes as few `start, stop, step` ranges. Pure."""
    ranges: list[tuple[int, int, int]] = []
    first = 0
    while first < len(indexes):
        last = first
        step = indexes[first + 1] - indexes[first] if first + 1 < len(indexes) else 1
        while last + 1 < len(indexes) and indexes[last + 1] - indexes[last] == step:
            last += 1
        ranges.append((indexes[first], indexes[last] + 1, step))
        first = last + 1
    return tuple(ranges)


def expand_ranges(ranges: Sequence[tuple[int, int, int]], *, chunk_count: int) -> list[int]:
    """
    The chunk indexes of a fetch in the order asked.

    Raises:
        WireError: An index beyond the plan, or more indexes than the plan has chunks.
    """
    indexes: list[int] = []
    for start, stop, step in ranges:
        asked = range(start, stop, step)
        if len(asked) > chunk_count - len(indexes):
            raise WireError(f"a fetch asks for more than the {chunk_count} chunks there are")
        if asked and asked[-1] >= chunk_count:
            raise WireError(f"there is no chunk {asked[-1]}, the segment has {chunk_count}")
        indexes.extend(asked)
    return indexes
