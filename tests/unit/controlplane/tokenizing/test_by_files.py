"""Tokenizers out of a model's files: the same ids and the same text as the library alone makes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from controlplane.config_model import ModelConfig
from controlplane.edge.requests import ModelFacts, parse_request
from controlplane.errors import ConfigError, MalformedRequest
from controlplane.tokenizing import Tokenizer, tokenizer_for

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
TEXTS = [
    "prefill here and decode there",
    "the naïve café in 東京 said: 123 tokens 🎉",
    "  a\n\tb  ",
]


def byte_level() -> tokenizers.Tokenizer:
    """As Qwen and Llama 3 have it: every byte has a token, characters may need several."""
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(TEXTS, trainer)
    return inner


def with_blanks() -> tokenizers.Tokenizer:
    """As Llama 2 has it: a blank belongs to the word behind it, rare characters fall back to bytes."""
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    inner = tokenizers.Tokenizer(
        models.BPE(
            vocab={
                name: number for number, name in enumerate(["<unk>", *pieces, "▁", *"abcdefgh"])
            },
            merges=[],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    inner.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    inner.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return inner


def saved(
    directory: Path, inner: tokenizers.Tokenizer | None = None, **settings: Any
) -> ModelConfig:
    """The files of a model, and a fleet's model that names them."""
    (inner or byte_level()).save(str(directory / "tokenizer.json"))
    values = {"chat_template": TEMPLATE, "bos_token": {"content": "<|begin|>"}} | settings
    (directory / "tokenizer_config.json").write_text(json.dumps(values), encoding="utf-8")
    return ModelConfig(engine="transformers", tokenizer=str(directory))


def spoken(tokenizer: Tokenizer, ids: list[int]) -> str:
    """Text of an output, a token at a time."""
    detokenizer = tokenizer.detokenizer()
    return "".join(map(detokenizer.push, ids)) + detokenizer.finish()


def test_a_text_has_the_ids_that_the_library_makes(tmp_path: Path) -> None:
    tokenizer = tokenizer_for(saved(tmp_path))

    assert tokenizer.encode_text(TEXTS[1]).to_list() == byte_level().encode(TEXTS[1]).ids
    assert tokenizer.vocabulary_size == byte_level().get_vocab_size()


def test_a_text_gets_the_special_tokens_that_its_model_puts_before_every_text(
    tmp_path: Path,
) -> None:
    inner = byte_level()
    inner.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", 0)]
    )

    tokenizer = tokenizer_for(saved(tmp_path, inner))

    assert tokenizer.encode_text("a").to_list()[0] == 0
    assert tokenizer.encode_chat([("user", "a")]).to_list().count(0) == 1, "the template's own"


def test_a_conversation_is_written_in_the_models_template(tmp_path: Path) -> None:
    tokenizer = tokenizer_for(saved(tmp_path))

    ids = tokenizer.encode_chat([("system", "be brief"), ("user", "hi")]).to_list()

    said = "<|begin|><|system|>be brief<|end|><|user|>hi<|end|><|assistant|>"
    assert ids == byte_level().encode(said, add_special_tokens=False).ids


def test_a_template_in_a_file_of_its_own_goes_before_the_settings(tmp_path: Path) -> None:
    model = saved(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}", encoding="utf-8")

    ids = tokenizer_for(model).encode_chat([("user", "hi")]).to_list()

    assert ids == byte_level().encode("hi").ids


def test_of_several_templates_the_default_one_is_used(tmp_path: Path) -> None:
    several = [
        {"name": "tool_use", "template": "tools"},
        {"name": "default", "template": "{{ messages[0].content }}"},
    ]

    ids = tokenizer_for(saved(tmp_path, chat_template=several)).encode_chat([("user", "hi")])

    assert ids.to_list() == byte_level().encode("hi").ids


def test_json_in_a_template_is_written_as_models_were_trained_on(tmp_path: Path) -> None:
    template = "{{ messages[0].content | tojson }}"

    ids = tokenizer_for(saved(tmp_path, chat_template=template)).encode_chat([("user", "<é>")])

    assert spoken(tokenizer_for(saved(tmp_path)), ids.to_list()) == '"<é>"'


