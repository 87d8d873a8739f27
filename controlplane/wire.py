"""
Every message that crosses a process boundary.

Messages are JSON made by pydantic and carry a version; a reader ignores fields it does not know,
so that version N-1 and N understand each other. Prompts and token streams travel as bytes beside
a JSON header (`pack_parcel`, `pack_frame`), because a hop only copies them. KV chunks have a wire
format of their own in `workers/kv`.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeAlias

from pydantic import Field

from controlplane.domain.prefix import InventoryDelta, InventoryEntry
from controlplane.wire_framing import (
    FRAME_BYTES_MAX,
    HEADER_BYTES_MAX,
    FrameKind,
    FrameReader,
    pack_frame,
    pack_output,
    pack_parcel,
    parcel_head,
    unpack_output,
    unpack_parcel,
)
from controlplane.wire_kv import KvAddress, KvGroup, KvLocation, KvManifest
from controlplane.wire_types import (
    INVENTORY_BLOCKS_MAX,
    LINKS_MAX,
    WIRE_VERSION,
    BlockName,
    Count,
    LinkId,
    Message,
    Name,
    Positive,
    Seconds,
)

#: Framing, KV and the base of messages are modules of their own; all is imported from here.
__all__ = [
    "FRAME_BYTES_MAX", "HEADER_BYTES_MAX", "WIRE_VERSION", "FrameKind", "FrameReader", "KvAddress",
    "KvGroup", "KvLocation", "KvManifest", "Message", "pack_frame", "pack_output", "pack_parcel",
    "parcel_head", "unpack_output", "unpack_parcel",
]  # fmt: skip

PARCEL_CONTENT_TYPE: Final = "application/x-prfaas-parcel"
STREAM_CONTENT_TYPE: Final = "application/x-prfaas-stream"

Role: TypeAlias = Literal["prefill", "decode"]
#: Ends the id of the prefill registration of a decode worker that lends a share of its time.
LENT_SUFFIX: Final = ".lent"
#: A decode worker keeps half of its time at least: below that its token rate leaves any objective.
LendShare: TypeAlias = Annotated[float, Field(ge=0, le=0.5, allow_inf_nan=False)]


# --- Worker to store: who I am and how I do ---------------------------------------------------


class Profile(Message):
    """What the planner and the policies need to predict a worker's times. All measured or given."""

    #: Seconds of prefill per uncached token, mean over recent jobs. 0 for decode workers.
    prefill_s_per_token: Seconds = 0.0
    #: Fixed seconds of any prefill.
    prefill_fixed_s: Seconds = 0.0
    #: Seconds per pair of tokens that attend to each other; 0 where a line fits well enough.
    prefill_s_per_token_squared: Seconds = 0.0
    #: Seconds of one decode step; longer by 1 / (1 - share) while a share of the time is lent.
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
    #: Seconds of prefill those take, by the worker's own estimate; None from workers before 0.4.
    queue_s: Seconds | None = None
    #: Requests running.
    running: Count = 0
    #: Bytes of KV held, prefix cache and segments.
    kv_bytes: Count = 0
    #: Part of the engine's room for KV that is in use; None where it does not tell.
    kv_use: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    #: Requests that lost their KV to others, since the engine started.
    preemptions_total: Count = 0
    #: What the worker tells of its prefix cache is a guess by what was sent to its engine.
    has_guessed_prefixes: bool = False


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
    #: The same with those of transfers under way.
    arrived_bytes_total: Count = 0
    #: Of those, what arrived in the seconds below; None where a receiver does not tell it apart.
    moved_bytes_total: Count | None = None
    #: Seconds in which at least one of them had bytes on their way; None from workers before 0.4.
    busy_s_total: Seconds | None = None
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
    #: Where it serves KV; None from workers that serve none, and from those before 0.4.
    kv: KvAddress | None = None
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
    #: Roles it can change to, its own included; empty when it always keeps the one it has.
    roles: Annotated[tuple[Role, ...], Field(max_length=2)] = ()
    #: Part of its time that a decode worker lends to local prefill now. The registration of the lent
    #: time tells it too, but for older workers, which say 0 there.
    lend_share: LendShare = 0.0
    #: In the prefill registration of lent time: the decode worker whose time it is. That has an id
    #: and an incarnation of its own, `<worker id>` and `LENT_SUFFIX`, and a profile that is slower
    #: by 1 / share; the decode worker's own registration stays as it is.
    lent_by: Name | None = None
    #: Others can copy what its prefix cache holds: it answers `POST /worker/v1/prefix`.
    can_export_prefix: bool = False
    inventory: Inventory = Inventory()
    links: Annotated[tuple[LinkReport, ...], Field(max_length=LINKS_MAX)] = ()


