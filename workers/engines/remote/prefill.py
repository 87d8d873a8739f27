"""One prefill at an engine server: a request whose answer, or whose beginning, is the handle."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import Any

from controlplane.errors import WorkerLost
from workers.engine import KvPiece
from workers.engines.remote.handle import ORIGIN, PARAMETERS, pack_handle
from workers.engines.remote.http import EngineHttp
from workers.engines.remote.legs import Handoff, Prompt
from workers.engines.remote.turns import Turns


class RemotePrefill:
    """A `PrefillRun`. Closing its pieces closes the request, which engines take for an abort."""

    def __init__(
        self,
        http: EngineHttp,
        handoff: Handoff,
        prompt: Prompt,
        turns: Turns,
        *,
        origin: str,
        handle_bytes: int,
        covered_tokens: int,
        on_begin: Callable[[RemotePrefill], None],
        on_end: Callable[[RemotePrefill], None],
    ) -> None:
        """
        Args:
            http: To the server.
            handoff: The connector's rules.
            prompt: All of it.
            turns: Of the server: who waits for whom.
            origin: Names this life of the server, for those who may ask it to decode too.
            handle_bytes: Size of the one piece.
            covered_tokens: Tokens that the piece stands for.
            on_begin: Called when the request is sent.
            on_end: Called once after that, however it ends.
        """
        self._http = http
        self._handoff = handoff
        self._prompt = prompt
        self._turns = turns
        self._origin = origin
        self._handle_bytes = handle_bytes
        self._covered_tokens = covered_tokens
        self._on_begin = on_begin
        self._on_end = on_end
        self.cached_tokens = 0
        self.queue_s = 0.0
        self.compute_s = 0.0

    def __repr__(self) -> str:
        return f"<RemotePrefill of {self._covered_tokens} tokens>"

    @property
    def scope(self) -> str:
        """Of its prompt."""
        return self._prompt.scope

    @property
    def tokens_left(self) -> int:
        """Tokens that the server may still have to compute for it."""
        return self._covered_tokens

    async def pieces(self) -> AsyncGenerator[KvPiece, None]:
        """The handle: after the request, or before it with a connector that pairs."""
        turn = self._turns.take()
        self._on_begin(self)
        try:
            handle = self._handoff.begin()
            if self._handoff.is_paired:
                yield self._piece(handle)
            leg = self._handoff.prefill_leg(self._prompt, handle)
            answer = await self._http.post(leg.path, leg.body, leg.headers)
            self.queue_s, self.compute_s = turn.times_s()
            self.cached_tokens = min(_cached_tokens(answer), self._covered_tokens)
            if not self._handoff.is_paired:
                yield self._piece(self._handle(answer))
        finally:
            turn.end()
            self._on_end(self)

    def _handle(self, answer: dict[str, Any]) -> dict[str, Any]:
        try:
            return self._handoff.handle(answer)
        except ValueError as error:
            raise WorkerLost(str(error)) from error

    def _piece(self, handle: dict[str, Any]) -> KvPiece:
        end = self._covered_tokens
        content = {ORIGIN: self._origin, PARAMETERS: handle}
        data = pack_handle(content, size_bytes=self._handle_bytes)
        return KvPiece(group="state", token_start=end, token_end=end, data=data)


def _cached_tokens(answer: dict[str, Any]) -> int:
    """Prompt tokens that the server had in its prefix cache; 0 where it does not tell."""
    usage = answer.get("usage") or {}
    details = usage.get("prompt_tokens_details") or {}
    meta = answer.get("meta_info") or {}
    found = details.get("cached_tokens") or meta.get("cached_tokens") or 0
    return found if isinstance(found, int) and found > 0 else 0
