"""A hybrid model on real vLLM servers: linear-attention state beside KV, and fewer bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from real_vllm.both import EXTERNAL, MOVED, both_sites, some_ids
from real_vllm.servers import DENSE_BYTES_PER_TOKEN, VllmServer

pytestmark = pytest.mark.timeout(600)


def test_the_state_of_a_hybrid_model_crosses_with_its_kv(tmp_path: Path) -> None:
    with both_sites("hybrid", tmp_path) as both:
        for count in (200, 900, 2500):
            ids = some_ids(count, seed=count)
            before = both.counts(EXTERNAL)

            answer = both.complete(prompt=ids, max_tokens=16)

            assert answer.status == 200, answer
            server = both.decoder(answer)
            assert server.metric(EXTERNAL) > before[id(server)][0]
            report = both.fleet.record(answer)["report"]
            assert report["prompt_tokens_computed"] <= 256, "the tail of a block, no more"
            _same_up_to_a_near_tie(both.west, ids, answer.json()["choices"][0]["text"])
        moved = sum(one.metric(MOVED) for one in (both.east, both.west))
        tokens = sum(one.metric(EXTERNAL) for one in (both.east, both.west))
        print(f"hybrid: {moved / tokens:.0f} bytes a token, dense: {DENSE_BYTES_PER_TOKEN}")
        assert moved / tokens < DENSE_BYTES_PER_TOKEN


def _same_up_to_a_near_tie(server: VllmServer, ids: list[int], text: str) -> None:
    """Recurrent and chunked linear attention round differently: where two tokens tie, either is right."""
    alone = server.ask(
        "/v1/completions", prompt=ids, temperature=0, max_tokens=16, logprobs=2, cache_salt="alone"
    ).json()["choices"][0]
    said = ""
    for piece, top in zip(
        alone["logprobs"]["tokens"], alone["logprobs"]["top_logprobs"], strict=True
    ):
        if not text.startswith(said + piece):
            best, second = sorted(top.values(), reverse=True)[:2]
            assert best - second < 0.1, f"differs at {said!r} without a tie: {top}"
            return
        said += piece
    assert text == said
