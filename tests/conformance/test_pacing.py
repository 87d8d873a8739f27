"""Tokens reach the client as the engine makes them: no bursts, and no waiting for a full packet."""

from __future__ import annotations

from statistics import median

import pytest

from conformance.router import Router
from conformance.servers import Servers
from conformance.streams import Client

PREFILL_S = 0.05
FIRST_TOKEN_S = 0.02
STEP_S = 0.02
TOKENS = 12
#: What two busy cores may add; a delayed acknowledgement adds 40 ms.
ADDED_S_MAX = 0.03


@pytest.fixture
def paced(servers: Servers) -> Servers:
    for fake in servers.all:
        fake.prefill_s, fake.first_token_s, fake.step_s_per_stream = (
            PREFILL_S, FIRST_TOKEN_S, STEP_S,
        )  # fmt: skip
    return servers


@pytest.mark.usefixtures("paced")
def test_the_first_token_and_each_gap_are_the_engines(router: Router) -> None:
    # Kept: on a new connection the first answers are acknowledged at once.
    with Client(router.url) as client:
        streams = [
            client.stream("/v1/completions", prompt=f"{number} paced", max_tokens=TOKENS)
            for number in range(9)
        ]

    added_s = median(one.times_s[0] for one in streams) - PREFILL_S - FIRST_TOKEN_S
    gaps_s = [gap for one in streams for gap in one.gaps_s]
    bursts = sum(gap < 0.2 * STEP_S for gap in gaps_s) / len(gaps_s)
    print(
        f"first token + {added_s * 1000:.1f} ms; gaps {median(gaps_s) * 1000:.1f} ms for "
        f"{STEP_S * 1000:.0f} ms; {bursts:.0%} in bursts"
    )
    assert {len(one.times_s) for one in streams} == {TOKENS}
    assert added_s < ADDED_S_MAX
    assert median(gaps_s) == pytest.approx(STEP_S, rel=0.3)
    assert bursts < 0.15
