"""
Every message that crosses a process boundary.

Messages are JSON made by pydantic and carry a version; a reader ignores fields it does not know,
so that version N-1 and N understand each other. Prompts and token streams travel as bytes beside
a JSON header (`pack_parcel`, `pack_frame`), because a hop only copies them. KV chunks have a wire
format of their own in `workers/kv`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import Annotated, Final, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from controlplane.domain.prefix import InventoryDelta, InventoryEntry
from controlplane.wire_types import (
    INVENTORY_BLOCKS_MAX,
    LINKS_MAX,
    BlockName,
    Count,
    LinkId,
    Name,
    Positive,
    Seconds,
)

WIRE_VERSION: Final = 1

#: A JSON header may have this many bytes; a peer that announces more is refused unread.
HEADER_BYTES_MAX: Final = 1 << 20
#: One frame of a decode stream may have this many bytes.
FRAME_BYTES_MAX: Final = 32 << 20

PARCEL_CONTENT_TYPE: Final = "application/x-prfaas-parcel"
STREAM_CONTENT_TYPE: Final = "application/x-prfaas-stream"

Role: TypeAlias = Literal["prefill", "decode"]


class Message(BaseModel):
    """Base of all messages: immutable, versioned, tolerant of fields from the future."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    version: Literal[1] = WIRE_VERSION


# --- Worker to store: who I am and how I do ---------------------------------------------------


class Profile(Message):
    """What the planner and the policies need to predict a worker's times. All measured or given."""

    #: Seconds of prefill per uncached token, mean over recent jobs. 0 for decode workers.
    prefill_s_per_token: Seconds = 0.0
    #: Fixed seconds of any prefill.
    prefill_fixed_s: Seconds = 0.0
    #: Seconds of one decode step.
    decode_step_s: Seconds = 0.0
    #: Attention KV, bytes per token.
    kv_bytes_per_token: Count = 0
    #: Linear-attention state, bytes per sequence.
    kv_state_bytes: Count = 0


class Load(Message):
    """What a worker has to do now."""

    #: Requests waiting and running.
    queue_requests: Count = 0
    #: Tokens still to be computed for those: uncached prompt tokens for prefill workers.
    queue_tokens: Count = 0
    #: Requests running.
    running: Count = 0
    #: Bytes of KV held, prefix cache and segments.
    kv_bytes: Count = 0


class Inventory(Message):
    """
    Change of a worker's prefix inventory; `InventoryDelta` in JSON.

    `stored` maps the hex of a block hash to what is there: "a" attention, "as" attention and a
    state snapshot, "s" a snapshot alone.
    """

    is_full: bool = False
    stored: dict[BlockName, Literal["a", "s", "as"]] = Field(
        default_factory=dict, max_length=INVENTORY_BLOCKS_MAX
    )
    removed: tuple[BlockName, ...] = Field(default=(), max_length=INVENTORY_BLOCKS_MAX)

    def to_delta(self) -> InventoryDelta:
        """
        The domain's form.

        Raises:
            ValueError: A key is not hexadecimal.
        """
        return InventoryDelta(
            is_full=self.is_full,
            stored={
                bytes.fromhex(block): InventoryEntry(
                    has_attention="a" in what, has_state="s" in what
                )
                for block, what in self.stored.items()
            },
            removed=tuple(bytes.fromhex(block) for block in self.removed),
        )

    @classmethod
    def from_delta(cls, delta: InventoryDelta) -> Inventory:
        """The wire's form; entries that hold nothing become removals."""
        marks = {(True, False): "a", (False, True): "s", (True, True): "as"}
        stored = {
            block.hex(): marks[entry.has_attention, entry.has_state]
            for block, entry in delta.stored.items()
            if entry.has_attention or entry.has_state
        }
        empty = [block for block, entry in delta.stored.items() if block.hex() not in stored]
        removed = (*delta.removed, *empty)
        return cls.model_validate(
            {
                "is_full": delta.is_full,
                "stored": stored,
                "removed": tuple(block.hex() for block in removed),
            }
        )


