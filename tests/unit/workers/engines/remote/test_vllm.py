"""The agent's engine against a strict vLLM: the handle crosses, the tokens come, failures have names."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fakes.vllm import BYTES_PER_TOKEN, FakeVllm, NixlWorld, a_vllm, said_after
from worker_builders import until
from yarl import URL

from controlplane.config_model import ModelConfig
from controlplane.domain.byte_tokenizer import WIDTH_BYTES
from controlplane.domain.fingerprint import fingerprint_difference
from controlplane.domain.tokens import TokenIds
from controlplane.errors import (
    ConfigError,
    LinkStalled,
    PrfaasError,
    SegmentFailed,
    WorkerLost,
    WorkerUnreached,
)
from controlplane.tokenizing import ByteTokenizer
from controlplane.wire import Role, Sampling
from workers.address import EngineAddress
from workers.engine import JobContext, KvPiece
from workers.engines.remote.description import profile_of_server
from workers.engines.remote.engine import RemoteEngine
from workers.engines.remote.handle import unpack_handle
from workers.engines.remote.sequence import RemoteSequence
from workers.engines.vllm import open_vllm

PROMPT = [300 + number % 700 for number in range(500)]
SAMPLING = Sampling(temperature=0, output_tokens_max=5)


def a_model(**server: Any) -> ModelConfig:
    settings = {"poll_interval_s": 0.02, "silent_s": 0.05, "start_timeout_s": 0.2} | server
    return ModelConfig.model_validate(
        {
            "engine": "vllm",
            "name": "tiny",
            "tokenizer": "files",
            "context_tokens_max": 2048,
            "server": settings,
        }
    )


@asynccontextmanager
async def an_engine(
    fake: FakeVllm, role: Role = "decode", *, key: str = "", **server: Any
) -> AsyncIterator[RemoteEngine]:
    """An engine that has found and tried a server."""
    # The bootstrap of a fake is on its own port.
    port = URL(fake.url).port if server.get("connector") == "mooncake" else 0
    address = EngineAddress(url=fake.url, api_key=key, kv_port=port or 0)
    engine = await open_vllm(a_model(**server), role, address, ByteTokenizer())
    try:
        yield engine
        engine.check_integrity()
    finally:
        await engine.close()


def a_context(**fields: Any) -> JobContext:
    values = {"request_id": "req-1.1", "scope": "s", "last_token": PROMPT[-1], "sampling": SAMPLING}
    return JobContext(**(values | fields))


def covered() -> TokenIds:
    return TokenIds.from_ints(PROMPT[:-1], WIDTH_BYTES)


async def handle_of(engine: RemoteEngine) -> KvPiece:
    """The one piece of a prefill."""
    async with aclosing(engine.prefill(covered(), (), a_context()).pieces()) as pieces:
        found = [piece async for piece in pieces]
    (piece,) = found
    return piece


async def answer_of(engine: RemoteEngine, piece: KvPiece) -> tuple[list[int], RemoteSequence]:
    """All tokens of a decode, and its sequence, which has been settled."""
    sequence = engine.begin_import(covered(), (), a_context())
    sequence.write(piece)
    tokens = TokenIds.from_ints(PROMPT, WIDTH_BYTES)
    try:
        async with aclosing(engine.decode(sequence, tokens, SAMPLING)) as outputs:
            said = [output.token async for output in outputs]
            await sequence.settle()
    finally:
        sequence.close()
    return said, sequence


@dataclass
class Pair:
    """Two servers that know each other's KV, and their engines."""

    east: FakeVllm
    west: FakeVllm
    prefill: RemoteEngine
    decode: RemoteEngine


@asynccontextmanager
async def a_pair(**server: Any) -> AsyncIterator[Pair]:
    world = NixlWorld()
    async with AsyncExitStack() as stack:
        east = await stack.enter_async_context(a_vllm(world))
        west = await stack.enter_async_context(a_vllm(world))
        prefill = await stack.enter_async_context(an_engine(east, "prefill", **server))
        decode = await stack.enter_async_context(an_engine(west, "decode", **server))
        yield Pair(east, west, prefill, decode)


# --- When nothing fails -----------------------------------------------------------------------


async def test_what_one_server_prefilled_another_decodes() -> None:
    async with a_pair() as pair:
        said, sequence = await answer_of(pair.decode, await handle_of(pair.prefill))

        assert said == said_after(PROMPT, 5)
        assert sequence.prompt_tokens_computed == 1
        assert sequence.transfer is not None
        assert sequence.transfer.evidence == "counted"
        assert sequence.transfer.moved_bytes == len(PROMPT) * BYTES_PER_TOKEN
        assert pair.west.bodies[-1]["prompt"] == PROMPT
        assert pair.west.bodies[-1]["kv_transfer_params"]["a_field_of_next_year"]


