"""Clients leave at every stage of a request; within a second nobody works for them any more."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import pytest
from fleets import MODEL, Fleet, a_fleet, get, parse_metrics, running, wait_for

from controlplane.config import LimitsConfig

#: A second by promise, which `make chaos` measures. On a busy machine looking at four processes
#: takes longer than that; what nobody aborts goes on for much longer.
WITHIN_S = 6.0

PREFILL, DECODE, NEAR = "east/prefill-0", "west/decode-0", "west/prefill-0"

LONG = "a long prompt that takes its time " * 220


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """
    One request at a time, so that a second one waits for its place, over a link on which KV takes
    longer than to compute it.
    """
    config = a_fleet(
        east_prefill=1,
        west_decode=1,
        mbit_per_s=10,
        limits=LimitsConfig(requests_max=1, queue_requests_max=4, queue_wait_s=60),
    )
    with running(config, tmp_path_factory.mktemp("fleet")) as running_fleet:
        yield running_fleet


def asks(fleet: Fleet, prompt: str, **fields: Any) -> socket.socket:
    """A request that is under way; closing the socket is all that its client still does."""
    body = json.dumps(
        {"model": MODEL, "prompt": prompt, "temperature": 0, "stream": True, **fields}
    ).encode()
    client = socket.create_connection(("127.0.0.1", fleet.config.router.port))
    client.sendall(
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    )
    return client


def router_metrics(fleet: Fleet) -> dict[str, float]:
    return parse_metrics(get(fleet.admin_url + "/metrics").body.decode())


def is_idle(fleet: Fleet) -> bool:
    """No request in the router, and no job, lease or byte at a worker."""
    router = router_metrics(fleet)
    if router["prfaas_requests_in_flight"] or router["prfaas_queue_depth_requests"]:
        return False
    for name in (PREFILL, DECODE, NEAR):
        samples = fleet.metrics(name)
        if samples["prfaas_queue_depth_requests"] or samples["prfaas_queue_depth_tokens"]:
            return False
        if samples.get("prfaas_segment_bytes", 0) or samples.get("prfaas_leases_active", 0):
            return False
    return True


def until_idle_s(fleet: Fleet) -> float:
    """How long it takes until nobody works any more."""
    began_s = time.monotonic()
    wait_for(lambda: is_idle(fleet), 20)
    return time.monotonic() - began_s


def jobs(fleet: Fleet, name: str) -> float:
    """Jobs that a worker has ended, however."""
    samples = fleet.metrics(name)
    return sum(value for key, value in samples.items() if key.startswith("prfaas_jobs_total{"))


def is_prefilling(fleet: Fleet) -> bool:
    return fleet.metrics(PREFILL)["prfaas_queue_depth_tokens"] > 0


def is_transferring(fleet: Fleet) -> bool:
    """The prefill worker has computed everything, and its reader has not got it yet."""
    samples = fleet.metrics(PREFILL)
    return not samples["prfaas_queue_depth_tokens"] and samples["prfaas_segment_bytes"] > 0


@pytest.mark.parametrize("stage", [is_prefilling, is_transferring])
def test_a_client_that_leaves_before_the_first_token(
    fleet: Fleet, stage: Callable[[Fleet], bool]
) -> None:
    """Prefill stops, the segment is dropped, and the decode worker waits for nothing."""
    wait_for(lambda: is_idle(fleet), 20)
    made = fleet.metrics(DECODE)["prfaas_output_tokens"]
    client = asks(fleet, f"{stage.__name__} {LONG}", max_tokens=600)
    wait_for(lambda: stage(fleet), 20)

    client.close()
    took_s = until_idle_s(fleet)

    print(f"{stage.__name__}: idle {took_s:.2f} s after the client left")
    assert took_s < WITHIN_S
    assert fleet.metrics(DECODE)["prfaas_output_tokens"] == made, "it was left before it decoded"


def test_a_client_that_leaves_while_its_answer_is_written(fleet: Fleet) -> None:
    """Decode stops in the middle."""
    wait_for(lambda: is_idle(fleet), 20)
    client = asks(fleet, "hello", max_tokens=2000)
    wait_for(lambda: b"data: " in client.recv(1 << 16), 20)

    client.close()
    took_s = until_idle_s(fleet)

    print(f"decoding: idle {took_s:.2f} s after the client left")
    assert took_s < WITHIN_S


def test_a_client_that_leaves_the_queue(fleet: Fleet) -> None:
    """Its place in the queue is free at once, and no worker ever hears of it."""
    wait_for(lambda: is_idle(fleet), 20)
    begun = jobs(fleet, PREFILL) + jobs(fleet, NEAR)
    first = asks(fleet, "hello", max_tokens=2000)
    wait_for(lambda: b"data: " in first.recv(1 << 16), 20)
    second = asks(fleet, "is it my turn?", max_tokens=4)
    wait_for(lambda: router_metrics(fleet)["prfaas_queue_depth_requests"] == 1, 20)

    second.close()
    left_s = time.monotonic()
    wait_for(lambda: router_metrics(fleet)["prfaas_queue_depth_requests"] == 0, 20)
    took_s = time.monotonic() - left_s
    first.close()
    until_idle_s(fleet)

    print(f"queued: gone {took_s:.2f} s after the client left")
    assert took_s < WITHIN_S
    assert jobs(fleet, PREFILL) + jobs(fleet, NEAR) == begun + 1


def test_clients_that_leave_at_any_moment_leave_nothing_behind(fleet: Fleet) -> None:
    """Two dozen of them, each after a time drawn at random; then one that stays is served."""
    wait_for(lambda: is_idle(fleet), 20)
    random = Random(5)
    for number in range(24):
        prompt = random.choice(["short", "middle " * 120, LONG])
        client = asks(fleet, f"{number} {prompt}", max_tokens=200)
        time.sleep(random.uniform(0, 0.5))
        client.close()

    took_s = until_idle_s(fleet)

    print(f"two dozen: idle {took_s:.2f} s after the last left")
    assert took_s < WITHIN_S
    assert fleet.complete("still there?").status == 200


def test_clients_that_never_finish_their_head_are_closed_by_a_real_router(fleet: Fleet) -> None:
    """Its event loop is not the one of the other tests."""
    wait_for(lambda: is_idle(fleet), 20)
    address = ("127.0.0.1", fleet.config.router.port)
    half_open = [socket.create_connection(address) for _ in range(200)]
    for client in half_open:
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n")
    began_s = time.monotonic()

    assert fleet.complete("are you there?", max_tokens=2).status == 200
    for client in half_open:
        client.settimeout(20)
        assert client.recv(1) == b""
        client.close()
    took_s = time.monotonic() - began_s

    print(f"200 half-open: closed after {took_s:.2f} s")
    # By the deadline of a head, 5 s, and not that of a connection without one, 75 s.
    assert took_s <= 20
    assert router_metrics(fleet)['prfaas_connections_closed_total{cause="head"}'] == 200
