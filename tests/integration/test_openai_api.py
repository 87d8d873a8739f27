"""The OpenAI API on real processes: what clients send, and what they must never get."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest
from fleets import MODEL, Fleet, get, post
from openai import BadRequestError, NotFoundError, OpenAI

CHAT = "/v1/chat/completions"
PLAIN = "/v1/completions"


@pytest.fixture
def client(fleet: Fleet) -> Iterator[OpenAI]:
    """The official client, unchanged."""
    with OpenAI(base_url=fleet.url + "/v1", api_key="none", max_retries=0) as found:
        yield found


def raw(fleet: Fleet, request: bytes) -> bytes:
    """What the listener answers to bytes on a socket."""
    with socket.create_connection(
        ("127.0.0.1", fleet.config.router.port), timeout=10
    ) as connection:
        connection.sendall(request)
        answer = b""
        while b"\r\n\r\n" not in answer:
            data = connection.recv(65536)
            if not data:
                break
            answer += data
    return answer


def test_a_chat_is_answered_with_usage(client: OpenAI) -> None:
    """Message, finish reason and token counts."""
    answer = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "Hello"}], max_completion_tokens=7
    )

    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason in {"length", "stop"}
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 9
    assert answer.usage.completion_tokens <= 7
    assert answer.usage.prompt_tokens_details is not None


def test_a_stream_ends_with_usage_when_asked(client: OpenAI) -> None:
    """The last chunk has no choices and the counts."""
    stream = client.completions.create(
        model=MODEL,
        prompt="Hello",
        max_tokens=5,
        stream=True,
        stream_options={"include_usage": True},
    )

    *chunks, last = list(stream)

    assert all(chunk.usage is None for chunk in chunks)
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.prompt_tokens == 5


def test_streamed_and_whole_answers_say_the_same(client: OpenAI) -> None:
    """Greedy output does not depend on how it is sent."""
    whole = client.completions.create(model=MODEL, prompt="same text", max_tokens=20, temperature=0)
    stream = client.completions.create(
        model=MODEL, prompt="same text", max_tokens=20, temperature=0, stream=True
    )

    assert "".join(chunk.choices[0].text for chunk in stream) == whole.choices[0].text


def test_a_seed_repeats_its_output(client: OpenAI) -> None:
    """Sampled output with one seed is the same, with another it differs."""

    def sample(seed: int) -> str:
        answer = client.completions.create(
            model=MODEL, prompt="draw", max_tokens=24, temperature=1, seed=seed
        )
        return answer.choices[0].text

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)


def test_a_stop_string_ends_the_output_before_itself(client: OpenAI) -> None:
    """The stop string is not part of the text."""
    whole = client.completions.create(model=MODEL, prompt="stop here", max_tokens=24, temperature=0)
    text = whole.choices[0].text
    stop = text[10:12]

    stopped = client.completions.create(
        model=MODEL, prompt="stop here", max_tokens=24, temperature=0, stop=[stop]
    )

    assert stopped.choices[0].text == text[: text.index(stop)]
    assert stopped.choices[0].finish_reason == "stop"


def test_token_ids_are_a_prompt(client: OpenAI) -> None:
    """Ids and the text they stand for give the same output."""
    by_text = client.completions.create(model=MODEL, prompt="ids", max_tokens=8, temperature=0)
    by_ids = client.completions.create(
        model=MODEL, prompt=list(b"ids"), max_tokens=8, temperature=0
    )

    assert by_ids.choices[0].text == by_text.choices[0].text


def test_models_are_listed_and_shown(client: OpenAI) -> None:
    """The fleet serves one model."""
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL


def test_an_unknown_model_is_refused_with_the_known_ones(client: OpenAI) -> None:
    """404, and the message says what there is."""
    with pytest.raises(NotFoundError, match=MODEL):
        client.completions.create(model="gpt-4", prompt="x")


def test_an_unsupported_parameter_is_refused_by_name(client: OpenAI) -> None:
    """Silently ignoring it would give an answer that was not asked for."""
    with pytest.raises(BadRequestError) as caught:
        client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "x"}], logprobs=True
        )

    assert caught.value.code == "unsupported_parameter"
    assert caught.value.param == "logprobs"


def test_every_answer_says_who_served_it(fleet: Fleet) -> None:
    """Request id, decision, and both workers, on streams too."""
    body = {"model": MODEL, "prompt": "who", "max_tokens": 2}
    whole = post(fleet.url + PLAIN, json.dumps(body).encode())
    streamed = post(fleet.url + PLAIN, json.dumps({**body, "stream": True}).encode())

    for answer in (whole, streamed):
        assert answer.headers["x-request-id"].startswith("req-")
        assert answer.headers["x-prfaas-decision"].startswith("dec-")
        assert "/" in answer.headers["x-prfaas-prefill"]
        assert "/" in answer.headers["x-prfaas-decode"]


BAD = {
    "no body": (CHAT, b"", 400),
    "not JSON": (CHAT, b"{oops", 400),
    "an array": (CHAT, b"[]", 400),
    "invalid UTF-8": (CHAT, b'{"model":"\xff\xfe"}', 400),
    "UTF-16": (CHAT, '{"model":"x"}'.encode("utf-16"), 400),
    "a NUL byte": (PLAIN, b'{"model":"prfaas-reference","prompt":"a\x00b"}', 400),
    "an escaped NUL": (PLAIN, b'{"model":"prfaas-reference","prompt":"a\\u0000b"}', 400),
    "a lone surrogate": (PLAIN, b'{"model":"prfaas-reference","prompt":"\\ud800"}', 400),
    "duplicate keys": (PLAIN, b'{"model":"prfaas-reference","prompt":"a","prompt":"b"}', 400),
    "NaN": (PLAIN, b'{"model":"prfaas-reference","prompt":"a","temperature":NaN}', 400),
    "deep nesting": (PLAIN, b"[" * 100_000, 400),
    "a huge integer": (PLAIN, b'{"max_tokens":' + b"9" * 5000 + b"}", 400),
    "a missing model": (PLAIN, b'{"prompt":"a"}', 400),
    "a wrong type": (PLAIN, b'{"model":"prfaas-reference","prompt":"a","max_tokens":"5"}', 400),
    "a boolean count": (PLAIN, b'{"model":"prfaas-reference","prompt":"a","max_tokens":true}', 400),
    "negative tokens": (PLAIN, b'{"model":"prfaas-reference","prompt":"a","max_tokens":-1}', 400),
    "an empty prompt": (PLAIN, b'{"model":"prfaas-reference","prompt":""}', 400),
    "no messages": (CHAT, b'{"model":"prfaas-reference","messages":[]}', 400),
    "an unknown role": (
        CHAT,
        b'{"model":"prfaas-reference","messages":[{"role":"tool","content":"x"}]}',
        400,
    ),
    "a token out of the vocabulary": (PLAIN, b'{"model":"prfaas-reference","prompt":[99999]}', 400),
    "a negative token": (PLAIN, b'{"model":"prfaas-reference","prompt":[-1]}', 400),
    "two choices": (PLAIN, b'{"model":"prfaas-reference","prompt":"a","n":2}', 400),
    "an unknown field": (PLAIN, b'{"model":"prfaas-reference","prompt":"a","wat":1}', 400),
    "too long a prompt": (
        PLAIN,
        b'{"model":"prfaas-reference","prompt":"' + b"x" * 20_000 + b'"}',
        400,
    ),
    "too long with its output": (
        PLAIN,
        b'{"model":"prfaas-reference","prompt":"a","max_tokens":16384}',
        400,
    ),
    "another model": (PLAIN, b'{"model":"other","prompt":"a"}', 404),
}


@pytest.mark.parametrize(("path", "body", "status"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_refused_with_a_code(
    fleet: Fleet, path: str, body: bytes, status: int
) -> None:
    """4xx with a code and a message, never 500, never a hang."""
    answer = post(fleet.url + path, body)

    error = answer.json()["error"]
    assert answer.status == status
    assert error["code"]
    assert error["message"]
    assert error["request_id"] == answer.headers["x-request-id"]


def test_a_wrong_type_is_named_by_its_field(fleet: Fleet) -> None:
    """The path of the field, as a caller would write it."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": 5}]}

    answer = post(fleet.url + CHAT, json.dumps(body).encode())

    assert answer.json()["error"]["param"] == "messages[0].content"


