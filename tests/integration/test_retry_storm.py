"""Many OpenAI clients that retry by themselves, at a router that can serve few of them at a time."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fleets import MODEL, Fleet, a_fleet, get, parse_metrics, running
from openai import OpenAI, RateLimitError

from controlplane.config import LimitsConfig, ModelConfig

CLIENTS = 24
REQUESTS_EACH = 2


def test_a_storm_of_retries_reaches_no_worker_and_passes(tmp_path: Path) -> None:
    """Workers see each admitted request once; afterwards everybody is served at once."""
    config = a_fleet(
        east_prefill=0,
        west_decode=1,
        policy="local_only",
        model=ModelConfig(layers=4, context_tokens_max=2048),
        limits=LimitsConfig(
            requests_max=2, queue_requests_max=4, queue_wait_s=2, retry_after_max_s=4
        ),
    )
    with running(config, tmp_path) as fleet, ThreadPoolExecutor(CLIENTS) as pool:
        outcomes: Counter[str] = Counter()
        for result in pool.map(lambda number: a_client(fleet, number), range(CLIENTS)):
            outcomes += result
        calm_s = time.monotonic()
        after = fleet.complete("and now?")
        calm_s = time.monotonic() - calm_s

        router = parse_metrics(get(fleet.admin_url + "/metrics").body.decode())
        refused = sum(
            value for key, value in router.items() if key.startswith("prfaas_shed_total{")
        )
        begun = jobs(fleet, "west/prefill-0") - 1
        offered = CLIENTS * REQUESTS_EACH
        print(
            f"{offered} requests: {dict(outcomes)}; {refused:.0f} refusals, {begun:.0f} prefills "
            f"for {outcomes['served']} served; {calm_s:.2f} s afterwards"
        )
        assert outcomes["served"] + outcomes["refused"] == offered
        assert begun <= 1.2 * outcomes["served"]
        # Each client asks three times at most, as told by `x-should-retry`.
        assert refused + outcomes["served"] <= 3 * offered
        assert outcomes["served"] >= offered / 4
        assert after.status == 200
        # At once, and not when those before it have given up.
        assert calm_s < 20


def a_client(fleet: Fleet, number: int) -> Counter[str]:
    """The SDK with its own retries, two of them."""
    outcomes: Counter[str] = Counter()
    with OpenAI(base_url=fleet.url + "/v1", api_key=f"key-{number}") as client:
        for one in range(REQUESTS_EACH):
            try:
                client.completions.create(
                    model=MODEL, prompt=f"client {number} asks {one}", max_tokens=32
                )
            except RateLimitError as error:
                outcomes["refused"] += 1
                assert "retry-after" in error.response.headers  # noqa: PT017 - a thread's own check
            else:
                outcomes["served"] += 1
    return outcomes


def jobs(fleet: Fleet, name: str) -> float:
    """Jobs that a worker has ended, however."""
    samples = fleet.metrics(name)
    return sum(value for key, value in samples.items() if key.startswith("prfaas_jobs_total{"))
