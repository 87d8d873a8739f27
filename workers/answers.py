"""One answer: from output tokens to frames for the router, from the start or from the middle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from controlplane.tokenizing import Detokenizer
from controlplane.wire import DecodeJob, FrameKind, pack_output
from workers.kv.timing import Clock
from workers.output import AnswerWriter, FinishReason
from workers.text import TextStream

#: Tokens without certain text wait for company, but not more than so many ...
_PENDING_TOKENS_MAX: Final = 32
#: ... nor longer than this, seconds: what the router has not got is computed again elsewhere.
_PENDING_S_MAX: Final = 0.5


class Send(Protocol):
    """Sends frames to the router, those of one call together."""

    async def __call__(self, *frames: tuple[FrameKind, bytes]) -> None:
        """
        Send them.

        Raises:
            ConnectionError: The router has gone, or does not read.
        """


class Answer:
    """
    The text, the bytes and the frames of one job.

    What the client has been sent is a function of the tokens that `OUTPUT` frames have carried,
    and of nothing else: the bytes of a frame are those that its tokens made certain, and what only
    the end makes certain comes with the end. So whoever knows the tokens can go on with the bytes.
    """

    def __init__(
        self,
        job: DecodeJob,
        *,
        prompt_tokens: int,
        send: Send,
        clock: Clock,
        detokenizer: Detokenizer,
    ) -> None:
        """
        Args:
            job: What is asked for.
            prompt_tokens: Of the prompt alone, without resumed output.
            send: Takes the frames.
            clock: Monotonic seconds.
            detokenizer: New, of the model.
        """
        self._prompt_tokens = prompt_tokens
        self._output_tokens_max = job.sampling.output_tokens_max
        self._wants_tokens = job.wants_tokens
        self._text = TextStream(job.sampling.stop, detokenizer)
        self._writer = AnswerWriter(job.output, prompt_tokens=prompt_tokens)
        self._send = send
        self._clock = clock
        #: Tokens that no frame has carried yet.
        self._pending: list[int] = []
        self._sent_s = clock()
        self.output_tokens = 0

    def __repr__(self) -> str:
        return f"<Answer {self.output_tokens} of {self._output_tokens_max} tokens>"

    @property
    def tokens_left(self) -> int:
        """Tokens it may still have."""
        return self._output_tokens_max - self.output_tokens

    def resume(self, tokens: Sequence[int]) -> FinishReason | None:
        """
        Take the tokens that another worker has put out; their bytes have been sent and are dropped.

        Returns:
            How the answer ends if they are all of it.
        """
        for token in tokens:
            self._write(token)
            if self._text.is_stopped:
                return "stop"
        return "length" if tokens and self.tokens_left <= 0 else None

    async def push(self, token: int) -> bool:
        """
        Take the next token and send what it makes certain.

        Returns:
            Whether it completed a stop string.

        Raises:
            ConnectionError: The router has gone, or does not read.
        """
        content = self._write(token)
        if not self._wants_tokens:
            if content:
                await self._send((FrameKind.CONTENT, content))
            return self._text.is_stopped
        self._pending.append(token)
        if content or self._is_due():
            tokens, self._pending = self._pending, []
            self._sent_s = self._clock()
            await self._send((FrameKind.OUTPUT, pack_output(tokens, content)))
        return self._text.is_stopped

    def count_end(self) -> None:
        """An end token came: it is counted, and is no part of the text."""
        self.output_tokens += 1

    async def end(self, finish_reason: FinishReason, *, cached_tokens: int) -> bytes:
        """
        The last bytes of the answer, for a frame that goes together with the report.

        Text that was held back belongs to them where the router keeps tokens; without, it has a
        frame of its own as it always had.

        Raises:
            ConnectionError: The router has gone, or does not read.
        """
        text = self._text.finish()
        held = self._writer.delta(text) if text else b""
        if held and not self._wants_tokens:
            await self._send((FrameKind.CONTENT, held))
            held = b""
        return held + self._writer.end(
            finish_reason,
            output_tokens=self.output_tokens,
            # A resumed prefill may find output in its cache, which is no prompt.
            cached_tokens=min(cached_tokens, self._prompt_tokens),
        )

    def _write(self, token: int) -> bytes:
        self.output_tokens += 1
        text = self._text.push(token)
        return self._writer.delta(text) if text else b""

    def _is_due(self) -> bool:
        if len(self._pending) >= _PENDING_TOKENS_MAX:
            return True
        return self._clock() - self._sent_s >= _PENDING_S_MAX