class LinkReport(Message):
    """What a receiver measured on one directed link since it started."""

    from_datacenter: Name
    to_datacenter: Name
    #: Bits per second while bytes were moving, smoothed. 0 before the first transfer.
    goodput_bps: Seconds = 0.0
    #: KV payload bytes received over this link by this worker.
    bytes_total: Count = 0
    #: Seconds from a chunk request to its first byte, smoothed, for chunks that were ready.
    rtt_s: Seconds = 0.0


class WorkerBeat(Message):
    """Registration and heartbeat in one: a worker that says this is known, one that stops is not."""

    worker_id: Name
    datacenter: Name
    role: Role
    #: Random id of one process life. A new one voids everything said of the old.
    incarnation: Name
    #: 1, 2, 3 ... within an incarnation; a gap means that an inventory change was lost.
    sequence: Positive
    #: Base URL of the worker's HTTP API.
    url: Annotated[str, Field(max_length=512, pattern=r"^http://")]
    model: Name
    #: Equal fingerprints can exchange KV; anything else cannot.
    fingerprint: Name
    vocabulary_size: Positive
    block_tokens: Positive
    context_tokens_max: Positive
    #: Requests a worker takes before it answers `worker_refused`, running ones included.
    requests_max: Positive
    #: Requests it runs at the same time.
    slots: Positive
    is_draining: bool = False
    #: It can go on with an output that another worker has begun. Workers before 0.3 cannot.
    can_resume: bool = False
    #: Seconds since it could first take work; None from workers before 0.3, which count as old.
    age_s: Seconds | None = None
    profile: Profile = Profile()
    load: Load = Load()
    inventory: Inventory = Inventory()
    links: Annotated[tuple[LinkReport, ...], Field(max_length=LINKS_MAX)] = ()


class BeatReply(Message):
    """The store's answer to a beat."""

    #: The store lacks the worker's earlier reports: send everything with the next beat.
    wants_full_inventory: bool
    #: The inventory was larger than the store keeps: only the newest part of it is there.
    is_inventory_cut: bool = False


# --- Router to store --------------------------------------------------------------------------


class Reservation(Message):
    """A claim on capacity, all or nothing."""

    reservation_id: Name
    #: The router that made it.
    owner: Name
    #: The claim on the decode worker expires by itself after this.
    ttl_s: Seconds
    #: The claims on the prefill worker and the link expire after this, at most `ttl_s`: they are
    #: used up with the first token, long before the reservation is released.
    prefill_ttl_s: Seconds
    prefill_worker: Name
    prefill_incarnation: Name
    #: Uncached tokens the prefill worker will compute.
    prefill_tokens: Count
    prefill_requests_max: Count
    decode_worker: Name
    decode_incarnation: Name
    decode_requests_max: Count
    #: None when both are in one datacenter.
    link: LinkId | None = None
    #: Bytes expected on the link.
    link_bytes: Count = 0


RefusedBy: TypeAlias = Literal["prefill_gone", "decode_gone", "prefill_full", "decode_full"]


class ReserveReply(Message):
    """Granted, or what stood against it; the loads let a router correct its view at once."""

    refused_by: RefusedBy | None = None
    prefill_reserved_tokens: Count = 0
    prefill_reserved_requests: Count = 0
    decode_reserved_requests: Count = 0
    link_reserved_bytes: Count = 0


# --- Router to prefill worker -----------------------------------------------------------------


class PrefillJob(Message):
    """Header of a parcel whose payload is the prompt's tokens."""

    request_id: Name
    #: The incarnation the router chose; another one refuses.
    incarnation: Name
    fingerprint: Name
    scope: Name
    token_width_bytes: Literal[2, 4]
    #: Datacenter of the decode worker: names the link whose budget the bytes use.
    destination: Name
    #: Seconds left for the whole request.
    deadline_s: Seconds


class KvGroup(Message):
    """One kind of KV in a segment."""

    name: Literal["attention", "state"]
    #: Bytes for each token; 0 for state.
    bytes_per_token: Count
    #: Bytes whatever the length; 0 for attention.
    fixed_bytes: Count


