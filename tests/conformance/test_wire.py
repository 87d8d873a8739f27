"""What goes over the wire: the servers judge every field of both legs, the client judges the answer."""

from __future__ import annotations

import pytest
from fakes.vllm import FakeVllm

from conformance.conftest import Answers
from conformance.router import Router
from conformance.servers import Servers
from conformance.streams import Client

PROMPT = "Prefill here, decode there, and nobody shall see the difference. " * 4


def asked(fakes: list[FakeVllm]) -> int:
    return sum(len(fake.bodies) for fake in fakes)


@pytest.mark.parametrize("length", [1, 300, 3000])
def test_a_completion_is_that_of_the_model(
    router: Router, servers: Servers, answer_to: Answers, length: int
) -> None:
    prompt = (PROMPT * 20)[:length]

    answer = router.complete(prompt)

    assert answer.status == 200, answer
    assert answer.json()["choices"][0]["text"] == answer_to.text(prompt)
    assert not servers.violations()


def test_a_chat_is_that_of_the_model(router: Router, servers: Servers, answer_to: Answers) -> None:
    answer = router.chat(PROMPT)

    assert answer.status == 200, answer
    assert answer.json()["choices"][0]["message"]["content"] == answer_to.chat(PROMPT)
    assert not servers.violations()


@pytest.mark.parametrize("count", [1, 2, 40])
def test_a_stream_brings_the_same_text_and_its_end(
    router: Router, servers: Servers, answer_to: Answers, count: int
) -> None:
    with Client(router.url) as client:
        text = client.stream("/v1/completions", prompt=PROMPT, max_tokens=count)
        messages = [{"role": "user", "content": PROMPT}]
        chat = client.stream("/v1/chat/completions", messages=messages, max_tokens=count)

    assert (text.text, text.is_done) == (answer_to.text(PROMPT, count), True)
    assert (chat.text, chat.is_done) == (answer_to.chat(PROMPT, count), True)
    assert not servers.violations()


def test_each_request_is_prefilled_once_and_decoded_once(router: Router, servers: Servers) -> None:
    for number in range(6):
        assert router.complete(f"{number} {PROMPT}").status == 200

    assert asked(servers.prefill) == 6
    assert asked(servers.decode) == 6


def test_both_legs_have_one_id(router: Router, servers: Servers) -> None:
    for number in range(4):
        router.complete(f"{number} {PROMPT}")

    ids = {
        leg: sorted(name for fake in servers.all for name in fake.request_ids[leg])
        for leg in ("prefill", "decode")
    }
    assert ids["prefill"] == ids["decode"]
    assert len(set(ids["prefill"])) == 4


def test_decode_brought_the_prompt_from_outside(router: Router, servers: Servers) -> None:
    before = [fake.sources["external_kv_transfer"] for fake in servers.decode]

    router.complete(PROMPT)

    moved = [
        fake.sources["external_kv_transfer"] - was
        for fake, was in zip(servers.decode, before, strict=True)
    ]
    assert sum(moved) == len(PROMPT)


def test_the_clients_own_sampling_reaches_decode(router: Router, servers: Servers) -> None:
    router.complete(PROMPT, max_tokens=5, temperature=0.25, top_p=0.5, seed=11)

    (body,) = [one for fake in servers.decode for one in fake.bodies]
    assert (body["max_tokens"], body["temperature"]) == (5, 0.25)
    assert (body["top_p"], body["seed"]) == (0.5, 11)
