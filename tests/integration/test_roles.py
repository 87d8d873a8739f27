"""Real workers change their role and lend their time, and requests do not notice."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

from fleets import Answer, Fleet, a_fleet, post, running, wait_for

from controlplane.config import FleetConfig
from controlplane.config_planner import PlannerConfig


def a_convertible_fleet(west_prefill: int = 1) -> FleetConfig:
    """West alone: one prefill worker and two decode workers that do what they are asked to."""
    fleet = a_fleet(
        east_prefill=0,
        west_prefill=west_prefill,
        threshold_tokens=1 << 20,
        planner=PlannerConfig(enabled=False),
    )
    sites = [site.model_copy(update={"convertible": True}) for site in fleet.datacenters]
    return fleet.model_copy(update={"datacenters": tuple(sites)})


def workers(fleet: Fleet) -> dict[str, Any]:
    """What the router knows, by worker id."""
    sites = fleet.state()["datacenters"]
    found = {one["worker_id"]: one for site in sites for one in site["workers"]}
    return {name: one for name, one in found.items() if not one["is_draining"]}


def change(fleet: Fleet, name: str, role: str, **fields: Any) -> Answer:
    """Ask a worker for a role, as the planner does."""
    body = {
        "incarnation": workers(fleet)[name]["incarnation"],
        "role": role,
        "dwell_s": 0,
        **fields,
    }
    return post(fleet.worker_url(name) + "/worker/v1/role", json.dumps(body).encode())


def has_role(fleet: Fleet, name: str, role: str) -> bool:
    return bool(workers(fleet).get(name, {}).get("role") == role)


class Traffic:
    """Requests, one after the other in each of two threads, until the end of the block."""

    def __init__(self, fleet: Fleet) -> None:
        self.answers: list[Answer] = []
        self._fleet = fleet
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(2)

    def __enter__(self) -> Self:
        for number in range(2):
            self._pool.submit(self._ask, number)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._pool.shutdown()

    def _ask(self, number: int) -> None:
        count = 0
        while not self._stop.is_set():
            count += 1
            answer = self._fleet.complete(f"thread {number} asks {count} " * 8, max_tokens=12)
            self.answers.append(answer)

    def at(self, phase: str) -> set[str]:
        """Workers that served so far."""
        return {answer.headers[f"x-prfaas-{phase}"] for answer in self.answers}


def test_a_worker_serves_another_role_under_another_life(tmp_path: Path) -> None:
    """Every request of the time is answered; the worker keeps its name and its address."""
    with running(a_convertible_fleet(), tmp_path) as fleet, Traffic(fleet) as traffic:
        before, url = workers(fleet)["west/decode-1"], fleet.worker_url("west/decode-1")

        accepted = change(fleet, "west/decode-1", "prefill", dwell_s=60)
        wait_for(lambda: has_role(fleet, "west/decode-1", "prefill"), 20)
        fleet.kill("west/prefill-0")
        wait_for(lambda: "west/decode-1" in traffic.at("prefill"), 20)
        late = post(
            url + "/worker/v1/role",
            json.dumps(
                {"incarnation": before["incarnation"], "role": "decode", "dwell_s": 0}
            ).encode(),
        )
        again = change(fleet, "west/decode-1", "decode")

        after = workers(fleet)["west/decode-1"]
        assert fleet.worker_url("west/decode-1") == url

    assert (accepted.status, accepted.json()["role"]) == (202, "prefill")
    assert after["incarnation"] != before["incarnation"]
    assert (late.status, late.json()["code"]) == (409, "role_incarnation")
    assert (again.status, again.json()["code"]) == (409, "role_dwell")
    assert {answer.status for answer in traffic.answers} == {200}


def test_a_worker_that_is_killed_while_it_changes_loses_nothing(tmp_path: Path) -> None:
    """Its streams go on at the other one, as after any death."""
    with running(a_convertible_fleet(), tmp_path) as fleet, ThreadPoolExecutor(4) as pool:
        answers = [
            pool.submit(fleet.complete, f"a long answer {number}", max_tokens=1500)
            for number in range(4)
        ]
        wait_for(lambda: fleet.metrics("west/decode-1")["prfaas_queue_depth_requests"] > 0, 20)

        changing = change(fleet, "west/decode-1", "prefill")
        fleet.kill("west/decode-1")
        done = [answer.result() for answer in answers]

    assert changing.json()["is_draining"]
    assert {answer.status for answer in done} == {200}
    assert {answer.headers["x-prfaas-decode"] for answer in done} >= {"west/decode-0"}


def test_a_decode_worker_lends_its_time_and_takes_it_back(tmp_path: Path) -> None:
    """What it lends is a prefill worker of its own, until it lends nothing."""
    with running(a_convertible_fleet(), tmp_path) as fleet, Traffic(fleet) as traffic:
        profile = workers(fleet)["west/decode-0"]

        lent = change(fleet, "west/decode-0", "decode", lend_share=0.25)
        wait_for(lambda: has_role(fleet, "west/decode-0.lent", "prefill"), 20)
        fleet.kill("west/prefill-0")
        wait_for(lambda: "west/decode-0.lent" in traffic.at("prefill"), 20)
        others = change(fleet, "west/decode-1", "decode", lend_share=0.25)
        wait_for(lambda: has_role(fleet, "west/decode-1.lent", "prefill"), 20)
        change(fleet, "west/decode-0", "decode", lend_share=0)
        wait_for(lambda: "west/decode-0.lent" not in workers(fleet), 40)
        served = len(traffic.answers)
        wait_for(lambda: len(traffic.answers) > served + 4, 20)

        assert workers(fleet)["west/decode-0"]["incarnation"] == profile["incarnation"]

    assert (lent.status, others.status) == (202, 202)
    assert {answer.status for answer in traffic.answers} == {200}
