"""A vLLM server for tests: strict about what it is sent, with faults that a real one cannot be made to show."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from aiohttp import web
from fakes.mooncake_legs import mooncake_faults
from fakes.nixl_legs import decode_faults, prefill_faults

from controlplane.serving import listen
from controlplane.tokenizing import Tokenizer

BLOCK = 128
BYTES_PER_TOKEN = 2048
LEASE_S = 30.0


def said_after(tokens: Sequence[int], count: int) -> list[int]:
    """The output of this model: a function of all tokens before."""
    return list(_said_after(tokens, count))


def _said_after(tokens: Sequence[int], count: int) -> Iterator[int]:
    prompt, output = sum(tokens), 0
    for number in range(count):
        token = (prompt + 31 * output + number) % 1000 + 300
        output += token
        yield token


@dataclass
class NixlWorld:
    """What all servers of a test know of each other's KV: answers of prefills, by request."""

    answered: dict[str, tuple[dict[str, Any], list[int]]] = field(default_factory=dict)
    uses: dict[str, int] = field(default_factory=dict)
    #: Of Mooncake: prompts that were prefilled, by transfer id, and who waits for them.
    transfers: dict[str, asyncio.Future[tuple[str, list[int]]]] = field(default_factory=dict)

    def transfer(self, transfer_id: str) -> asyncio.Future[tuple[str, list[int]]]:
        """Where the two legs of a transfer meet: engine id and prompt of the prefill."""
        return self.transfers.setdefault(transfer_id, asyncio.get_running_loop().create_future())