async def test_what_a_server_prefilled_itself_it_decodes_without_any_transfer() -> None:
    async with a_vllm() as fake, an_engine(fake, "prefill") as prefill, an_engine(fake) as decode:
        said, sequence = await answer_of(decode, await handle_of(prefill))

        assert said == said_after(PROMPT, 5)
        assert "kv_transfer_params" not in fake.bodies[-1]
        assert sequence.transfer is not None
        assert not sequence.transfer.is_mismatch


async def test_equal_servers_have_equal_fingerprints_and_others_differ_in_a_field() -> None:
    world = NixlWorld()
    async with (
        a_vllm(world) as one,
        a_vllm(world, block=64) as other,
        an_engine(one) as first,
        an_engine(one, "prefill") as same,
        an_engine(other) as second,
        an_engine(one, revision="r2") as third,
    ):
        mine = first.spec.fingerprint
        assert same.spec == first.spec
        said = fingerprint_difference(mine, second.spec.fingerprint)
        assert said == "block is 128 here and 64 there"
        said = fingerprint_difference(mine, third.spec.fingerprint)
        assert said == "revision is none here and r2 there"


async def test_times_and_counts_are_there_from_the_first_heartbeat() -> None:
    async with a_pair() as pair:
        await handle_of(pair.prefill)

        assert pair.prefill.profile().prefill_s_per_token > 0
        assert pair.decode.profile().decode_step_s >= 0
        assert pair.prefill.counters().prefill_tokens_total == len(PROMPT) - 1
        assert pair.prefill.load().queue_requests == 0


async def test_sizes_of_kv_come_from_the_models_own_configuration(tmp_path: Path) -> None:
    config = {"num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps({**config, "head_dim": 64}), encoding="utf-8")
    model = a_model().model_copy(update={"tokenizer": str(tmp_path)})
    async with a_vllm() as fake:
        engine = await open_vllm(model, "decode", EngineAddress(url=fake.url), ByteTokenizer())

        assert engine.profile().kv_bytes_per_token == BYTES_PER_TOKEN
        await engine.close()


async def test_a_profile_tells_times_at_all_lengths_and_sizes(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text(
        'name = "p"\nsource = "measured"\n[model]\nkv_bytes_per_token = 77\nkv_state_bytes = 5\n'
        "[prefill]\nfixed_s = 1\ns_per_token = 2\ns_per_token_squared = 0.5\n"
        "[decode]\nslots = 9\nstep_ms = 50\ntable = [[1, 25]]\n",
        encoding="utf-8",
    )
    async with a_vllm() as fake, an_engine(fake, "prefill", profile=str(path)) as engine:
        profile = engine.profile()

    assert profile.prefill_fixed_s == 1
    assert profile.prefill_s_per_token == 2
    assert profile.prefill_s_per_token_squared == 0.5
    assert profile.decode_step_s == 0.025
    assert (profile.kv_bytes_per_token, profile.kv_state_bytes) == (77, 5)


def test_a_profile_of_an_agent_counts_before_that_of_the_fleet() -> None:
    address = EngineAddress(url="http://127.0.0.1:1", profile="kimi-linear-h200")
    config = a_model(profile="mimo-v2-flash-h200").server

    found = profile_of_server(address, config)

    assert found is not None
    assert found.name == "kimi-linear-h200"


async def test_a_profile_that_is_not_there_is_refused_before_anything_is_sent() -> None:
    async with a_vllm() as fake:
        with pytest.raises(ConfigError, match="nor a profile that ships"):
            async with an_engine(fake, profile="nothing"):
                pass

    assert not fake.bodies


async def test_a_configuration_that_does_not_tell_leaves_sizes_to_the_transfers() -> None:
    async with a_pair() as pair:
        assert pair.decode.profile().kv_bytes_per_token == 0

        await answer_of(pair.decode, await handle_of(pair.prefill))

        assert pair.decode.profile().kv_bytes_per_token == BYTES_PER_TOKEN


# --- What is refused before it registers ------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"version": None}, "is not vLLM: GET /version says no version"),
        ({"model": "other"}, "serves other, the fleet's model.name is tiny"),
        ({"context_tokens": 1024}, r"takes 1024 tokens \(max_model_len\)"),
        ({"has_connector": False}, "runs without the NixlConnector"),
        ({"has_metrics": False}, "says no vllm:cache_config_info"),
        ({"api_key": "secret"}, "401 .* set PRFAAS_ENGINE_API_KEY"),
        ({"status": 500}, "answered 500"),
    ],
)
async def test_a_server_that_does_not_fit_is_refused_with_what_to_do(
    settings: dict[str, Any], said: str
) -> None:
    async with a_vllm(**settings) as fake:
        with pytest.raises(PrfaasError, match=said):
            async with an_engine(fake, "prefill"):
                pytest.fail("it was taken")