def test_a_prompt_is_never_cut_or_filled_whatever_the_file_says(tmp_path: Path) -> None:
    inner = byte_level()
    inner.enable_truncation(3)
    inner.enable_padding(length=200)

    tokenizer = tokenizer_for(saved(tmp_path, inner))

    assert tokenizer.encode_text(TEXTS[0]).to_list() == byte_level().encode(TEXTS[0]).ids


def facts(tokenizer: Tokenizer) -> dict[str, ModelFacts]:
    return {
        "m": ModelFacts(
            name="m", tokenizer=tokenizer, block_tokens=16, context_tokens_max=512, scope="s"
        )
    }


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[7].content }}", "has no element 7"),
        ("{{ ().__class__.__mro__ }}", "unsafe"),
        (None, "no chat template: use /v1/completions"),
    ],
    ids=["refused", "broken at this", "out of the sandbox", "none"],
)
def test_what_a_template_does_not_take_is_the_callers_to_change(
    tmp_path: Path, template: str | None, said: str
) -> None:
    tokenizer = tokenizer_for(saved(tmp_path, chat_template=template))
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}]}).encode()

    with pytest.raises(MalformedRequest, match=said) as refused:
        parse_request("chat", body, facts(tokenizer))

    assert refused.value.param == "messages"


def test_half_a_character_names_its_message_as_with_bytes(tmp_path: Path) -> None:
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "\ud800"}]}).encode()

    with pytest.raises(MalformedRequest, match=r"messages\[0\]"):
        parse_request("chat", body, facts(tokenizer_for(saved(tmp_path))))


@pytest.mark.parametrize("make", [byte_level, with_blanks])
@given(text=st.text(alphabet="abcdefgh é東🎉\n", max_size=40))
@settings(max_examples=60, deadline=None)
def test_token_by_token_comes_the_text_of_all_tokens(make: Any, text: str) -> None:
    inner = make()
    ids = inner.encode(text, add_special_tokens=False).ids
    detokenizer = _tokenizer(inner).detokenizer()

    pieces = [detokenizer.push(token) for token in ids]

    assert "".join(pieces) + detokenizer.finish() == inner.decode(ids)
    assert not any("\ufffd" in piece for piece in pieces), "half a character is never shown"


@given(ids=st.lists(st.integers(0, 399), max_size=60))
@settings(max_examples=60, deadline=None)
def test_any_tokens_at_all_are_text_in_time(ids: list[int]) -> None:
    detokenizer = _tokenizer(byte_level()).detokenizer()

    said = "".join(map(detokenizer.push, ids))

    # Of nine tokens held back one at least is certain.
    assert len(detokenizer.finish()) <= 8 * 16
    assert len(said) <= 16 * len(ids)


def test_special_tokens_say_nothing(tmp_path: Path) -> None:
    tokenizer = tokenizer_for(saved(tmp_path))
    ids = byte_level().encode("a<|end|>b").ids

    assert spoken(tokenizer, ids) == "ab"


def _tokenizer(inner: tokenizers.Tokenizer) -> Tokenizer:
    from controlplane.tokenizing.by_files import FileTokenizer  # noqa: PLC0415

    return FileTokenizer(inner, None)


def test_a_directory_without_the_file_is_refused_with_what_belongs_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no .*tokenizer.json; name the directory"):
        tokenizer_for(ModelConfig(engine="transformers", tokenizer=str(tmp_path / "nowhere")))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("tokenizer.json", "{", "tokenizer.json cannot be read"),
        ("tokenizer_config.json", "[", "tokenizer_config.json cannot be read"),
        ("tokenizer_config.json", "[]", "holds no object"),
        ("chat_template.jinja", "{% for %}", "the chat template is broken"),
    ],
)
def test_files_that_cannot_be_used_are_refused_by_name(
    tmp_path: Path, name: str, content: str, said: str
) -> None:
    model = saved(tmp_path)
    (tmp_path / name).write_text(content, encoding="utf-8")

    with pytest.raises(ConfigError, match=said):
        tokenizer_for(model)


def test_an_engine_that_others_wrote_needs_its_models_tokenizer() -> None:
    with pytest.raises(ValueError, match="needs tokenizer = "):
        ModelConfig(engine="vllm")


def test_the_reference_model_takes_no_other_tokenizer() -> None:
    with pytest.raises(ValueError, match="reads bytes: leave tokenizer out"):
        ModelConfig(tokenizer="somewhere")