@dataclass
class FakeVllm:
    """One server; set a fault while it runs."""

    world: NixlWorld
    model: str = "tiny"
    version: object = "0.32.0"
    context_tokens: int = 4096
    block: int = BLOCK
    has_connector: bool = True
    has_metrics: bool = True
    api_key: str = ""
    started_s: float = 1000.0
    #: Faults.
    recomputes: bool = False
    fails_the_pull: bool = False
    status: int = 200
    #: Seconds of prefill for each token, and of a step for each stream that runs; so many may.
    prefill_s_per_token: float = 0.0
    step_s_per_stream: float = 0.0
    slots: int = 256
    #: Prompt tokens of requests that nobody here sent, counted with each that somebody did.
    strangers_tokens: int = 0
    #: Seconds of any prefill for another server, and from the start of a decode to its first token.
    prefill_s: float = 0.0
    first_token_s: float = 0.0
    #: Reads text and chats, and writes text; without one, requests bring tokens.
    tokenizer: Tokenizer | None = None
    dies_after: int | None = None
    #: Requests wait here before anything is answered; None lets them through.
    gate: asyncio.Event | None = None
    #: What was asked of it, what was wrong with it, and who left before the answer.
    bodies: list[dict[str, Any]] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    #: `X-Request-Id` of each leg, by the kind of leg.
    request_ids: dict[str, list[str]] = field(default_factory=lambda: {"prefill": [], "decode": []})
    sources: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(
            ("local_compute", "local_cache_hit", "external_kv_transfer"), 0
        )
    )
    moved_bytes: int = 0
    running: int = 0
    waiting: int = 0
    url: str = ""

    def application(self) -> web.Application:
        """Its routes."""
        app = web.Application(middlewares=[self._guard])
        app.router.add_get("/version", self._version)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/query", self._query)
        app.router.add_post("/tokenize", self._tokenize)
        app.router.add_get("/health", self._health)
        app.router.add_post("/v1/completions", self._complete)
        app.router.add_post("/v1/chat/completions", self._complete)
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if self.api_key and request.headers.get("authorization") != f"Bearer {self.api_key}":
            return web.json_response({"error": "Unauthorized"}, status=401)
        if self.status != 200 and request.method == "POST":
            return _error(self.status, "Internal server error")
        response: web.StreamResponse = await handler(request)
        return response

    async def _version(self, request: web.Request) -> web.Response:
        del request
        return web.json_response({"version": self.version})

    async def _health(self, request: web.Request) -> web.Response:
        del request
        return web.Response()

    async def _models(self, request: web.Request) -> web.Response:
        del request
        entry = {"id": self.model, "object": "model", "max_model_len": self.context_tokens}
        return web.json_response({"object": "list", "data": [entry]})

    async def _metrics(self, request: web.Request) -> web.Response:
        del request
        if not self.has_metrics:
            return web.Response(text="# nothing\n")
        engine = 'engine="0",model_name="tiny"'
        lines = [
            f'vllm:cache_config_info{{block_size="{self.block}",cache_dtype="auto",num_gpu_blocks="256"}} 1.0',
            f"vllm:num_requests_running{{{engine}}} {float(self.running)}",
            f"vllm:num_requests_waiting{{{engine}}} {float(self.waiting)}",
            f"process_start_time_seconds {self.started_s}",
            *(
                f'vllm:prompt_tokens_by_source_total{{{engine},source="{name}"}} {count}.0'
                for name, count in self.sources.items()
            ),
        ]
        if self.has_connector:
            lines += [
                f"vllm:nixl_bytes_transferred_sum{{{engine}}} {float(self.moved_bytes)}",
                f"vllm:nixl_xfer_time_seconds_sum{{{engine}}} {self.moved_bytes / 1e9}",
            ]
        return web.Response(text="\n".join(lines) + "\n")

    @property
    def engine_id(self) -> str:
        """Of this life."""
        return f"engine-{id(self)}-{self.started_s}"

    async def _query(self, request: web.Request) -> web.Response:
        """Mooncake's bootstrap; on a port of its own in a real server."""
        del request
        return web.json_response({"0": {"engine_id": self.engine_id}} if self.has_connector else {})

    async def _tokenize(self, request: web.Request) -> web.Response:
        text = (await request.json())["prompt"]
        if self.tokenizer is not None:
            return web.json_response({"tokens": self.tokenizer.encode_text(text).to_list()})
        return web.json_response({"tokens": list(text.encode())})

    def _read(self, body: dict[str, Any]) -> None:
        """Put tokens where the text was."""
        if self.tokenizer is None:
            return
        if "messages" in body:
            messages = [(one["role"], one["content"]) for one in body["messages"]]
            body["prompt"] = self.tokenizer.encode_chat(messages).to_list()
        elif isinstance(body["prompt"], str):
            body["prompt"] = self.tokenizer.encode_text(body["prompt"]).to_list()

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(dict(body))
        self._read(body)
        name = request.headers.get("X-Request-Id", "")
        try:
            if self.gate is not None:
                await self.gate.wait()
        except asyncio.CancelledError:
            self.aborted.append(name)
            raise
        parameters = body.get("kv_transfer_params") or {}
        if "transfer_id" in parameters:
            return await self._paired(request, body, parameters)
        if parameters.get("do_remote_decode"):
            self.request_ids["prefill"].append(name)
            try:
                await asyncio.sleep(self.prefill_s)
            except asyncio.CancelledError:
                self.aborted.append(name)
                raise
            return self._prefill(body)
        self.request_ids["decode"].append(name)
        return await self._decode(request, body, parameters)

    async def _paired(
        self, request: web.Request, body: dict[str, Any], parameters: dict[str, Any]
    ) -> web.StreamResponse:
        """A leg of Mooncake: decode waits for its prefill, prefill for nobody."""
        if faults := mooncake_faults(body, request.headers.get("X-data-parallel-rank")):
            return self._refuse(faults)
        met = self.world.transfer(parameters["transfer_id"])
        if parameters["do_remote_decode"]:
            met.set_result((self.engine_id, body["prompt"]))
            self.sources["local_compute"] += len(body["prompt"])
            return web.json_response({"choices": [], "kv_transfer_params": None})
        try:
            engine_id, prompt = await met
        except asyncio.CancelledError:
            self.aborted.append(request.headers.get("X-Request-Id", ""))
            raise
        if (engine_id, prompt) != (parameters["remote_engine_id"], body["prompt"]):
            return self._refuse(["the legs of the transfer differ in engine or prompt"])
        return await self._stream(request, body, is_moved=not self.recomputes)

    def _prefill(self, body: dict[str, Any]) -> web.StreamResponse:
        if faults := prefill_faults(body):
            return self._refuse(faults)
        tokens = body["prompt"]
        self.sources["local_compute"] += len(tokens)
        answer: dict[str, Any] = {
            "choices": [{"index": 0, "finish_reason": "length", "text": "x"}],
            "usage": {"prompt_tokens": len(tokens), "prompt_tokens_details": {"cached_tokens": 0}},
        }
        if self.has_connector:
            request_id = f"cmpl-{len(self.world.answered)}"
            answer["kv_transfer_params"] = {
                "do_remote_prefill": True,
                "do_remote_decode": False,
                "remote_block_ids": [list(range(1, 2 + len(tokens) // self.block))],
                "remote_engine_id": f"engine-{id(self)}",
                "remote_request_id": request_id,
                "remote_host": "0.0.0.0",
                "remote_port": 5600,
                "a_field_of_next_year": {"nested": [None, 1.5]},
            }
            self.world.answered[request_id] = (answer["kv_transfer_params"], tokens)
        return web.json_response(answer)

    async def _decode(
        self, request: web.Request, body: dict[str, Any], parameters: dict[str, Any]
    ) -> web.StreamResponse:
        tokens = body["prompt"]
        if parameters:
            request_id = parameters.get("remote_request_id", "")
            answered, prefilled = self.world.answered.get(request_id, ({}, []))
            faults = decode_faults(
                parameters, answered, prompt=tokens, prefilled=prefilled, age_s=0.0,
                lease_s=LEASE_S, uses=self.world.uses.get(request_id, 0),
            )  # fmt: skip
            if faults:
                return self._refuse(faults)
            self.world.uses[request_id] = 1
        return await self._stream(request, body, is_moved=bool(parameters) and not self.recomputes)

    async def _stream(
        self, request: web.Request, body: dict[str, Any], *, is_moved: bool
    ) -> web.StreamResponse:
        tokens = body["prompt"]
        if not body.get("stream"):
            return await self._whole(request, body, is_moved=is_moved)
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        if "kv_transfer_params" in body and self.fails_the_pull:
            await response.write(_event({"error": {"message": "KV load failed", "code": 500}}))
            return response
        self.sources["external_kv_transfer" if is_moved else "local_compute"] += len(tokens)
        self.sources["local_compute"] += self.strangers_tokens
        self.moved_bytes += len(tokens) * BYTES_PER_TOKEN * is_moved
        await response.write(b": a comment\n\n")
        async with self._slot(len(tokens)):
            try:
                return await self._tokens(request, response, body)
            except (asyncio.CancelledError, ConnectionError):
                self.aborted.append(request.headers.get("X-Request-Id", ""))
                raise

    async def _whole(
        self, request: web.Request, body: dict[str, Any], *, is_moved: bool
    ) -> web.Response:
        """All of the answer at once."""
        tokens, count = body["prompt"], _output_tokens(body)
        self.sources["external_kv_transfer" if is_moved else "local_compute"] += len(tokens)
        self.moved_bytes += len(tokens) * BYTES_PER_TOKEN * is_moved
        async with self._slot(len(tokens)):
            try:
                await asyncio.sleep(self.first_token_s + count * self.step_s_per_stream)
            except asyncio.CancelledError:
                self.aborted.append(request.headers.get("X-Request-Id", ""))
                raise
        text = self._text(said_after(tokens, count))
        said = {"message": {"role": "assistant", "content": text}}
        choice = {"index": 0, "finish_reason": "length"}
        choice |= said if "messages" in body else {"text": text}
        usage = {"prompt_tokens": len(tokens), "completion_tokens": count}
        return web.json_response({"model": self.model, "choices": [choice], "usage": usage})

    def _text(self, tokens: Sequence[int]) -> str:
        if self.tokenizer is None:
            return "x" * len(tokens)
        detokenizer = self.tokenizer.detokenizer()
        return "".join(detokenizer.push(token) for token in tokens) + detokenizer.finish()

    async def _tokens(
        self, request: web.Request, response: web.StreamResponse, body: dict[str, Any]
    ) -> web.StreamResponse:
        tokens, count = body["prompt"], _output_tokens(body)
        for number, token in enumerate(_said_after(tokens, count), 1):
            await asyncio.sleep(
                self.step_s_per_stream * self.running if number > 1 else self.first_token_s
            )
            if self.dies_after is not None and number > self.dies_after:
                assert request.transport is not None
                request.transport.close()
                return response
            reason = "length" if number == count else None
            choice = {"index": 0, "token_ids": [token], "finish_reason": reason}
            text = self._text([token])
            choice |= {"delta": {"content": text}} if "messages" in body else {"text": text}
            await response.write(_event({"choices": [choice]}))
        await response.write(_event({"choices": [], "usage": {"prompt_tokens": len(tokens)}}))
        await response.write(b"data: [DONE]\n\n")
        return response

    @asynccontextmanager
    async def _slot(self, tokens: int) -> AsyncIterator[None]:
        """One of those that run side by side, and the time of its prefill."""
        self.waiting += 1
        try:
            async with self._places:
                self.waiting -= 1
                self.running += 1
                try:
                    await asyncio.sleep(self.prefill_s_per_token * tokens)
                    yield
                finally:
                    self.running -= 1
                    self.waiting += 1
        finally:
            self.waiting -= 1

    @cached_property
    def _places(self) -> asyncio.Semaphore:
        return asyncio.Semaphore(self.slots)

    def _refuse(self, faults: Sequence[str]) -> web.Response:
        self.violations += faults
        return _error(400, "; ".join(faults))


def _output_tokens(body: dict[str, Any]) -> int:
    return int(body.get("max_completion_tokens") or body.get("max_tokens") or 16)


@asynccontextmanager
async def a_vllm(world: NixlWorld | None = None, **settings: Any) -> AsyncIterator[FakeVllm]:
    """A server on a free port; it may have been sent nothing that is wrong."""
    fake = FakeVllm(world or NixlWorld(), **settings)
    async with AsyncExitStack() as stack:
        fake.url = await listen(stack, fake.application(), "127.0.0.1", 0)
        yield fake
    assert not fake.violations


def _error(status: int, message: str) -> web.Response:
    said = {"message": message, "type": "Error", "param": None, "code": status}
    return web.json_response({"error": said}, status=status)


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"
