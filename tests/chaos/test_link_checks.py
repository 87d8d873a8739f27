"""What routers know of a link is judged, and a rate can be that of several connections' way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chaos.hand_made import a_run, an_attempt
from chaos.proxy import Proxy

#: 20 Mbit/s from second 100 to second 120.
THROTTLED = {
    "at_s": 1.0,
    "wall_s": 100.0,
    "event": "fault",
    "target": "kv-east-*",
    "for_s": 20.0,
    "faults": {"bytes_per_s": 2.5e6},
}


def a_record(wall_s: float, measured_bps: float) -> dict[str, Any]:
    """One attempt, decided when the link was thought to give so much."""
    link = {"capacity_bps": 200e6, "measured_bps": measured_bps}
    return {"request_id": "req-1", "wall_s": wall_s, "attempts": [{"links": [link]}]}


@pytest.mark.parametrize(
    ("wall_s", "measured_bps", "error", "n"),
    [
        pytest.param(106.0, 20e6, 0.0, 1, id="right"),
        pytest.param(106.0, 30e6, 0.5, 1, id="too high"),
        pytest.param(106.0, 10e6, 0.5, 1, id="too low"),
        pytest.param(106.0, 0.0, 9.0, 1, id="nothing measured is the budget"),
        pytest.param(104.0, 200e6, 0.0, 0, id="not to be known yet"),
        pytest.param(121.0, 200e6, 0.0, 0, id="over"),
    ],
)
def test_a_rate_is_held_against_that_of_the_throttled_link(
    tmp_path: Path, wall_s: float, measured_bps: float, error: float, n: int
) -> None:
    verdict = a_run(
        tmp_path,
        [an_attempt()],
        "rate_error",
        bound=0.3,
        events=[THROTTLED],
        records=[a_record(wall_s, measured_bps)],
        after_s=5.0,
        share=0.9,
    )

    assert (verdict.value, verdict.n) == (pytest.approx(error), n)
    assert verdict.is_kept is (n > 0 and error <= 0.3)


@pytest.mark.parametrize("is_shared", [True, False])
async def test_links_that_one_command_names_may_share_a_rate(*, is_shared: bool) -> None:
    proxy = Proxy(seed=1)
    for name in ("kv-east-1", "kv-east-2"):
        await proxy.do({"op": "listen", "link": name, "target": ["127.0.0.1", 9]})
    command = {"op": "fault", "link": "kv-*", "direction": "down"}

    await proxy.do({**command, "faults": {"bytes_per_s": 1000.0, "is_shared": is_shared}})
    first, second = proxy.links
    first.free_s["down"] = 7.0
    shared = second.free_s["down"] == 7.0
    await proxy.do({"op": "heal", "link": "*"})
    first.free_s["down"] = 8.0
    proxy.close()

    assert shared is is_shared
    assert second.free_s["down"] != 8.0
