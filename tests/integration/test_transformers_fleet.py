"""A fleet of a hybrid network: prefill in east, decode in west, the tokens of one engine alone."""

from __future__ import annotations

import asyncio
import json
import warnings
from collections.abc import Iterator

import pytest
from fleets import Fleet, a_fleet, post, running

from controlplane.config import ModelConfig, TransformersConfig
from controlplane.domain import byte_tokenizer
from controlplane.domain.prefix import block_hashes
from controlplane.tokenizing import ByteTokenizer
from controlplane.wire import Sampling
from workers.engines.local.alone import generate_alone
from workers.text import TextStream

pytest.importorskip("torch", reason="needs torch: make test-torch")
pytestmark = pytest.mark.timeout(300)

PROMPTS = ["a", "east and west " * 20, "hybrid models shrink the cache " * 30]


def a_network(family: str) -> ModelConfig:
    return ModelConfig(
        engine="transformers",
        name="tiny-hybrid",
        context_tokens_max=2048,
        transformers=TransformersConfig(family=family),  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module", params=["qwen3_next", "kimi_linear"])
def fleet(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fleet]:
    """A fleet that can prefill in east only."""
    config = a_fleet(
        east_prefill=1,
        west_prefill=0,
        west_decode=1,
        threshold_tokens=0,
        model=a_network(request.param),
    )
    with running(config, tmp_path_factory.mktemp("hybrid")) as running_fleet:
        yield running_fleet


async def text_alone(model: ModelConfig, prompt: str) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from workers.engines.transformers.engine import TransformersEngine  # noqa: PLC0415

        engine = TransformersEngine(model)
    tokens = byte_tokenizer.encode_text(prompt)
    hashes = block_hashes(tokens, block_tokens=engine.spec.block_tokens, scope="alone")
    outs = await generate_alone(
        engine, tokens, hashes, Sampling(temperature=0, output_tokens_max=16)
    )
    await engine.close()
    text = TextStream((), ByteTokenizer().detokenizer())
    said = [text.push(out.token) for out in outs if out.finish_reason != "stop"]
    return "".join(said) + text.finish()


@pytest.mark.parametrize("prompt", PROMPTS, ids=len)
def test_kv_and_state_of_a_real_network_cross_the_link(fleet: Fleet, prompt: str) -> None:
    body = {"model": "tiny-hybrid", "prompt": prompt, "max_tokens": 16, "temperature": 0}

    answer = post(fleet.url + "/v1/completions", json.dumps(body).encode())

    assert answer.status == 200, answer
    assert answer.headers["x-prfaas-prefill"].startswith("east/")
    expected = asyncio.run(text_alone(fleet.config.model, prompt))
    assert answer.json()["choices"][0]["text"] == expected
    report = fleet.record(answer)["report"]
    assert report["prompt_tokens_computed"] == 1
    assert report["transfer"]["bytes"] > 0
