"""A pair of SGLang servers for tests: strict about rooms, and stuck as real ones get stuck."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from aiohttp import web
from fakes.vllm import said_after

from controlplane.serving import listen

_ROOMS: int = 1 << 63
_SAMPLING = frozenset({"temperature", "top_p", "max_new_tokens", "sampling_seed"})


@dataclass
class Rooms:
    """Where the two legs of a request meet: body of each side, by room."""

    sides: dict[tuple[int, str], asyncio.Future[dict[str, Any]]] = field(default_factory=dict)
    used: set[tuple[int, str]] = field(default_factory=set)

    def side(self, room: int, mode: str) -> asyncio.Future[dict[str, Any]]:
        """The body of one side, once it has come."""
        loop = asyncio.get_running_loop()
        return self.sides.setdefault((room, mode), loop.create_future())


def leg_faults(body: dict[str, Any], bootstrap_port: int | None) -> list[str]:
    """Say what is wrong with a request of either side, field by field; from the protocol alone."""
    faults = []
    room = body.get("bootstrap_room")
    if not isinstance(room, int) or not 0 <= room < _ROOMS:
        faults.append(f"bootstrap_room is {room!r}, expected an integer below 2**63")
    if not isinstance(body.get("bootstrap_host"), str) or not body["bootstrap_host"]:
        faults.append("bootstrap_host is missing")
    if body.get("bootstrap_port") != bootstrap_port:
        faults.append(f"bootstrap_port is {body.get('bootstrap_port')!r}")
    ids = body.get("input_ids")
    if not isinstance(ids, list) or not all(type(one) is int for one in ids):
        faults.append("input_ids is no list of integers")
    unknown = sorted(set(body.get("sampling_params", {})) - _SAMPLING)
    return faults + [f"sampling_params.{name} is unknown" for name in unknown]


@dataclass
class FakeSglang:
    """One server; set a fault while it runs."""

    rooms: Rooms
    mode: Literal["prefill", "decode", "null"]
    model: str = "tiny"
    context_tokens: int = 4096
    bootstrap_port: int | None = 8998
    page_size: object = 64
    has_metrics: bool = True
    is_sglang: bool = True
    #: Events repeat what came before.
    repeats: bool = True
    fails: bool = False
    bodies: list[dict[str, Any]] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    url: str = ""

    def application(self) -> web.Application:
        """Its routes."""
        app = web.Application()
        if self.is_sglang:
            app.router.add_get("/server_info", self._info)
        app.router.add_get("/v1/models", self._models)
        if self.has_metrics:
            app.router.add_get("/metrics", self._metrics)
        app.router.add_post("/generate", self._generate)
        return app

    async def _info(self, request: web.Request) -> web.Response:
        del request
        said = {
            "version": "0.5.23",
            "disaggregation_mode": self.mode,
            "disaggregation_bootstrap_port": self.bootstrap_port,
            "disaggregation_transfer_backend": "mooncake",
            "page_size": self.page_size,
            "kv_cache_dtype": "auto",
            "a_field_of_next_year": [1],
        }
        return web.json_response(said)

    async def _models(self, request: web.Request) -> web.Response:
        del request
        entry = {"id": self.model, "max_model_len": self.context_tokens}
        return web.json_response({"data": [entry]})

    async def _metrics(self, request: web.Request) -> web.Response:
        del request
        names = ("num_running_reqs", "num_queue_reqs", "token_usage", "prompt_tokens_total")
        return web.Response(text="".join(f'sglang:{name}{{m="x"}} 0.0\n' for name in names))

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        if faults := leg_faults(body, 8998):
            self.violations += faults
            return web.json_response({"error": {"message": "; ".join(faults)}}, status=400)
        room = body["bootstrap_room"]
        if self.fails:
            return web.json_response({"error": {"message": "out of memory"}}, status=500)
        if (room, self.mode) in self.rooms.used:
            self.violations.append("the room is used")
        self.rooms.used.add((room, self.mode))
        self.rooms.side(room, self.mode).set_result(body)
        try:
            # Neither side can finish alone: a real one waits for minutes.
            other = await self.rooms.side(room, "decode" if self.mode == "prefill" else "prefill")
        except asyncio.CancelledError:
            self.aborted.append(body["rid"])
            raise
        if other["input_ids"] != body["input_ids"]:
            self.violations.append("the two sides of the room have different prompts")
        if self.mode == "prefill":
            meta = {"cached_tokens": 64, "finish_reason": {"type": "length"}}
            return web.json_response({"text": "", "output_ids": [], "meta_info": meta})
        return await self._stream(request, body)

    async def _stream(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        count = body["sampling_params"]["max_new_tokens"]
        said = said_after(body["input_ids"], count)
        for number in range(1, count + 1):
            ids = said[:number] if self.repeats else said[number - 1 : number]
            reason = {"type": "length", "length": count} if number == count else None
            meta = {"completion_tokens": number, "finish_reason": reason}
            event = {"text": "x", "output_ids": ids, "meta_info": meta}
            await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        return response


@asynccontextmanager
async def an_sglang(
    rooms: Rooms, mode: Literal["prefill", "decode", "null"], **settings: Any
) -> AsyncIterator[FakeSglang]:
    """A server on a free port; it may have been sent nothing that is wrong."""
    fake = FakeSglang(rooms, mode, **settings)
    async with AsyncExitStack() as stack:
        fake.url = await listen(stack, fake.application(), "127.0.0.1", 0)
        yield fake
    assert not fake.violations
