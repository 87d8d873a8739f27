"""A client that leaves: its work ends at the servers, on whichever leg it is."""

from __future__ import annotations

import pytest
from fleets import wait_for

from conformance.router import Router
from conformance.servers import Servers
from conformance.streams import Client

CLIENTS = 8
#: From leaving to the abort at the server.
WITHIN_S = 3.0


def aborted(servers: Servers) -> int:
    return sum(len(fake.aborted) for fake in servers.all)


def test_a_stream_that_is_left_is_aborted(router: Router, servers: Servers) -> None:
    for fake in servers.decode:
        fake.step_s_per_stream = 0.05
    for number in range(CLIENTS):
        Client(router.url).leave_after(
            1, "/v1/completions", prompt=f"{number} leaves", max_tokens=400
        )

    wait_for(lambda: aborted(servers) == CLIENTS, WITHIN_S)


@pytest.mark.parametrize("leg", ["prefill", "decode"])
def test_a_whole_answer_that_nobody_waits_for_is_aborted(
    router: Router, servers: Servers, leg: str
) -> None:
    for fake in servers.all:
        fake.prefill_s = 20.0 if leg == "prefill" else 0.0
        fake.first_token_s = 20.0
    for number in range(CLIENTS // 2):
        Client(router.url).leave_without_answer(
            "/v1/completions", 0.5, prompt=f"{number} {leg} leaves"
        )

    wait_for(lambda: aborted(servers) == CLIENTS // 2, WITHIN_S)