class KvManifest(Message):
    """What a segment is made of; sizes and order of its chunks follow (`workers/kv/layout.py`)."""

    fingerprint: Name
    scope: Name
    #: Tokens the segment covers: all of the prompt but its last.
    token_count: Count
    block_tokens: Annotated[int, Field(ge=1)]
    groups: tuple[KvGroup, ...]


class KvLocation(Message):
    """A lease on a versioned thing, never a bare address."""

    worker_id: Name
    datacenter: Name
    incarnation: Name
    segment_id: Name
    #: Counter of the owner, bumped on every reuse of a buffer.
    generation: Count
    host: Annotated[str, Field(max_length=255)]
    port: Annotated[int, Field(ge=1, le=65535)]
    #: Length of the lease from its last renewal, on the owner's clock.
    lease_s: Seconds
    manifest: KvManifest


class PrefillReport(Message):
    """What the prefill really was."""

    queue_s: Seconds
    compute_s: Seconds
    #: Prompt tokens taken from the prefix cache.
    cached_tokens: Count
    #: Prompt tokens computed.
    computed_tokens: Count


# --- Router to decode worker ------------------------------------------------------------------


class Sampling(Message):
    """How output tokens are chosen."""

    #: 0 is greedy.
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 1.0
    #: Same seed, same prompt, same output. None draws one.
    seed: int | None = None
    output_tokens_max: Annotated[int, Field(ge=1)]
    stop: tuple[str, ...] = ()


class OutputShape(Message):
    """How the answer is written: the decode worker makes the client's bytes, the router copies."""

    kind: Literal["chat", "completion"]
    response_id: Name
    model: Name
    #: Unix time for the `created` field.
    created: Count
    is_stream: bool
    include_usage: bool = False


class DecodeJob(Message):
    """
    Header of a parcel whose payload is the prompt's tokens, and those of the output so far.

    An output that another worker has begun is resumed: its tokens stand behind the prompt's, their
    KV comes with the location, their text has been sent and is not sent again.
    """

    request_id: Name
    #: How many tokens at the end of the payload are output already. Less than there are tokens.
    resumed_tokens: Count = 0
    #: The router keeps the output's tokens: text comes in `OUTPUT` frames instead of `CONTENT`.
    wants_tokens: bool = False
    incarnation: Name
    scope: Name
    token_width_bytes: Literal[2, 4]
    location: KvLocation
    sampling: Sampling
    output: OutputShape
    deadline_s: Seconds


class TransferReport(Message):
    """What moving the KV really was. Times are seconds from the decode job's arrival."""

    #: Payload bytes received.
    bytes: Count = 0
    chunks: Count = 0
    #: Tokens whose attention KV the decoder held already.
    held_tokens: Count = 0
    #: Chunks that were refused by their checksum and asked for again.
    refetched_chunks: Count = 0
    first_byte_s: Seconds = 0.0
    finished_s: Seconds = 0.0


class DecodeReport(Message):
    """What really happened, from the decode worker; last frame of every stream that ends well."""

    finish_reason: Literal["stop", "length"]
    #: Of the whole output, resumed ones included.
    output_tokens: Count
    #: Prompt tokens this worker computed itself. 1 when the transfer was real.
    prompt_tokens_computed: Count
    queue_s: Seconds
    #: Seconds from the decode job's arrival to its first token.
    first_token_s: Seconds
    finished_s: Seconds
    transfer: TransferReport
    prefill: PrefillReport


class DecodeFailure(Message):
    """Why a stream ended badly."""

    code: Name
    message: str = Field(max_length=1024)


class WorkerError(Message):
    """Body of every worker answer that is not 2xx."""

    code: Name
    message: str = Field(max_length=1024)


# --- Framing ----------------------------------------------------------------------------------

_LENGTH = struct.Struct("<I")
_FRAME = struct.Struct("<BI")


def parcel_head(header: Message) -> bytes:
    """What stands before the payload of a parcel: a JSON header with its length before it."""
    head = header.model_dump_json().encode()
    return _LENGTH.pack(len(head)) + head


def pack_parcel(header: Message, payload: bytes) -> bytes:
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