async def test_a_url_with_the_apis_own_path_is_refused() -> None:
    async with a_vllm() as fake:
        fake.url += "/v1"
        with pytest.raises(ConfigError, match="base URL of a vLLM server, without /v1"):
            async with an_engine(fake):
                pytest.fail("it was taken")


async def test_a_key_that_fits_opens_the_server() -> None:
    async with a_vllm(api_key="secret") as fake, an_engine(fake, key="secret") as engine:
        assert engine.spec.model == "tiny"


async def test_another_tokenizer_is_refused_with_both_readings() -> None:
    class Other(ByteTokenizer):
        def encode_text(self, text: str) -> TokenIds:
            del text
            return TokenIds.from_ints([1, 2, 3], WIDTH_BYTES)

    async with a_vllm() as fake:
        with pytest.raises(ConfigError, match=r"other tokens than model.tokenizer: .*\[1, 2, 3\]"):
            await open_vllm(a_model(), "decode", EngineAddress(url=fake.url), Other())


async def test_a_server_that_never_answers_is_given_up() -> None:
    async with a_vllm() as fake:
        gone = fake.url
    with pytest.raises(WorkerUnreached):
        await open_vllm(a_model(), "decode", EngineAddress(url=gone), ByteTokenizer())


# --- What fails later -------------------------------------------------------------------------


async def test_a_prefill_that_nobody_wants_is_aborted_at_the_server() -> None:
    async with a_pair() as pair:
        pair.east.gate = asyncio.Event()
        running = asyncio.ensure_future(handle_of(pair.prefill))
        await until(lambda: pair.prefill.load().queue_tokens)

        running.cancel()

        await until(lambda: pair.east.aborted == ["req-1.1"])
        assert pair.prefill.load().queue_requests == 0


async def test_a_decode_that_nobody_wants_is_aborted_at_the_server() -> None:
    async with a_pair() as pair:
        handle = await handle_of(pair.prefill)
        pair.west.gate = asyncio.Event()
        sequence = pair.decode.begin_import(covered(), (), a_context())
        sequence.write(handle)
        await until(lambda: len(pair.west.bodies) == 2)

        sequence.close()

        await until(lambda: pair.west.aborted == ["req-1.1"])


async def test_kv_that_does_not_arrive_ends_the_request_in_time() -> None:
    """NIXL alone would wait for ever."""
    async with a_pair(transfer_stall_s=0.05, kv_bytes_per_token=1) as pair:
        handle = await handle_of(pair.prefill)
        pair.west.gate = asyncio.Event()

        with pytest.raises(LinkStalled, match="its KV does not arrive"):
            await answer_of(pair.decode, handle)

        await until(lambda: pair.west.aborted)


async def test_a_pull_that_fails_is_the_transfers_fault() -> None:
    async with a_pair() as pair:
        pair.west.fails_the_pull = True

        with pytest.raises(SegmentFailed, match="KV load failed"):
            await answer_of(pair.decode, await handle_of(pair.prefill))


async def test_a_server_that_refuses_everything_is_at_fault_itself() -> None:
    async with a_pair() as pair:
        handle = await handle_of(pair.prefill)
        pair.west.status = pair.east.status = 500

        with pytest.raises(WorkerLost, match="answered 500"):
            await answer_of(pair.decode, handle)
        with pytest.raises(WorkerLost, match="answered 500"):
            await handle_of(pair.prefill)


async def test_a_stream_that_breaks_off_is_no_end() -> None:
    async with a_pair() as pair:
        pair.west.dies_after = 2

        with pytest.raises(WorkerLost, match="broke"):
            await answer_of(pair.decode, await handle_of(pair.prefill))


async def test_a_failure_before_anybody_reads_is_told_to_the_job() -> None:
    async with a_pair() as pair:
        handle = await handle_of(pair.prefill)
        pair.west.fails_the_pull = True
        told: list[PrfaasError] = []
        sequence = pair.decode.begin_import(covered(), (), a_context(on_failure=told.append))

        sequence.write(handle)

        await until(lambda: told)
        assert isinstance(told[0], SegmentFailed)
        sequence.close()


async def test_a_prompt_that_was_computed_again_is_seen_and_makes_the_server_unwell() -> None:
    """A 200 is no proof of a transfer."""
    async with a_pair() as pair:
        pair.west.recomputes = True
        for _ in range(6):
            assert pair.decode.failure() is None
            said, sequence = await answer_of(pair.decode, await handle_of(pair.prefill))

            assert said == said_after(PROMPT, 5)
            assert sequence.prompt_tokens_computed == len(PROMPT)
            assert sequence.transfer is not None
            assert sequence.transfer.is_mismatch

        assert "computes prompts whose KV should have come from outside" in str(
            pair.decode.failure()
        )


