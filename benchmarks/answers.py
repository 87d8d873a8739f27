"""The answers of the idle workers, made once: a location, token streams, and plain OpenAI bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias

from benchmarks.cells import OUTPUT_TOKENS, Size
from benchmarks.fleet import FINGERPRINT, KV_BYTES_PER_TOKEN, KV_STATE_BYTES, WorkerSpec, facts_of
from controlplane.config import FleetConfig
from controlplane.wire import (
    STREAM_CONTENT_TYPE,
    DecodeReport,
    FrameKind,
    KvGroup,
    KvLocation,
    KvManifest,
    OutputShape,
    PrefillReport,
    TransferReport,
    pack_frame,
)
from workers.output import AnswerWriter

#: An HTTP answer as the pieces it is sent in, each in a turn of the loop of its own.
Pieces: TypeAlias = tuple[bytes, ...]

_WORD: Final = "token "
_KEEP_ALIVE: Final = "Date: Thu, 01 Jan 1970 00:00:00 GMT\r\nServer: bench\r\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """All that a worker can say."""

    prefill: Pieces
    decode: Pieces
    decode_stream: Pieces
    openai: Pieces
    openai_stream: Pieces
    aborted: Pieces = (b"HTTP/1.1 204 No Content\r\n\r\n",)


def answers_of(worker: WorkerSpec, size: Size, fleet: FleetConfig) -> Answers:
    """The answers of one worker; lengths in them are those of no prompt, and nobody looks."""
    whole, events = _contents(fleet.model.name)
    report = pack_frame(FrameKind.REPORT, _report().model_dump_json().encode())
    frames = [pack_frame(FrameKind.CONTENT, event) for event in events]
    answer = pack_frame(FrameKind.CONTENT, whole)
    return Answers(
        prefill=_json(_location(worker, size, fleet).model_dump_json().encode()),
        decode=_chunked(STREAM_CONTENT_TYPE, [answer + report]),
        decode_stream=_chunked(STREAM_CONTENT_TYPE, [*frames[:-1], frames[-1] + report]),
        openai=_json(whole),
        openai_stream=_chunked("text/event-stream; charset=utf-8", events),
    )


def _contents(model: str) -> tuple[bytes, list[bytes]]:
    """One answer, whole and as the events of its tokens; the end comes with the last token."""

    def writer(*, is_stream: bool) -> AnswerWriter:
        shape = OutputShape(
            kind="chat", response_id="chatcmpl-bench", model=model, created=0, is_stream=is_stream
        )
        return AnswerWriter(shape, prompt_tokens=1)

    whole, stream = writer(is_stream=False), writer(is_stream=True)
    whole.delta(_WORD * OUTPUT_TOKENS)
    events = [stream.delta(_WORD) for _ in range(OUTPUT_TOKENS)]
    events[-1] += stream.end("length", output_tokens=OUTPUT_TOKENS, cached_tokens=0)
    return whole.end("length", output_tokens=OUTPUT_TOKENS, cached_tokens=0), events


def _report() -> DecodeReport:
    return DecodeReport(
        finish_reason="length",
        output_tokens=OUTPUT_TOKENS,
        prompt_tokens_computed=1,
        queue_s=0.0001,
        first_token_s=0.0012,
        finished_s=0.0034,
        transfer=TransferReport(
            bytes=123_456, chunks=4, held_tokens=0, first_byte_s=0.0005, finished_s=0.001
        ),
        prefill=PrefillReport(
            queue_s=0.0001, compute_s=0.0002, cached_tokens=64, computed_tokens=100
        ),
    )


def _location(worker: WorkerSpec, size: Size, fleet: FleetConfig) -> KvLocation:
    return KvLocation(
        worker_id=worker.worker_id,
        datacenter=worker.datacenter,
        incarnation=f"{worker.name}.bench",
        segment_id="0123456789abcdef0123456789abcdef",
        generation=1,
        host="127.0.0.1",
        port=9,
        lease_s=30.0,
        manifest=KvManifest(
            fingerprint=FINGERPRINT,
            scope=facts_of(size, fleet)[fleet.model.name].scope,
            token_count=1,
            block_tokens=size.block_tokens,
            groups=(
                KvGroup(name="attention", bytes_per_token=KV_BYTES_PER_TOKEN, fixed_bytes=0),
                KvGroup(name="state", bytes_per_token=0, fixed_bytes=KV_STATE_BYTES),
            ),
        ),
    )


def _json(body: bytes) -> Pieces:
    head = (
        f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n{_KEEP_ALIVE}"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return (head.encode() + body,)


def _chunked(content_type: str, parts: list[bytes]) -> Pieces:
    head = (
        f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\n{_KEEP_ALIVE}"
        "Transfer-Encoding: chunked\r\n\r\n"
    ).encode()
    chunks = [b"%x\r\n%b\r\n" % (len(part), part) for part in parts]
    chunks[0] = head + chunks[0]
    chunks[-1] += b"0\r\n\r\n"
    return tuple(chunks)
