"""The output of one request, whichever workers make it: what its client gets, what is kept."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from pydantic import ValidationError

from controlplane.domain import lifecycle as life
from controlplane.domain.tokens import WidthBytes
from controlplane.errors import (
    ChunkCorrupt,
    DeadlineExceeded,
    Draining,
    LinkDown,
    LinkStalled,
    SegmentFailed,
    SegmentStale,
    WorkerRefused,
    WorkerTimeout,
)
from controlplane.wire import DecodeFailure, DecodeReport, FrameKind, OutputShape, unpack_output

_Failure: TypeAlias = type[
    life.LinkDown
    | life.LinkStalled
    | life.KvChunkCorrupt
    | life.LeaseExpired
    | life.SegmentFailed
    | life.DecodeRefused
    | life.EngineStalled
    | life.DecodeLeft
    | life.DecodeWorkerLost
    | life.DeadlinePassed
]

#: What a decode worker's failure means for the request; anything else is a worker that failed.
_EVENTS: dict[str, _Failure] = {
    LinkDown.code: life.LinkDown,
    LinkStalled.code: life.LinkStalled,
    ChunkCorrupt.code: life.KvChunkCorrupt,
    SegmentStale.code: life.LeaseExpired,
    SegmentFailed.code: life.SegmentFailed,
    WorkerRefused.code: life.DecodeRefused,
    WorkerTimeout.code: life.EngineStalled,
    Draining.code: life.DecodeLeft,
    DeadlineExceeded.code: life.DeadlinePassed,
}

#: Failures that can only be told of before the first token; later they are a worker that failed.
_BEFORE_OUTPUT = frozenset({
    life.LinkDown, life.LinkStalled, life.KvChunkCorrupt, life.LeaseExpired, life.SegmentFailed,
    life.DecodeRefused,
})  # fmt: skip

#: What closes an answer that is streamed.
_DONE: Final = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Taken:
    """What some frames came to."""

    #: For the client; may be empty.
    content: bytes = b""
    #: Output has grown: the engine works.
    has_progress: bool = False
    #: How the stream ended; None while it goes on.
    end: life.Event | None = None
    #: Why it ended badly.
    failure: str = ""
    report: DecodeReport | None = None


class Output:
    """
    Takes frames of one decode worker after the other.

    A worker that tells its tokens puts them and the bytes they made certain into one frame, so
    that both are known or neither. The end of an answer is held back until the report is there: a
    stream that breaks between the two goes on elsewhere, and its client does not see two ends. An
    answer that is not streamed is held back whole: it may be begun anew, and is given once.
    """

    def __init__(self, shape: OutputShape, width_bytes: WidthBytes) -> None:
        """
        Args:
            shape: How the answer is written.
            width_bytes: Of a token of the prompt, and so of the output.
        """
        self._is_stream = shape.is_stream
        self._token_end = 1 << (8 * width_bytes)
        self._tokens = array("I")
        self._held = b""
        self._tells_tokens = False
        self._has_begun = False

    def __len__(self) -> int:
        """Tokens so far."""
        return len(self._tokens)

    @property
    def tokens(self) -> Sequence[int]:
        """Tokens so far."""
        return self._tokens

    @property
    def tells_tokens(self) -> bool:
        """The worker of this attempt tells its tokens."""
        return self._tells_tokens

    def begin_attempt(self, *, tells_tokens: bool) -> None:
        """Another worker makes the output from here on."""
        self._held = b""
        self._has_begun = False
        self._tells_tokens = tells_tokens

    def forget(self) -> None:
        """Begin from nothing: the client has seen none of it."""
        self._tokens = array("I")

    def take(self, frames: Sequence[tuple[FrameKind, bytes]]) -> Taken:
        """Sort out frames that arrived together; nothing after an end is looked at."""
        parts: list[bytes] = []
        has_progress = False
        for kind, payload in frames:
            match kind:
                case FrameKind.OUTPUT:
                    try:
                        tokens, content = unpack_output(payload)
                    except ValueError as error:
                        return _broken(parts, f"a malformed output: {error}")
                    if tokens and max(tokens) >= self._token_end:
                        return _broken(parts, "tokens that no vocabulary has")
                    self._tokens.extend(tokens)
                    parts.append(content)
                    has_progress = self._has_begun = True
                case FrameKind.CONTENT:
                    has_progress = self._has_begun = True
                    if self._is_held(payload):
                        self._held += payload
                    else:
                        parts.append(payload)
                case FrameKind.REPORT:
                    return self._ended(parts, payload)
                case FrameKind.FAILURE:
                    return self._failed(parts, payload)
                case FrameKind.ALIVE:
                    pass
        return Taken(b"".join(parts), has_progress)

    def _is_held(self, content: bytes) -> bool:
        """Whether it may only be given together with the report."""
        # A worker that tells no tokens sends its text in the same kind of frame as its end.
        return self._tells_tokens or not self._is_stream or content.endswith(_DONE)

    def _ended(self, parts: list[bytes], payload: bytes) -> Taken:
        try:
            report = DecodeReport.model_validate_json(payload)
        except ValidationError:
            return _broken(parts, "a malformed report")
        if not self._has_begun:
            return _broken(parts, "a report without an answer")
        content = b"".join((*parts, self._held))
        return Taken(content, has_progress=True, end=life.StreamEnded(), report=report)

    def _failed(self, parts: list[bytes], payload: bytes) -> Taken:
        try:
            failure = DecodeFailure.model_validate_json(payload)
        except ValidationError:
            return _broken(parts, "a malformed failure")
        kind: _Failure = _EVENTS.get(failure.code, life.DecodeWorkerLost)
        if self._has_begun and kind in _BEFORE_OUTPUT:
            kind = life.DecodeWorkerLost
        return Taken(b"".join(parts), end=kind(), failure=failure.message)


def _broken(parts: list[bytes], what: str) -> Taken:
    return Taken(
        b"".join(parts),
        end=life.DecodeWorkerLost(),
        failure=f"the decode worker sent {what}",
    )
