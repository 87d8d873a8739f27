from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

from controlplane.domain.byte_tokenizer import encode_chat, encode_text
from controlplane.domain.prefix import block_hashes
from controlplane.domain.tokens import TokenIds, WidthBytes, width_for
from controlplane.edge.requests import ModelFacts, ParsedRequest, parse_request
from controlplane.errors import MalformedRequest, RequestError, UnknownModel
from controlplane.tokenizing import ByteTokenizer, Tokenizer

SCOPE = "scope-1"


@dataclass(frozen=True)
class IdsOnly(ByteTokenizer):
    """A tokenizer of another vocabulary, for prompts that are ids already."""

    size: int = 1 << 16

    @property
    def vocabulary_size(self) -> int:
        return self.size

    @property
    def width_bytes(self) -> WidthBytes:
        return width_for(self.size)


def facts(
    *,
    name: str = "m",
    tokenizer: Tokenizer | None = None,
    block_tokens: int = 4,
    context_tokens_max: int = 4096,
) -> ModelFacts:
    return ModelFacts(
        name=name,
        tokenizer=tokenizer or ByteTokenizer(),
        block_tokens=block_tokens,
        context_tokens_max=context_tokens_max,
        scope=SCOPE,
    )


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "m", **fields}).encode()


def chat(*, model: ModelFacts | None = None, text: str = "hi", **fields: Any) -> ParsedRequest:
    model = model or facts()
    messages = [{"role": "user", "content": text}]
    return parse_request("chat", body(messages=messages, **fields), {model.name: model})


def completion(
    prompt: object = "hi", *, model: ModelFacts | None = None, **fields: Any
) -> ParsedRequest:
    model = model or facts()
    return parse_request("completion", body(prompt=prompt, **fields), {model.name: model})


def test_a_chat_is_put_into_the_template_of_the_model() -> None:
    messages = [("system", "be brief"), ("user", "hé"), ("assistant", ""), ("user", "😀")]

    parsed = parse_request(
        "chat",
        body(messages=[{"role": role, "content": text} for role, text in messages]),
        {"m": facts()},
    )

    assert parsed.kind == "chat"
    assert parsed.model == "m"
    assert parsed.tokens == encode_chat(messages)


def test_a_text_prompt_becomes_its_tokens() -> None:
    parsed = completion("héllo")

    assert parsed.kind == "completion"
    assert parsed.tokens == encode_text("héllo")


def test_token_ids_are_taken_as_they_are() -> None:
    assert completion([0, 271, 104]).tokens.to_list() == [0, 271, 104]


def test_text_and_its_ids_are_the_same_prompt() -> None:
    text, ids = completion("hello"), completion(list(b"hello"))

    assert (text.tokens, text.hashes) == (ids.tokens, ids.hashes)


def test_a_wide_vocabulary_takes_wide_ids() -> None:
    model = facts(tokenizer=IdsOnly(size=200_000))

    assert completion([199_999], model=model).tokens == TokenIds.from_ints([199_999], 4)


@pytest.mark.parametrize(("tokens", "blocks"), [(1, 0), (4, 0), (5, 1), (8, 1), (9, 2)])
def test_hashes_cover_all_tokens_but_the_last(tokens: int, blocks: int) -> None:
    parsed = completion("x" * tokens, model=facts(block_tokens=4))

    assert len(parsed.hashes) == blocks
    assert parsed.hashes == block_hashes(
        encode_text("x" * (tokens - 1)), block_tokens=4, scope=SCOPE
    )


@pytest.mark.parametrize(
    ("ids", "bad"),
    [
        ([1, -1], 1),
        ([272], 0),
        ([1 << 70], 0),
        ([-(1 << 70)], 0),
        ([1, True], 1),
        ([False], 0),
        ([1, 2.0], 1),
        ([1, "a"], 1),
        ([1, None], 1),
        ([1, [2]], 1),
    ],
    ids=repr,
)
def test_what_is_no_token_id_is_refused_by_its_place(ids: list[object], bad: int) -> None:
    with pytest.raises(MalformedRequest) as caught:
        completion(ids)

    assert caught.value.param == "prompt"
    assert caught.value.message.startswith(
        f"prompt[{bad}]: expected a token id, an integer from 0 to 271"
    )


