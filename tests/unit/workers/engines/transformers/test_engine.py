"""Hybrid networks of the `transformers` library: what one worker prefills another one decodes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conformance.vocabulary import write_tokenizer
from engine_builders import (
    a_decode,
    a_model,
    a_prompt,
    an_import,
    greedy,
    hashes_of,
    prefill_all,
    seeded,
    tokens_of,
)

from controlplane.domain.tokens import TokenIds
from controlplane.errors import ConfigError
from controlplane.wire import Sampling
from workers.engine import KvPiece
from workers.engines.local.alone import generate_alone
from workers.engines.local.engine import LocalEngine

torch = pytest.importorskip("torch", reason="needs torch: make test-torch")

Make = Callable[..., LocalEngine]

#: Around the edges of blocks, and one with a snapshot in the middle.
LENGTHS = [1, 2, 64, 65, 66, 129, 300]


async def alone(engine: LocalEngine, length: int, sampling: Sampling) -> list[int]:
    prompt = a_prompt(length)
    outs = await generate_alone(engine, prompt, hashes_of(prompt), sampling)
    return [out.token for out in outs]


@pytest.mark.parametrize("length", LENGTHS)
async def test_decode_after_an_import_equals_the_engine_alone(
    make_engine: Make, length: int
) -> None:
    prefiller, decoder, oracle = make_engine(), make_engine(), make_engine()

    stream = await a_decode(decoder, a_prompt(length), greedy(), source=prefiller)

    assert await tokens_of(stream) == await alone(oracle, length, greedy())
    assert decoder.counters().prefill_tokens_total == 0
    assert decoder.counters().decode_prompt_tokens_total == 1


async def test_bfloat16_is_handed_over_bit_for_bit(make_engine: Make) -> None:
    half = {"dtype": "bfloat16"}
    prefiller, decoder, oracle = (make_engine(transformers=half) for _ in range(3))

    stream = await a_decode(decoder, a_prompt(200), seeded(), source=prefiller)

    assert await tokens_of(stream) == await alone(oracle, 200, seeded())
    whole = make_engine().spec.groups[0].bytes_per_token
    assert prefiller.spec.groups[0].bytes_per_token == whole // 2


@pytest.mark.parametrize("first", [64, 200, 256])
async def test_prefill_from_a_cached_prefix_equals_one_pass_bit_for_bit(
    make_engine: Make, first: int
) -> None:
    whole, chunked = make_engine(), make_engine()
    tokens = a_prompt(330)

    await prefill_all(chunked, tokens.head(first))
    run = chunked.prefill(tokens, hashes_of(tokens))
    resumed = [piece async for piece in run.pieces()]

    assert run.cached_tokens == first // 64 * 64
    assert resumed == await prefill_all(whole, tokens)


async def test_output_does_not_depend_on_the_company(make_engine: Make) -> None:
    expected = await alone(make_engine(), 130, greedy(20))
    busy = make_engine()

    others = [await a_decode(busy, a_prompt(40 + salt, salt=salt), greedy(9)) for salt in (1, 2)]
    watched = await a_decode(busy, a_prompt(130), greedy(20))

    assert await tokens_of(watched) == expected
    for other in others:
        await tokens_of(other)


async def test_the_last_token_says_what_one_pass_of_the_library_says(make_engine: Make) -> None:
    """The library's own forward over the whole prompt is the oracle: no cache, no blocks."""
    engine = make_engine()
    prompt = a_prompt(200)
    sequence = await an_import(engine, prompt)
    model = engine._model
    pieces = await prefill_all(engine, prompt.head(199))
    attention = [piece.data for piece in pieces if piece.group == "attention"]
    cache = model.cache_of(attention, pieces[-1].data)  # type: ignore[attr-defined]

    said = model.logits(prompt.to_list()[-1], cache)  # type: ignore[attr-defined]
    with torch.inference_mode():
        whole = model.network(torch.tensor([prompt.to_list()])).logits[0, -1].numpy()  # type: ignore[attr-defined]

    assert np.abs(said - whole).max() < 1e-4 * np.abs(whole).max()
    sequence.close()


@pytest.mark.parametrize("emptied", ["state", "attention"])
async def test_output_follows_the_kv_that_was_imported(make_engine: Make, emptied: str) -> None:
    expected = await alone(make_engine(), 300, greedy())
    engine = make_engine()
    head = a_prompt(300).head(299)
    sequence = engine.begin_import(head, hashes_of(head))
    for piece in await prefill_all(make_engine(), head):
        data = piece.data
        if piece.group == emptied == "state":
            # All but the position.
            data = data[:8] + bytes(len(data) - 8)
        elif piece.group == emptied:
            data = bytes(len(data))
        sequence.write(
            KvPiece(
                group=piece.group,
                token_start=piece.token_start,
                token_end=piece.token_end,
                data=data,
            )
        )

    assert await tokens_of(engine.decode(sequence, a_prompt(300), greedy())) != expected


async def test_state_has_one_size_and_attention_grows(make_engine: Make) -> None:
    engine = make_engine()
    attention, state = engine.spec.groups

    for length in (64, 200):
        pieces = await prefill_all(engine, a_prompt(length))
        grown = sum(len(piece.data) for piece in pieces if piece.group == "attention")
        assert grown == length * attention.bytes_per_token
        assert len(pieces[-1].data) == state.fixed_bytes


