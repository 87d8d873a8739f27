"""A prefill in east and a decode in west give the tokens of the engine run alone, one for one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from random import Random
from typing import Any

import pytest
from fleets import MODEL, Answer, Fleet, a_fleet, post, running

from controlplane.config import ModelConfig
from controlplane.domain import byte_tokenizer
from controlplane.domain.prefix import block_hashes
from controlplane.domain.tokens import TokenIds
from controlplane.tokenizing import ByteTokenizer
from controlplane.wire import Sampling
from workers.engines.local.alone import generate_alone
from workers.engines.reference.engine import ReferenceEngine
from workers.text import TextStream

SEED = 20260416
PROMPTS = 200
#: The decode side is compared over enough tokens for a wrong state to show.
OUTPUT_TOKENS = 16

pytestmark = pytest.mark.timeout(400)


@dataclass(frozen=True)
class Case:
    """One prompt and how its output is chosen."""

    prompt: str
    is_chat: bool
    temperature: float
    seed: int

    def tokens(self) -> TokenIds:
        if self.is_chat:
            return byte_tokenizer.encode_chat([("user", self.prompt)])
        return byte_tokenizer.encode_text(self.prompt)

    def body(self) -> dict[str, Any]:
        common = {
            "model": MODEL,
            "max_tokens": OUTPUT_TOKENS,
            "temperature": self.temperature,
            "seed": self.seed,
        }
        if self.is_chat:
            return {**common, "messages": [{"role": "user", "content": self.prompt}]}
        return {**common, "prompt": self.prompt}


def cases() -> list[Case]:
    """200 prompts of 1 to 8,000 tokens; most share a beginning with one that came before."""
    rng = Random(SEED)
    words = ["east", "west", "prefill", "decode", "cache", "link", "queue", "token", "state", "ü"]
    document = " ".join(rng.choice(words) for _ in range(2000))
    lengths = [1, 2, 63, 64, 65, 66, 128, 129, 192, 193, 1000, 8000, 7999, 4096, 4097, 6000]
    while len(lengths) < PROMPTS:
        lengths.append(int(2 ** rng.uniform(0, 11)))
    rng.shuffle(lengths)
    found = []
    for number, length in enumerate(lengths):
        shared = rng.randint(0, length)
        text = document[:shared] + "".join(
            rng.choice("abcdefgh \n") for _ in range(length - shared)
        )
        found.append(
            Case(
                prompt=text or "x",
                is_chat=bool(number % 2) and length < 7000,
                temperature=(0.0, 0.9)[number // 2 % 2],
                seed=number,
            )
        )
    return found


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A fleet that can prefill in east only."""
    config = a_fleet(west_prefill=0, threshold_tokens=0)
    with running(config, tmp_path_factory.mktemp("east")) as running_fleet:
        yield running_fleet


@pytest.fixture(scope="module")
def answers(fleet: Fleet) -> list[Answer]:
    """The fleet's answer to every case, several at a time so that sequences share batches."""

    def ask(case: Case) -> Answer:
        path = "/v1/chat/completions" if case.is_chat else "/v1/completions"
        return post(fleet.url + path, json.dumps(case.body()).encode())

    with ThreadPoolExecutor(6) as pool:
        return list(pool.map(ask, cases()))


@pytest.fixture(scope="module")
def alone() -> list[tuple[str, str]]:
    """Text and finish reason of every case from one engine without any cache."""
    return asyncio.run(_run_alone(cases()))


async def _run_alone(wanted: list[Case]) -> list[tuple[str, str]]:
    engine = ReferenceEngine(ModelConfig(cache_tokens_max=0))
    found = []
    for case in wanted:
        sampling = Sampling(
            temperature=case.temperature, seed=case.seed, output_tokens_max=OUTPUT_TOKENS
        )
        tokens = case.tokens()
        hashes = block_hashes(tokens, block_tokens=engine.spec.block_tokens, scope="alone")
        outputs = await generate_alone(engine, tokens, hashes, sampling)
        text = TextStream((), ByteTokenizer().detokenizer())
        ended = outputs[-1].finish_reason or "length"
        said = [text.push(out.token) for out in outputs if out.finish_reason != "stop"]
        found.append(("".join(said) + text.finish(), ended))
    await engine.close()
    return found


def test_every_prompt_has_the_tokens_of_the_engine_run_alone(
    answers: list[Answer], alone: list[tuple[str, str]]
) -> None:
    """Chat and plain, greedy and seeded, cached prefixes of every length: nothing differs."""
    differing = []
    for number, (case, answer, expected) in enumerate(zip(cases(), answers, alone, strict=True)):
        assert answer.status == 200, answer
        choice = answer.json()["choices"][0]
        text = choice["message"]["content"] if case.is_chat else choice["text"]
        if (text, choice["finish_reason"]) != expected:
            differing.append((number, len(case.tokens()), text, expected))

    assert not differing


def test_every_prompt_was_prefilled_in_east_and_decoded_in_west(answers: list[Answer]) -> None:
    """The answers' own headers say where."""
    assert {answer.headers["x-prfaas-prefill"].split("/")[0] for answer in answers} == {"east"}
    assert {answer.headers["x-prfaas-decode"].split("/")[0] for answer in answers} == {"west"}


def test_decode_workers_computed_exactly_one_prompt_token_per_request(
    fleet: Fleet, answers: list[Answer]
) -> None:
    """Their engines' own counters are the proof that the KV was really used."""
    samples = [fleet.metrics(f"west/decode-{number}") for number in range(2)]

    by_decode = sum(one['prfaas_prompt_tokens_computed{phase="decode"}'] for one in samples)
    by_prefill = sum(one['prfaas_prompt_tokens_computed{phase="prefill"}'] for one in samples)

    assert by_decode == len(answers)
    assert by_prefill == 0


def test_cached_tokens_are_those_that_prefill_did_not_compute(
    fleet: Fleet, answers: list[Answer]
) -> None:
    """What usage says adds up with what the prefill engines counted."""
    computed = sum(
        fleet.metrics(f"east/prefill-{number}")['prfaas_prompt_tokens_computed{phase="prefill"}']
        for number in range(2)
    )
    usages = [answer.json()["usage"] for answer in answers]
    cached = sum(usage["prompt_tokens_details"]["cached_tokens"] for usage in usages)

    assert cached > 0
    assert computed == sum(usage["prompt_tokens"] - 1 for usage in usages) - cached


def test_bytes_over_the_link_are_those_of_the_manifests(
    fleet: Fleet, answers: list[Answer]
) -> None:
    """Each transfer moved what the decoder lacked and the state; the workers counted the same."""
    state = fleet.record(answers[0])["attempts"][-1]["view"]["workers"][0]
    per_token, fixed = state["kv_bytes_per_token"], state["kv_state_bytes"]
    moved = 0
    for answer in answers:
        record = fleet.record(answer)
        transfer = record["report"]["transfer"]
        tokens = record["attempts"][-1]["features"]["input_tokens"] - 1
        assert transfer["bytes"] == (tokens - transfer["held_tokens"]) * per_token + fixed
        moved += transfer["bytes"]

    received = sum(
        fleet.metrics(f"west/decode-{number}")['prfaas_kv_received_bytes_total{from_dc="east"}']
        for number in range(2)
    )

    assert received == moved
