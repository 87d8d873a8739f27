"""One request as a careful client sends it: bounded, retried only where the API says so."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import aiohttp

from chaos.history import Attempt, Request
from chaos.pool import Item

#: Attempts at one request; refused connections do not count, time bounds them.
_ATTEMPTS_MAX: Final = 6
#: Before another router is tried after a refused connection.
_REFUSED_PAUSE_S: Final = 0.1
#: A client waits as long as it is told, but not longer than this.
_RETRY_AFTER_MAX_S: Final = 5.0
_PATH: Final = {"completion": "/v1/completions", "chat": "/v1/chat/completions"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a client waits."""

    #: For a whole request, all attempts included.
    total_s: float = 60.0
    #: It hangs up this long after sending; None to stay.
    leave_s: float | None = None


class Client:
    """Sends requests to routers in turn."""

    def __init__(self, routers: Sequence[tuple[str, str]], model: str) -> None:
        """
        A client; use as `async with`.

        Args:
            routers: Names and URLs.
            model: Name of the model to ask for.
        """
        self._routers = tuple(routers)
        self._model = model
        self._turn = 0
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None),
            read_bufsize=1 << 20,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def send(
        self, request: Request, item: Item, patience: Patience, *, first: int | None = None
    ) -> None:
        """
        Send a request until it is answered, refused for good, or patience ends.

        Args:
            request: Its attempts are filled in.
            item: What to ask.
            patience: How long.
            first: The router to begin with; None for the next one.
        """
        turn = self._turn if first is None else first
        self._turn += 1
        give_up_s = time.monotonic() + patience.total_s
        while True:
            name, url = self._routers[turn % len(self._routers)]
            attempt = Attempt(router=name, sent_s=time.monotonic())
            request.attempts.append(attempt)
            pause_s = await self._attempt(request, attempt, item, url, patience, give_up_s)
            attempt.ended_s = time.monotonic()
            if attempt.end == "refused":
                # Not sent: nothing was accepted, and the attempt is no part of the story.
                if attempt.ended_s + _REFUSED_PAUSE_S >= give_up_s:
                    return
                request.attempts.pop()
                pause_s = _REFUSED_PAUSE_S
            if pause_s is None or len(request.attempts) >= _ATTEMPTS_MAX:
                return
            if time.monotonic() + pause_s >= give_up_s:
                return
            await asyncio.sleep(pause_s)
            turn += 1

    async def send_once(self, request: Request, item: Item, patience: Patience) -> None:
        """Send a request to the first router, and take whatever comes."""
        name, url = self._routers[0]
        attempt = Attempt(router=name, sent_s=time.monotonic())
        request.attempts.append(attempt)
        give_up_s = attempt.sent_s + patience.total_s
        await self._attempt(request, attempt, item, url, patience, give_up_s)
        attempt.ended_s = time.monotonic()

    async def _attempt(
        self,
        request: Request,
        attempt: Attempt,
        item: Item,
        url: str,
        patience: Patience,
        give_up_s: float,
    ) -> float | None:
        """Perform an attempt; seconds after which another one is worth while, or None."""
        leave_s = None if patience.leave_s is None else attempt.sent_s + patience.leave_s
        until_s = give_up_s if leave_s is None else min(give_up_s, leave_s)
        try:
            async with asyncio.timeout(until_s - time.monotonic()):
                return await self._exchange(request, attempt, item, url)
        except TimeoutError:
            attempt.end = "timeout" if until_s == give_up_s else "left"
            return None
        except aiohttp.ClientConnectorError:
            attempt.end = "refused"
            return None
        except (aiohttp.ClientError, OSError) as error:
            attempt.end, attempt.code = "broken", type(error).__name__
            # A key makes it safe to ask again: the first one is not run beside the second.
            return _REFUSED_PAUSE_S if request.key else None

    async def _exchange(
        self, request: Request, attempt: Attempt, item: Item, url: str
    ) -> float | None:
        headers = {"Idempotency-Key": request.key} if request.key else {}
        if request.tenant:
            headers["Authorization"] = f"Bearer {request.tenant}"
        body = item.body(self._model, is_stream=request.is_stream)
        async with self._session.post(url + _PATH[item.kind], json=body, headers=headers) as answer:
            attempt.headers_s = time.monotonic()
            attempt.status = answer.status
            attempt.request_id = answer.headers.get("x-request-id", "")
            attempt.prefill = answer.headers.get("x-prfaas-prefill", "")
            attempt.decode = answer.headers.get("x-prfaas-decode", "")
            if answer.status != 200:
                return await _failed(attempt, answer)
            if request.is_stream:
                await _read_stream(attempt, answer)
            else:
                _read_whole(attempt, await answer.json())
            return None


async def _failed(attempt: Attempt, answer: aiohttp.ClientResponse) -> float | None:
    """An error instead of an answer; how long the API says to wait, if a retry may help."""
    attempt.end = "error"
    try:
        attempt.code = json.loads(await answer.read())["error"]["code"]
    except (ValueError, KeyError, TypeError):
        attempt.code = "not_json"
    after = answer.headers.get("retry-after")
    return None if after is None else min(float(after), _RETRY_AFTER_MAX_S)


async def _read_stream(attempt: Attempt, answer: aiohttp.ClientResponse) -> None:
    """Server-sent events to their end."""
    attempt.end = "silent"
    is_error = is_done = False
    async for raw in answer.content:
        line = raw.rstrip(b"\r\n")
        if line == b"event: error":
            is_error = True
        elif line == b"data: [DONE]":
            is_done = True
        elif line.startswith(b"data: "):
            event = json.loads(line[6:])
            if is_error:
                attempt.end, attempt.code = "error", event["error"]["code"]
            else:
                _take(attempt, event)
    if is_done and not is_error:
        attempt.end = "done"
    elif is_done:
        # Never both: an answer that failed must not look like a whole one.
        attempt.end, attempt.code = "silent", "done_after_error"


def _take(attempt: Attempt, event: dict[str, Any]) -> None:
    usage = event.get("usage")
    if usage:
        attempt.output_tokens = usage["completion_tokens"]
    for choice in event.get("choices", ()):
        text = choice.get("text") or choice.get("delta", {}).get("content") or ""
        if text:
            attempt.pieces.append((time.monotonic(), text))
        attempt.finish_reason = choice.get("finish_reason") or attempt.finish_reason


def _read_whole(attempt: Attempt, document: dict[str, Any]) -> None:
    choice = document["choices"][0]
    text = choice["text"] if "text" in choice else choice["message"]["content"]
    attempt.pieces.append((time.monotonic(), text or ""))
    attempt.finish_reason = choice["finish_reason"]
    attempt.output_tokens = document["usage"]["completion_tokens"]
    attempt.end = "done"
