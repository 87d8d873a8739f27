"""One server of each role that fails or is gone costs no request."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from conformance.conftest import Answers
from conformance.router import Router, a_router
from conformance.servers import Servers, some_servers
from controlplane.tokenizing import Tokenizer

REQUESTS = 40


@pytest.fixture
def own_servers(tokenizer: Tokenizer) -> Iterator[Servers]:
    """Of this test alone: some of them die."""
    with some_servers(tokenizer, prefill=2, decode=2) as servers:
        yield servers


@pytest.fixture
def own_router(own_servers: Servers, tokenizer_directory: Path, tmp_path: Path) -> Iterator[Router]:
    with a_router(own_servers, tokenizer_directory, tmp_path) as router:
        yield router


def answered(router: Router, answer_to: Answers) -> int:
    good = 0
    for number in range(REQUESTS):
        prompt = f"{number} of a fleet in trouble"
        answer = router.complete(prompt)
        good += answer.status == 200 and (
            answer.json()["choices"][0]["text"] == answer_to.text(prompt)
        )
    return good


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_a_server_that_answers_500_costs_no_request(
    router: Router, servers: Servers, answer_to: Answers, role: str
) -> None:
    getattr(servers, role)[0].status = 500

    assert answered(router, answer_to) == REQUESTS


@pytest.mark.timeout(240)
def test_servers_that_are_gone_cost_no_request(
    own_router: Router, own_servers: Servers, answer_to: Answers
) -> None:
    own_servers.kill(own_servers.prefill[0])
    own_servers.kill(own_servers.decode[1])

    assert answered(own_router, answer_to) == REQUESTS
