"""The agent's engine against a strict pair of SGLang servers: rooms, and either leg's failure."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from fakes.sglang import FakeSglang, Rooms, an_sglang, leg_faults
from fakes.vllm import said_after
from worker_builders import until

from controlplane.config_model import ModelConfig
from controlplane.domain.byte_tokenizer import WIDTH_BYTES
from controlplane.domain.tokens import TokenIds
from controlplane.errors import ConfigError, PrfaasError, WorkerLost
from controlplane.tokenizing import ByteTokenizer
from controlplane.wire import Sampling
from workers.address import EngineAddress
from workers.engine import JobContext, KvPiece
from workers.engines.remote.engine import RemoteEngine
from workers.engines.remote.sequence import RemoteSequence
from workers.engines.sglang import open_sglang

PROMPT = [300 + number % 700 for number in range(300)]
SAMPLING = Sampling(temperature=0, output_tokens_max=5)
MODEL = ModelConfig.model_validate(
    {
        "engine": "sglang",
        "name": "tiny",
        "tokenizer": "files",
        "context_tokens_max": 2048,
        "server": {"poll_interval_s": 0.02, "silent_s": 0.1, "start_timeout_s": 0.2},
    }
)


@asynccontextmanager
async def an_engine(fake: FakeSglang, role: Any) -> AsyncIterator[RemoteEngine]:
    engine = await open_sglang(MODEL, role, EngineAddress(url=fake.url), ByteTokenizer())
    try:
        yield engine
    finally:
        await engine.close()


@dataclass
class Pair:
    """Both servers, and their engines."""

    east: FakeSglang
    west: FakeSglang
    prefill: RemoteEngine
    decode: RemoteEngine

    async def prefilling(self) -> tuple[KvPiece, Any]:
        """The handle, and what is left of the prefill."""
        tokens = TokenIds.from_ints(PROMPT[:-1], WIDTH_BYTES)
        pieces = self.prefill.prefill(tokens, (), a_context()).pieces()
        return await anext(pieces), pieces

    def decoding(self, **context: Any) -> RemoteSequence:
        """A sequence that waits for its handle."""
        tokens = TokenIds.from_ints(PROMPT[:-1], WIDTH_BYTES)
        return self.decode.begin_import(tokens, (), a_context(**context))

    async def said(self, sequence: RemoteSequence) -> list[int]:
        """All of its tokens."""
        tokens = TokenIds.from_ints(PROMPT, WIDTH_BYTES)
        async with aclosing(self.decode.decode(sequence, tokens, SAMPLING)) as outputs:
            return [output.token async for output in outputs]


def a_context(**fields: Any) -> JobContext:
    values = {"request_id": "req-1.1", "scope": "s", "last_token": PROMPT[-1], "sampling": SAMPLING}
    return JobContext(**(values | fields))


@asynccontextmanager
async def a_pair(**decode: Any) -> AsyncIterator[Pair]:
    rooms = Rooms()
    async with AsyncExitStack() as stack:
        east = await stack.enter_async_context(an_sglang(rooms, "prefill"))
        west = await stack.enter_async_context(an_sglang(rooms, "decode", **decode))
        prefill = await stack.enter_async_context(an_engine(east, "prefill"))
        engine = await stack.enter_async_context(an_engine(west, "decode"))
        yield Pair(east, west, prefill, engine)


@pytest.mark.parametrize("repeats", [True, False], ids=["cumulative", "incremental"])
async def test_both_sides_meet_in_a_room_and_the_tokens_come_once(repeats: bool) -> None:  # noqa: FBT001 - a parameter
    async with a_pair(repeats=repeats) as pair:
        handle, pieces = await pair.prefilling()
        sequence = pair.decoding()
        sequence.write(handle)

        assert [piece async for piece in pieces] == []
        assert await pair.said(sequence) == said_after(PROMPT, 5)
        await sequence.settle()
        assert sequence.transfer is not None
        assert sequence.transfer.evidence == "none", "SGLang does not tell where tokens came from"
        sequence.close()


async def test_a_prefill_knows_what_its_server_had_in_its_cache() -> None:
    async with a_pair() as pair:
        tokens = TokenIds.from_ints(PROMPT[:-1], WIDTH_BYTES)
        run = pair.prefill.prefill(tokens, (), a_context())
        pieces = run.pieces()
        sequence = pair.decoding()
        sequence.write(await anext(pieces))

        assert [piece async for piece in pieces] == []
        assert run.cached_tokens == 64
        sequence.close()


async def test_a_prefill_whose_decode_is_given_up_is_aborted() -> None:
    """Alone it would wait in its room for minutes."""
    async with a_pair() as pair:
        _, pieces = await pair.prefilling()
        rest = asyncio.ensure_future(anext(pieces, None))
        await until(lambda: pair.east.bodies)

        rest.cancel()

        await until(lambda: pair.east.aborted == ["req-1.1"])


async def test_a_decode_that_fails_is_told_before_its_prefill_has_ended() -> None:
    async with a_pair(fails=True) as pair:
        told: list[PrfaasError] = []
        handle, pieces = await pair.prefilling()
        sequence = pair.decoding(on_failure=told.append)

        sequence.write(handle)

        await until(lambda: told)
        assert isinstance(told[0], WorkerLost)
        assert "out of memory" in told[0].message
        sequence.close()
        await pieces.aclose()


async def test_a_pair_that_is_tried_again_meets_in_another_room() -> None:
    async with a_pair() as pair:
        (first, one), (second, other) = [await pair.prefilling() for _ in range(2)]

        assert first.data != second.data
        await one.aclose()
        await other.aclose()


@pytest.mark.parametrize(
    ("mode", "settings", "said"),
    [
        ("decode", {}, "--disaggregation-mode decode, its agent with --role prefill"),
        ("null", {}, "--disaggregation-mode null"),
        ("prefill", {"is_sglang": False}, "is not SGLang"),
        ("prefill", {"model": "other"}, "serves other, the fleet's model.name is tiny"),
        ("prefill", {"context_tokens": 100}, "takes 100 tokens"),
        ("prefill", {"has_metrics": False}, "it needs --enable-metrics"),
        ("prefill", {"page_size": None}, "says no page_size"),
    ],
)
async def test_a_server_that_does_not_fit_is_refused_with_what_to_do(
    mode: Any, settings: dict[str, Any], said: str
) -> None:
    async with an_sglang(Rooms(), mode, **settings) as fake:
        with pytest.raises(ConfigError, match=said):
            async with an_engine(fake, "prefill"):
                pytest.fail("it was taken")


async def test_servers_of_equal_settings_have_equal_fingerprints() -> None:
    async with a_pair() as pair:
        assert pair.prefill.spec == pair.decode.spec


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("bootstrap_room", 1 << 63),
        ("bootstrap_room", "7"),
        ("bootstrap_host", ""),
        ("bootstrap_port", 1),
        ("input_ids", "text"),
        ("sampling_params", {"max_tokens": 1}),
    ],
)
def test_the_fake_refuses_each_wrong_field(field: str, value: object) -> None:
    right = {
        "bootstrap_room": 7,
        "bootstrap_host": "p",
        "bootstrap_port": 8998,
        "input_ids": [1],
        "sampling_params": {"max_new_tokens": 1},
    }

    assert leg_faults(right, 8998) == []
    assert len(leg_faults({**right, field: value}, 8998)) == 1
