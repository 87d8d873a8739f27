"""Clients and what they saw; and the edge of a router that serves them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sim.network import Process, Socket
from sim.oracle import BLOCK, Answer, expected, hashes_of

from controlplane.domain.tokens import TokenIds
from controlplane.errors import PrfaasError
from controlplane.router.dispatcher import Dispatcher
from controlplane.router.incoming import Incoming
from controlplane.router.sink import ClientLeftError
from controlplane.wire import OutputShape, Sampling

#: Unread messages after which a server waits for its client.
_WINDOW = 8


@dataclass(slots=True, kw_only=True)
class Asked:
    """One request of a client: what it asks, how it behaves, and what it saw."""

    request_id: str
    at_s: float
    router: str
    scope: str
    tokens: TokenIds
    output_tokens_max: int
    stop: tuple[str, ...] = ()
    is_stream: bool = True
    #: Leaves so long after it asked; None stays.
    leaves_after_s: float | None = None
    #: Waits so long before it reads each part.
    reads_every_s: float = 0.0
    idempotency_key: str | None = None
    deadline_s: float = 30.0

    #: What it saw.
    body: bytearray = field(default_factory=bytearray)
    began_s: float | None = None
    ended_s: float | None = None
    #: "done", "error", "status", "broken", "left", or "" while it waits.
    end: str = ""
    code: str = ""
    #: More ends than one, which may never be.
    further_ends: list[str] = field(default_factory=list)

    @property
    def expected(self) -> Answer:
        """What it must get."""
        return expected(
            self.scope, self.tokens, output_tokens_max=self.output_tokens_max, stop=self.stop
        )

    @property
    def digest(self) -> str:
        """What is asked, for idempotency and quarantine."""
        return f"{self.scope}-{self.tokens.data.hex()[-40:]}-{len(self.tokens)}"


async def ask(process: Process, asked: Asked, told: Callable[[str], None]) -> None:
    """Send a request and read its answer to the end, or leave."""
    loop = process.network.loop
    target = process.network.processes.get(asked.router)
    if target is None or not target.is_alive:
        asked.end, asked.ended_s = "broken", loop.now_s
        return
    sock = process.network.connect(process, asked.router, "http", asked)
    try:
        async with asyncio.timeout(asked.leaves_after_s):
            await _read(sock, asked)
    except TimeoutError:
        asked.end = "left"
    except ConnectionError:
        asked.end = asked.end or "broken"
    finally:
        sock.close()
    asked.ended_s = loop.now_s
    told(f"client: {asked.end} {asked.code}".rstrip())


async def _read(sock: Socket, asked: Asked) -> None:
    loop = asyncio.get_running_loop()
    await sock.opened
    while (message := await sock.receive()) is not None:
        kind, payload = message
        if kind == "begin":
            asked.began_s = loop.time()
        elif kind == "data":
            asked.body += payload
        else:
            if asked.end:
                asked.further_ends.append(f"{kind} {payload}")
            asked.end, asked.code = kind, payload
        if asked.reads_every_s:
            await asyncio.sleep(asked.reads_every_s)


class _SimSink:
    """The client's side of an answer."""

    def __init__(self, sock: Socket, write_timeout_s: float) -> None:
        self._socket = sock
        self._write_timeout_s = write_timeout_s
        self._is_begun = False

    @property
    def is_begun(self) -> bool:
        return self._is_begun

    async def begin(self, headers: Mapping[str, str]) -> None:
        assert not self._is_begun, "begun twice"
        self._is_begun = True
        await self._send("begin", dict(headers))

    async def write(self, data: bytes) -> None:
        await self._send("data", bytes(data))

    async def fail(self, error: PrfaasError) -> None:
        await self._send("error", error.code)

    async def _send(self, kind: str, payload: Any) -> None:
        try:
            async with asyncio.timeout(self._write_timeout_s):
                while self._socket.unread > _WINDOW:  # noqa: ASYNC110 - what TCP's window does
                    await asyncio.sleep(0.02)
            self._socket.send((kind, payload))
        except (ConnectionError, TimeoutError) as error:
            raise ClientLeftError("the client left") from error


def serve_clients(
    process: Process,
    dispatcher: Dispatcher,
    clock: Callable[[], float],
    write_timeout_s: float,
) -> None:
    """Take requests, as `edge/server.py` hands them on."""

    async def serve(sock: Socket, asked: Asked) -> None:
        sink = _SimSink(sock, write_timeout_s)
        try:
            flight = await dispatcher.dispatch(_incoming(asked, clock()), sink)
        except PrfaasError as error:
            _quietly(sock, ("status", error.code))
            return
        if sink.is_begun:
            if flight.error is None:
                _quietly(sock, ("done", ""))
        else:
            code = flight.error.code if flight.error is not None else "no_answer"
            _quietly(sock, ("status", code))

    process.services["http"] = serve


def _quietly(sock: Socket, message: tuple[str, str]) -> None:
    if not sock.is_broken:
        sock.send(message)


def _incoming(asked: Asked, now_s: float) -> Incoming:
    covered = asked.tokens.head(len(asked.tokens) - 1)
    return Incoming(
        request_id=asked.request_id,
        decision_id=f"dec-{asked.request_id}",
        client_request_id=None,
        tokens=asked.tokens,
        hashes=hashes_of(asked.scope, covered),
        block_tokens=BLOCK,
        scope=asked.scope,
        sampling=Sampling(
            temperature=0, output_tokens_max=asked.output_tokens_max, stop=asked.stop
        ),
        output=OutputShape(
            kind="completion",
            response_id=asked.request_id,
            model="sim",
            created=0,
            is_stream=asked.is_stream,
        ),
        accepted_s=now_s,
        parsed_s=now_s,
        at=1.7e9,
        deadline_s=now_s + asked.deadline_s,
        idempotency_key=asked.idempotency_key,
        digest=asked.digest,
        tenant=asked.scope,
    )


@dataclass(frozen=True, slots=True)
class Seen:
    """An answer as its client reads it."""

    text: str
    finish_reason: str | None
    #: It ended as a whole answer ends.
    is_whole: bool


def read_answer(asked: Asked) -> Seen:
    """
    The text of a body.

    Raises:
        ValueError: It is none.
    """
    body = bytes(asked.body).decode()
    if not asked.is_stream:
        if not body:
            return Seen("", None, is_whole=False)
        choice = json.loads(body)["choices"][0]
        return Seen(choice["text"], choice["finish_reason"], is_whole=True)
    text, reason, is_whole = "", None, False
    for event in body.split("\n\n")[:-1]:
        data = event.removeprefix("data: ")
        if is_whole:
            raise ValueError("events follow the end")
        if data == "[DONE]":
            is_whole = True
            continue
        for choice in json.loads(data)["choices"]:
            text += choice.get("text", "")
            reason = choice["finish_reason"] or reason
    return Seen(text, reason, is_whole)