async def test_a_server_that_is_silent_takes_no_work_until_it_answers() -> None:
    async with a_vllm() as fake, an_engine(fake) as engine:
        fake.api_key = "changed"
        await until_s(lambda: engine.failure() == "the engine server does not answer")

        fake.api_key = ""
        await until_s(lambda: engine.failure() is None)


async def test_a_server_that_was_started_anew_is_counted_anew() -> None:
    async with a_pair() as pair:
        await answer_of(pair.decode, await handle_of(pair.prefill))
        pair.west.started_s += 1
        pair.west.sources = dict.fromkeys(pair.west.sources, 0)

        _, sequence = await answer_of(pair.decode, await handle_of(pair.prefill))
        _, later = await answer_of(pair.decode, await handle_of(pair.prefill))

        assert sequence.transfer is not None
        assert not sequence.transfer.is_mismatch
        assert later.transfer is not None
        assert later.transfer.evidence == "counted"


# --- Mooncake: both legs at once --------------------------------------------------------------


async def first_piece(engine: RemoteEngine) -> tuple[KvPiece, Any]:
    """The handle, which comes before the prefill, and the rest of it."""
    pieces = engine.prefill(covered(), (), a_context()).pieces()
    return await anext(pieces), pieces


async def test_a_decode_begins_before_its_prefill_has_ended() -> None:
    async with a_pair(connector="mooncake") as pair:
        handle, pieces = await first_piece(pair.prefill)
        decoding = asyncio.ensure_future(answer_of(pair.decode, handle))
        await until(lambda: len(pair.west.bodies) == 2)

        assert [piece async for piece in pieces] == [], "the handle is all of it"

        said, sequence = await decoding
        assert said == said_after(PROMPT, 5)
        assert sequence.transfer is not None
        assert sequence.transfer.evidence == "counted"
        assert not sequence.transfer.is_mismatch


async def test_a_prefill_that_takes_long_is_not_taken_for_kv_that_does_not_arrive() -> None:
    async with a_pair(connector="mooncake", transfer_stall_s=0.02, kv_bytes_per_token=1) as pair:
        handle, pieces = await first_piece(pair.prefill)
        sequence = pair.decode.begin_import(covered(), (), a_context())
        sequence.write(handle)

        await asyncio.sleep(0.1)

        assert sequence.is_running
        await pieces.aclose()
        sequence.close()


async def test_a_decode_whose_prefill_is_gone_is_aborted() -> None:
    async with a_pair(connector="mooncake") as pair:
        handle, pieces = await first_piece(pair.prefill)
        sequence = pair.decode.begin_import(covered(), (), a_context())
        sequence.write(handle)
        await until(lambda: len(pair.west.bodies) == 2)

        await pieces.aclose()
        sequence.close()

        await until(lambda: pair.west.aborted == ["req-1.1"])


async def test_each_pair_meets_by_an_id_of_its_own() -> None:
    async with a_pair(connector="mooncake") as pair:
        (one, pieces), (other, others) = [await first_piece(pair.prefill) for _ in range(2)]

        assert one.data != other.data
        await pieces.aclose()
        await others.aclose()


async def test_a_prefill_server_that_was_started_anew_is_asked_for_its_engine_again() -> None:
    async with a_pair(connector="mooncake") as pair:
        pair.east.started_s += 1

        async def can_answer() -> bool:
            handle, pieces = await first_piece(pair.prefill)
            await pieces.aclose()
            parameters = unpack_handle(handle.data)["parameters"]
            return bool(parameters["remote_engine_id"] == pair.east.engine_id)

        async with asyncio.timeout(5):
            while not await can_answer():  # noqa: ASYNC110 - of another task's poll
                await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("settings", "port", "said"),
    [({"has_connector": False}, None, "knows no engine of rank 0"), ({}, 1, "no connection")],
)
async def test_a_bootstrap_that_is_not_there_is_refused(
    settings: dict[str, Any], port: int | None, said: str
) -> None:
    async with a_vllm(**settings) as fake:
        address = EngineAddress(url=fake.url, kv_port=port or URL(fake.url).port or 0)
        with pytest.raises(ConfigError, match=said):
            await open_vllm(a_model(connector="mooncake"), "prefill", address, ByteTokenizer())


async def until_s(is_true: Any) -> None:
    """Wait until something is true that a poll of the engine makes true."""
    async with asyncio.timeout(5):
        while not is_true():  # noqa: ASYNC110 - of another task's poll
            await asyncio.sleep(0.01)