class BeatReply(Message):
    """The store's answer to a beat."""

    #: The store lacks the worker's earlier reports: send everything with the next beat.
    wants_full_inventory: bool
    #: The inventory was larger than the store keeps: only the newest part of it is there.
    is_inventory_cut: bool = False


# --- Planner to worker ------------------------------------------------------------------------


class RoleChange(Message):
    """
    Body of `POST /worker/v1/role`: what a worker should do from now on.

    Another role means: say `is_draining`, finish what is there, then register as another
    incarnation with the new role. Another share alone needs no drain. What the worker has already is
    answered like a change, so that a call that timed out can be repeated.
    """

    #: The life it is meant for; another one refuses.
    incarnation: Name
    role: Role
    #: Part of its time that a decode worker lends to prefill in its own datacenter; 0 for prefill.
    lend_share: LendShare = 0.0
    #: It refuses another role for so long, on its own clock, whoever asks.
    dwell_s: Seconds


class RoleReply(Message):
    """
    202: the worker will do it, or does already. A refusal is 409 with a `WorkerError`.

    Codes of a refusal: `role_dwell` (too early), `role_incarnation` (another life),
    `role_unsupported` (not among its `roles`), `role_busy` (another change, or its end, is under way).
    """

    worker_id: Name
    incarnation: Name
    #: What it will be.
    role: Role
    lend_share: LendShare = 0.0
    #: It has to finish requests of its old role first.
    is_draining: bool = False


# --- Router to worker: is the way to another worker open --------------------------------------

#: What a worker found on its way to another one: an answer came back; somebody said no or broke the
#: connection, which tells nothing of the way; nothing came back.
LinkSign: TypeAlias = Literal["answered", "refused", "silent"]


class LinkProbe(Message):
    """Dial the KV port of another worker and wait for one answer."""

    target: KvAddress
    #: Longer is silence.
    timeout_s: Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)]


class LinkProbeReply(Message):
    """What became of it."""

    sign: LinkSign
    #: Seconds from the question to its answer, without the connecting; 0 without an answer.
    rtt_s: Seconds = 0.0


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
    #: KV of the prompt's leading tokens to copy first; what cannot be copied is computed. Workers
    #: before 0.4 compute it all.
    prefix: KvLocation | None = None


class PrefillReport(Message):
    """What the prefill really was."""

    queue_s: Seconds
    compute_s: Seconds
    #: Prompt tokens taken from the prefix cache.
    cached_tokens: Count
    #: Prompt tokens computed.
    computed_tokens: Count
    #: Of the cached ones, those that were copied from another worker for this job.
    copied_tokens: Count = 0
    #: Payload bytes that this took, whether or not it came to an end.
    copied_bytes: Count = 0
    #: Seconds from the job's arrival to the end of the copy; 0 without one.
    copy_s: Seconds = 0.0
    #: Code of what ended a copy that did not succeed; empty without one.
    copy_failure: Annotated[str, Field(max_length=128)] = ""


# --- Router to a worker with a prefix cache ---------------------------------------------------


class PrefixAsk(Message):
    """
    Header of a parcel whose payload is the leading tokens of a prompt (`POST /worker/v1/prefix`).

    The answer is the `KvLocation` of the longest part that the worker's cache has attention and
    exact state of, or 404 when it has none.
    """

    request_id: Name
    #: The life that the router chose; another one refuses.
    incarnation: Name
    fingerprint: Name
    scope: Name
    token_width_bytes: Literal[2, 4]


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


#: How sure a worker is of what a request's engine took from outside. `own`: it has moved the KV itself.
#: `counted`: the engine's count of this very request. `shared`: a count over several requests, divided.
#: `none`: nobody has counted.
TransferEvidence: TypeAlias = Literal["own", "counted", "shared", "none"]


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
    #: Workers before 0.5 say nothing of it, and have moved their KV themselves.
    evidence: TransferEvidence = "own"
    #: The decode engine computed what was to come from outside.
    is_mismatch: bool = False


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