def test_a_wrong_method_is_told_the_right_one(fleet: Fleet) -> None:
    """405 with Allow."""
    answer = get(fleet.url + CHAT)

    assert answer.status == 405
    assert "POST" in answer.headers["allow"]
    assert answer.json()["error"]["code"] == "method_not_allowed"


def test_an_unknown_route_is_not_found(fleet: Fleet) -> None:
    """404 in the same shape."""
    answer = get(fleet.url + "/v1/embeddings")

    assert answer.status == 404
    assert answer.json()["error"]["code"] == "unknown_route"


def test_the_admin_api_cannot_be_reached_through_the_data_listener(fleet: Fleet) -> None:
    """Its listener is its own."""
    assert get(fleet.url + "/admin/v1/state").status == 404


def test_a_huge_body_is_refused_before_it_is_read(fleet: Fleet) -> None:
    """The length header is enough: nothing of the body was sent."""
    answer = raw(
        fleet,
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: 99999999999\r\n\r\n",
    )

    assert answer.startswith(b"HTTP/1.1 413")


def test_a_body_that_is_announced_politely_is_refused_before_it_is_sent(fleet: Fleet) -> None:
    """`Expect: 100-continue` gets 413 and no 100."""
    answer = raw(
        fleet,
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
        b"Content-Length: 99999999999\r\n\r\n",
    )

    assert answer.startswith(b"HTTP/1.1 413")


def test_a_chunked_body_is_counted(fleet: Fleet) -> None:
    """Without a length header the bytes themselves are the limit."""
    head = (
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
        b"Content-Type: application/json\r\n\r\n"
    )
    chunk = b"100000\r\n" + b" " * (1 << 20) + b"\r\n"
    with socket.create_connection(
        ("127.0.0.1", fleet.config.router.port), timeout=10
    ) as connection:
        connection.sendall(head)
        answer = b""
        try:
            for _ in range(40):
                connection.sendall(chunk)
            answer = connection.recv(65536)
        except ConnectionError:
            answer = answer or connection.recv(65536)

    assert b" 413 " in answer.split(b"\r\n")[0]


def test_a_compressed_body_is_refused(fleet: Fleet) -> None:
    """A small body must not become a large one."""
    answer = post(fleet.url + PLAIN, b"x", {"content-encoding": "gzip"})

    assert answer.status == 400


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n",
        b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
    ids=["binary", "version", "two lengths", "unknown coding", "long line"],
)
def test_garbage_on_the_socket_is_refused(fleet: Fleet, request_bytes: bytes) -> None:
    """400 at the parser; the listener goes on."""
    answer = raw(fleet, request_bytes)

    assert answer.split(b" ")[1].startswith(b"4")
    assert get(fleet.url + "/health").status == 200
