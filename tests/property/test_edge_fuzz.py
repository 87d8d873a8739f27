from __future__ import annotations

import json
from typing import Any, Literal

from hypothesis import example, given, settings
from hypothesis import strategies as st

from controlplane.edge.errors_json import error_body
from controlplane.edge.openai_check import CHAT_LEVEL, COMPLETION_LEVEL
from controlplane.edge.requests import ModelFacts, ParsedRequest, parse_request
from controlplane.errors import PrfaasError
from controlplane.tokenizing import ByteTokenizer

CONTEXT_TOKENS = 64
BLOCK_TOKENS = 4
MODELS = {
    "m": ModelFacts(
        name="m",
        tokenizer=ByteTokenizer(),
        block_tokens=BLOCK_TOKENS,
        context_tokens_max=CONTEXT_TOKENS,
        scope="s",
    )
}
KINDS = st.sampled_from(("chat", "completion"))
FULL: dict[str, dict[str, Any]] = {
    "chat": {
        "model": "m",
        "messages": [
            {"role": "system", "content": "brief"},
            {"role": "user", "content": [{"type": "text", "text": "hé"}]},
        ],
        "max_completion_tokens": 3,
        "tools": [],
    },
    "completion": {"model": "m", "prompt": "hello", "max_tokens": 3, "echo": False},
}
for request in FULL.values():
    request |= {
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": -1,
        "stop": ["x"],
        "n": 1,
        "user": "u",
    }

#: Any text, with a taste for what JSON can write and UTF-8 cannot.
TEXTS = st.text(st.characters(), max_size=8) | st.sampled_from(("\ud800", "\0", "m", "user"))
NUMBERS = (
    st.integers()
    | st.floats()
    | st.sampled_from((0, -1, 1 << 63, 10**400, 1e308, True, float("nan"), float("inf")))
)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)
NAMES = st.sampled_from(
    sorted(
        {
            *CHAT_LEVEL.supported,
            *CHAT_LEVEL.neutral,
            *COMPLETION_LEVEL.supported,
            *COMPLETION_LEVEL.neutral,
        }
    )
)


def check(kind: Literal["chat", "completion"], body: bytes) -> ParsedRequest | None:
    """A body is either a request that keeps every bound, or a complaint that can be sent."""
    try:
        parsed = parse_request(kind, body, MODELS)
    except PrfaasError as error:
        check_complaint(error)
        return None
    assert len(parsed.tokens) >= 1
    assert len(parsed.tokens) + parsed.sampling.output_tokens_max <= CONTEXT_TOKENS
    assert len(parsed.hashes) == (len(parsed.tokens) - 1) // BLOCK_TOKENS
    assert all(0 <= token < 272 for token in parsed.tokens.to_list())
    return parsed


def check_complaint(complaint: PrfaasError) -> None:
    """It is the client's fault, and it can be written anywhere."""
    assert 400 <= complaint.http_status < 500
    assert complaint.message
    assert complaint.message.isprintable()
    assert complaint.param is None or (complaint.param.isascii() and len(complaint.param) < 1000)
    assert json.loads(error_body(complaint, "req-1"))["error"]["code"] == complaint.code


def places(value: object) -> list[tuple[str | int, ...]]:
    """Paths of everything in a document."""
    found: list[tuple[str | int, ...]] = [()]
    steps: list[tuple[str | int, object]] = []
    if isinstance(value, dict):
        steps = list(value.items())
    elif isinstance(value, list):
        steps = list(enumerate(value))
    for step, inner in steps:
        found += [(step, *rest) for rest in places(inner)]
    return found


def replaced(value: Any, path: tuple[str | int, ...], new: object) -> Any:
    """A copy with another value at a path."""
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


def test_the_seeds_of_the_fuzz_are_requests_that_can_be_served() -> None:
    for kind in ("chat", "completion"):
        assert check(kind, json.dumps(FULL[kind]).encode()) is not None


@settings(max_examples=300, deadline=None)
@given(KINDS, st.binary(max_size=64) | TEXTS.map(lambda text: text.encode("utf-8", "replace")))
@example("chat", b"[" * 100_000)
@example("chat", b'{"a":' * 100_000)
@example("chat", b"9" * 5000)
@example("completion", b'{"model":"m","prompt":[' + b"9" * 4300 + b"]}")
def test_any_bytes_are_answered(kind: Literal["chat", "completion"], body: bytes) -> None:
    check(kind, body)


@settings(max_examples=300, deadline=None)
@given(KINDS, st.dictionaries(NAMES | TEXTS, VALUES, max_size=6) | VALUES)
def test_any_json_is_answered(kind: Literal["chat", "completion"], document: object) -> None:
    check(kind, json.dumps(document).encode())


@settings(max_examples=600, deadline=None)
@given(KINDS, st.data(), VALUES)
def test_a_request_with_one_field_changed_is_answered(
    kind: Literal["chat", "completion"], data: st.DataObject, value: object
) -> None:
    path = data.draw(st.sampled_from(places(FULL[kind])))

    check(kind, json.dumps(replaced(FULL[kind], path, value)).encode())


@settings(max_examples=300, deadline=None)
@given(KINDS, NAMES | TEXTS, VALUES)
def test_a_request_with_one_field_more_is_answered(
    kind: Literal["chat", "completion"], name: str, value: object
) -> None:
    check(kind, json.dumps({**FULL[kind], name: value}).encode())


@settings(max_examples=600, deadline=None)
@given(KINDS, st.data(), st.binary(max_size=3))
def test_a_request_with_some_bytes_changed_is_answered(
    kind: Literal["chat", "completion"], data: st.DataObject, new: bytes
) -> None:
    body = json.dumps(FULL[kind]).encode()
    start = data.draw(st.integers(0, len(body)))
    end = data.draw(st.integers(start, min(len(body), start + 3)))

    check(kind, body[:start] + new + body[end:])


@settings(max_examples=100, deadline=None)
@given(KINDS, st.data())
def test_a_request_cut_short_is_refused(
    kind: Literal["chat", "completion"], data: st.DataObject
) -> None:
    body = json.dumps(FULL[kind]).encode()
    length = data.draw(st.integers(0, len(body) - 1))

    assert check(kind, body[:length]) is None


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(-1, 272) | st.booleans(), max_size=70))
def test_ids_are_a_prompt_exactly_when_the_vocabulary_has_them(ids: list[int]) -> None:
    fits = 1 <= len(ids) < CONTEXT_TOKENS
    is_valid = fits and all(type(item) is int and 0 <= item < 272 for item in ids)

    parsed = check("completion", json.dumps({"model": "m", "prompt": ids}).encode())

    assert (parsed is not None) == is_valid
    if parsed is not None:
        assert parsed.tokens.to_list() == ids


@settings(max_examples=200, deadline=None)
@given(st.text(min_size=1, max_size=20))
def test_text_comes_through_byte_for_byte(text: str) -> None:
    parsed = check("completion", json.dumps({"model": "m", "prompt": text}).encode())

    if parsed is not None:
        assert bytes(parsed.tokens.to_list()) == text.encode()
    else:
        assert "\0" in text or len(text.encode()) >= CONTEXT_TOKENS