async def test_equal_weights_have_equal_fingerprints(make_engine: Make) -> None:
    one, same, other = make_engine(), make_engine(), make_engine(seed=1)
    half = make_engine(transformers={"dtype": "bfloat16"})

    assert one.spec.fingerprint == same.spec.fingerprint
    assert len({one.spec.fingerprint, other.spec.fingerprint, half.spec.fingerprint}) == 3


async def test_a_checkpoint_is_read_from_its_directory(make_engine: Make, tmp_path: Path) -> None:
    drawn = make_engine()
    drawn._model.network.save_pretrained(tmp_path)  # type: ignore[attr-defined]

    read = make_engine(transformers={"path": str(tmp_path)})

    assert read.spec.fingerprint == drawn.spec.fingerprint
    assert await alone(read, 100, greedy()) == await alone(drawn, 100, greedy())


async def test_a_network_may_have_a_tokenizer_of_its_own(make_engine: Make, tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    engine, other = (make_engine(tokenizer=str(tmp_path)) for _ in range(2))
    prompt = TokenIds.from_ints([300 + number % 900 for number in range(130)], 2)

    stream = await a_decode(other, prompt, greedy(), source=engine)
    outs = await generate_alone(engine, prompt, hashes_of(prompt), greedy())

    assert engine.spec.vocabulary_size == 1300
    # The end that its tokenizer_config.json names.
    assert engine._model.end_tokens == {257}
    assert await tokens_of(stream) == [out.token for out in outs]


async def test_a_checkpoint_may_know_more_tokens_than_its_tokenizer(
    make_engine: Make, tmp_path: Path
) -> None:
    write_tokenizer(tmp_path)
    network = make_engine()._model.network  # type: ignore[attr-defined]
    network.config.vocab_size = 1344
    network.config.save_pretrained(tmp_path)

    engine = make_engine(tokenizer=str(tmp_path), transformers={"path": str(tmp_path)})

    assert engine.spec.vocabulary_size == 1344


async def test_a_configuration_alone_gets_drawn_weights(make_engine: Make, tmp_path: Path) -> None:
    drawn = make_engine(seed=3)
    drawn._model.network.config.save_pretrained(tmp_path)  # type: ignore[attr-defined]

    again = make_engine(seed=3, transformers={"path": str(tmp_path)})

    assert again.spec.fingerprint == drawn.spec.fingerprint


@pytest.mark.parametrize("family", ["qwen3_next"], indirect=True)
class TestRefusals:
    """One family is enough."""

    def test_a_directory_without_a_configuration(self, make_engine: Make, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"no config\.json there"):
            make_engine(transformers={"path": str(tmp_path)})

    def test_a_vocabulary_that_the_tokenizer_does_not_have(
        self, make_engine: Make, tmp_path: Path
    ) -> None:
        network = make_engine()._model.network  # type: ignore[attr-defined]
        network.config.vocab_size = 4096
        network.config.save_pretrained(tmp_path)

        with pytest.raises(
            ConfigError, match="a vocabulary of 4096, and the tokenizer makes 272 tokens"
        ):
            make_engine(transformers={"path": str(tmp_path)})

    def test_weights_that_are_not_whole(self, make_engine: Make, tmp_path: Path) -> None:
        """The library would draw what is missing, and each worker would draw something else."""
        network = make_engine()._model.network  # type: ignore[attr-defined]
        weights = network.state_dict()
        lost = next(name for name in weights if name.endswith("norm.weight"))
        network.save_pretrained(
            tmp_path, state_dict={name: one for name, one in weights.items() if name != lost}
        )

        with pytest.raises(ConfigError, match=f"1 weights are not there, the first is {lost}"):
            make_engine(transformers={"path": str(tmp_path)})

    @pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
    def test_a_file_that_is_broken(self, make_engine: Make, tmp_path: Path, name: str) -> None:
        make_engine()._model.network.save_pretrained(tmp_path)  # type: ignore[attr-defined]
        (tmp_path / name).write_bytes(b"{")

        with pytest.raises(ConfigError, match="cannot be loaded"):
            make_engine(transformers={"path": str(tmp_path)})

    def test_a_context_beyond_the_networks(self, make_engine: Make, tmp_path: Path) -> None:
        network = make_engine()._model.network  # type: ignore[attr-defined]
        network.config.max_position_embeddings = 512
        network.config.save_pretrained(tmp_path)

        with pytest.raises(ConfigError, match=r"context_tokens_max is 1024, .* made for 512"):
            make_engine(transformers={"path": str(tmp_path)})

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    def test_a_gpu_that_is_not_there(self, make_engine: Make) -> None:
        with pytest.raises(ConfigError, match="torch finds no GPU here"):
            make_engine(transformers={"device": "cuda"})


def test_settings_of_one_engine_are_not_another_ones() -> None:
    with pytest.raises(ValueError, match=r'\[model\.transformers\] is for engine = "transformers"'):
        a_model(transformers={"family": "kimi_linear"})
