"""A prefix that only west has cached is copied to east, where the rest is computed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from fleets import Fleet, a_fleet, running, wait_for

from controlplane.config import FleetConfig, LinkConfig, ModelConfig
from controlplane.domain import byte_tokenizer
from controlplane.domain.prefix import block_hashes
from controlplane.tokenizing import ByteTokenizer
from controlplane.wire import Sampling
from workers.engines.local.alone import generate_alone
from workers.engines.reference.engine import ReferenceEngine
from workers.text import TextStream

OUTPUT_TOKENS = 16
#: Tokens of a prompt that stays in west, and of what is asked behind it.
DOCUMENT, QUESTION = 1200, 1600
#: Full blocks of the document, of 64 tokens; the last one is a snapshot too.
CACHED = 1152


def a_text(seed: int, length: int) -> str:
    rng = Random(seed)
    return "".join(rng.choice("abcdefgh \n") for _ in range(length))


def a_fleet_with_links() -> FleetConfig:
    """One prefill worker in each datacenter, decode in west, and links in both directions."""
    fleet = a_fleet(east_prefill=1, west_prefill=1, west_decode=1)
    parameters = {
        "threshold_tokens": 1300, "spills_home": False, "spills_away": False
    }  # fmt: skip
    links = tuple(
        LinkConfig(from_datacenter=one, to_datacenter=other, capacity_mbit_per_s=1000)
        for one, other in (("east", "west"), ("west", "east"))
    )
    return fleet.model_copy(
        update={
            "router": fleet.router.model_copy(update={"policy_parameters": parameters}),
            "links": links,
        }
    )


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with running(a_fleet_with_links(), tmp_path) as running_fleet:
        yield running_fleet


async def alone(prompt: str) -> str:
    """What one engine without any cache says."""
    engine = ReferenceEngine(ModelConfig(cache_tokens_max=0))
    tokens = byte_tokenizer.encode_text(prompt)
    hashes = block_hashes(tokens, block_tokens=engine.spec.block_tokens, scope="alone")
    sampling = Sampling(temperature=0, output_tokens_max=OUTPUT_TOKENS)
    text = TextStream((), ByteTokenizer().detokenizer())
    outputs = await generate_alone(engine, tokens, hashes, sampling)
    said = "".join(text.push(out.token) for out in outputs if out.finish_reason != "stop")
    await engine.close()
    return said + text.finish()


def cached_in_west(fleet: Fleet, document: str) -> None:
    """Have a document computed in west, and the router know of it."""
    answer = fleet.complete(document)
    assert answer.headers["x-prfaas-prefill"].startswith("west/")

    def is_known() -> bool:
        features = fleet.record(fleet.complete(document, max_tokens=1))["attempts"][-1]["features"]
        return "west/prefill-0" in features["prefix_hits"]

    wait_for(is_known, 10)


def received(fleet: Fleet, name: str, origin: str) -> float:
    """KV bytes that a worker has received from a datacenter."""
    key = f'prfaas_kv_received_bytes_total{{from_dc="{origin}"}}'
    return fleet.metrics(name).get(key, 0.0)


def sent(fleet: Fleet, name: str, target: str) -> float:
    """Bytes that a worker has sent over a link, frame headers included."""
    return fleet.metrics(name)[f'prfaas_kv_egress_bytes{{to_dc="{target}"}}']


def test_only_the_rest_of_a_copied_prompt_is_computed(fleet: Fleet) -> None:
    """The tokens are those of one engine alone, and each byte is counted where it moved."""
    document = a_text(1, DOCUMENT)
    prompt = document + a_text(2, QUESTION)
    cached_in_west(fleet, document)

    answer = fleet.complete(prompt, max_tokens=OUTPUT_TOKENS)
    record: dict[str, Any] = fleet.record(answer)
    prefill, transfer = record["report"]["prefill"], record["report"]["transfer"]
    worker = next(
        one for one in record["attempts"][-1]["view"]["workers"] if one["role"] == "decode"
    )
    per_token, state = worker["kv_bytes_per_token"], worker["kv_state_bytes"]

    assert answer.headers["x-prfaas-prefill"] == "east/prefill-0"
    assert record["attempts"][-1]["copy"] == {
        "from_worker": "west/prefill-0",
        "from_datacenter": "west",
        "to_datacenter": "east",
        "asked_tokens": CACHED,
        "exported_tokens": CACHED,
        "failure": "",
    }
    assert (prefill["copied_tokens"], prefill["copy_failure"]) == (CACHED, "")
    assert prefill["computed_tokens"] == len(prompt) - 1 - CACHED
    assert answer.json()["choices"][0]["text"] == asyncio.run(alone(prompt))
    # What was copied to east, and what the decoder did not hold already, each once.
    assert prefill["copied_bytes"] == CACHED * per_token + state
    assert received(fleet, "east/prefill-0", "west") == prefill["copied_bytes"]
    assert transfer["held_tokens"] == CACHED
    assert transfer["bytes"] == (len(prompt) - 1 - CACHED) * per_token + state
    assert received(fleet, "west/decode-0", "east") == transfer["bytes"]
    assert prefill["copied_bytes"] < sent(fleet, "west/prefill-0", "east")
    assert sent(fleet, "west/prefill-0", "east") < 1.05 * prefill["copied_bytes"]


def test_a_prefix_whose_holder_is_gone_is_computed(fleet: Fleet) -> None:
    """The answer is the same; the record says why nothing was copied."""
    document = a_text(3, DOCUMENT)
    prompt = document + a_text(4, QUESTION)
    cached_in_west(fleet, document)
    fleet.kill("west/prefill-0")

    answer = fleet.complete(prompt, max_tokens=OUTPUT_TOKENS)
    record = fleet.record(answer)

    assert answer.status == 200
    assert answer.json()["choices"][0]["text"] == asyncio.run(alone(prompt))
    assert record["attempts"][-1]["copy"]["failure"] == "worker_lost"
    assert record["report"]["prefill"]["copied_tokens"] == 0
    assert record["report"]["prefill"]["computed_tokens"] == len(prompt) - 1
