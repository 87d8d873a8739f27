"""Five hundred servers: the router starts, uses them, and its memory stays in bounds."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from conformance.conftest import Answers
from conformance.router import a_router
from conformance.servers import some_servers
from controlplane.tokenizing import Tokenizer

SERVERS = 500
REQUESTS = 120
MIB = 1 << 20
PREFILL_S = 0.1


@pytest.mark.timeout(400)
def test_five_hundred_servers_are_used(
    tokenizer: Tokenizer, tokenizer_directory: Path, tmp_path: Path, answer_to: Answers
) -> None:
    with some_servers(tokenizer, prefill=SERVERS // 2, decode=SERVERS // 2) as servers:
        # Without any work, the noise of milliseconds would be all that tells servers apart.
        servers.take(PREFILL_S)
        began_s = time.perf_counter()
        with a_router(servers, tokenizer_directory, tmp_path) as router:
            ready_s = time.perf_counter() - began_s
            servers.restore()
            servers.take(PREFILL_S)
            asked_s = time.perf_counter()
            for number in range(REQUESTS):
                prompt = f"{number} among many"
                answer = router.complete(prompt)
                assert answer.json()["choices"][0]["text"] == answer_to.text(prompt)
            each_s = (time.perf_counter() - asked_s) / REQUESTS
            used = [
                sum(bool(fake.bodies) for fake in fakes)
                for fakes in (servers.prefill, servers.decode)
            ]
            resident = router.resident_bytes() / MIB
        print(
            f"ready after {ready_s:.1f} s, {used[0]} + {used[1]} used, {resident:,.0f} MiB, "
            f"{each_s * 1000:.0f} ms a request"
        )
        assert not servers.violations()
        # 120 throws at 250 hit 95 of them on average; a third of that is not a favourite few.
        assert min(used) > 30