def test_an_unknown_model_is_answered_with_the_served_ones() -> None:
    models = {"b": facts(name="b"), "a": facts(name="a")}

    with pytest.raises(UnknownModel) as caught:
        parse_request("completion", body(prompt="hi"), models)

    assert caught.value.param == "model"
    assert caught.value.message.endswith("served: a, b")


def test_no_model_at_all_is_said_so() -> None:
    with pytest.raises(UnknownModel, match="none at this moment"):
        parse_request("completion", body(prompt="hi"), {})


def test_sampling_is_handed_on() -> None:
    sampling = chat(temperature=0, top_p=0.5, seed=-3, stop=["a", "b"]).sampling

    assert (sampling.temperature, sampling.top_p) == (0.0, 0.5)
    assert (sampling.seed, sampling.stop) == (-3, ("a", "b"))


def test_how_to_answer_is_handed_on() -> None:
    parsed = chat(stream=True, stream_options={"include_usage": True}, user="u")

    assert (parsed.is_stream, parsed.include_usage, parsed.user) == (True, True, "u")


def test_an_answer_is_whole_unless_a_stream_is_asked_for() -> None:
    parsed = chat()

    assert (parsed.is_stream, parsed.include_usage, parsed.user) == (False, False, None)


def test_a_lone_surrogate_in_a_message_is_refused_by_its_place() -> None:
    parts = [{"type": "text", "text": "ok"}, {"type": "text", "text": "\udc00"}]
    messages = [{"role": "user", "content": "ok"}, {"role": "user", "content": parts}]

    with pytest.raises(MalformedRequest) as caught:
        parse_request("chat", body(messages=messages), {"m": facts()})

    assert caught.value.param == "messages[1].content"
    assert "lone surrogate" in caught.value.message


def test_a_lone_surrogate_in_a_prompt_is_refused() -> None:
    with pytest.raises(MalformedRequest) as caught:
        completion("\ud800")

    assert caught.value.param == "prompt"


def test_a_surrogate_pair_is_a_character() -> None:
    parsed = parse_request("completion", b'{"model":"m","prompt":"\\ud83d\\ude00"}', {"m": facts()})

    assert parsed.tokens == encode_text("😀")


def test_a_lone_surrogate_in_the_model_is_an_unknown_model() -> None:
    with pytest.raises(UnknownModel):
        completion(model=facts(name="other"))
    with pytest.raises(RequestError):
        parse_request("completion", b'{"model":"\\ud800","prompt":"hi"}', {"m": facts()})


def test_a_repr_has_no_word_of_the_prompt() -> None:
    shown = repr(chat(text="swordfish", stop="swordfish", user="swordfish"))

    assert "swordfish" not in shown
    assert "\\x00" not in shown


def test_a_long_prompt_can_be_parsed_in_a_thread() -> None:
    request = body(prompt="lorem ipsum " * 10_000)
    models = {"m": facts(context_tokens_max=131_072)}

    with ThreadPoolExecutor(1) as threads:
        parsed = threads.submit(parse_request, "completion", request, models).result()

    assert parsed == parse_request("completion", request, models)


# --- Digest -----------------------------------------------------------------------------------


def test_equal_questions_have_equal_digests() -> None:
    """Whoever asks, and however the answer is sent."""
    first = completion("hi", seed=1)

    assert first.digest == completion("hi", seed=1, user="ada", stream=True).digest
    assert len(first.digest) == 64


def test_any_other_question_has_another_digest() -> None:
    questions = [
        completion("hi"),
        completion("ho"),
        completion("hi", seed=1),
        completion("hi", temperature=0),
        completion("hi", max_tokens=3),
        completion("hi", stop="x"),
        chat(text="hi"),
    ]

    assert len({question.digest for question in questions}) == len(questions)
