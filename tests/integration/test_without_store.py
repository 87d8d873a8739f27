"""While the store is away the router asks the workers themselves, over real connections."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from fleets import Fleet, a_fleet, get, running, wait_for

_IN_DOUBT = ("suspect", "gone")


def workers(fleet: Fleet) -> dict[str, dict[str, Any]]:
    """All workers that the router knows, by id."""
    return {
        worker["worker_id"]: worker
        for site in fleet.state()["datacenters"]
        for worker in site["workers"]
    }


def test_a_worker_that_dies_while_the_store_is_away_is_noticed_in_seconds(tmp_path: Path) -> None:
    """Doubted at the next probe, and gone after its time to live; the others answer all the time."""
    with running(a_fleet(), tmp_path) as fleet:
        assert fleet.complete("warm up").status == 200
        fleet.kill("redis")
        wait_for(lambda: get(fleet.url + "/ready").json()["mode"] == "store_down", 20)
        known = workers(fleet)
        victim = next(name for name in sorted(known) if name.startswith("east/prefill"))

        fleet.kill(victim)
        killed_s = time.monotonic()
        wait_for(lambda: workers(fleet).get(victim, {"state": "gone"})["state"] in _IN_DOUBT, 20)
        doubted_s = time.monotonic() - killed_s
        wait_for(lambda: victim not in workers(fleet) or None, 30)
        gone_s = time.monotonic() - killed_s
        answers = [fleet.complete(f"request {number}").status for number in range(5)]
        others = [one["silence_s"] for name, one in workers(fleet).items() if name != victim]

    print(f"doubted after {doubted_s:.1f} s, dropped after {gone_s:.1f} s")
    assert answers == [200] * 5
    # They are asked once a second; what nobody asks is gone after five.
    assert sorted(others)[len(others) // 2] < 5
