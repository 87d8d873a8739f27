"""What a fleet as a whole still does is told from what it does not, in runs made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chaos.hand_made import a_run, an_attempt

LEFT = {"event": "capacity_left", "rate_per_s": 2.0}
#: 200 requests in 100 s; the first 25 s are not counted.
LOAD = {"event": "own_load", "start_s": 0.0, "spec": {"count": 200, "rate_per_s": 2.0}}


def answered(count: int, **changes: Any) -> list[Any]:
    """Answers within what is counted of `LOAD`, evenly."""
    return [
        an_attempt(sent_s=25 + 75 * number / count, ended_s=25.5 + 74 * number / count, **changes)
        for number in range(count)
    ]


@pytest.mark.parametrize(("count", "is_kept"), [(150, True), (140, False)])
def test_goodput_is_held_against_the_capacity_measured_before(
    tmp_path: Path, *, count: int, is_kept: bool
) -> None:
    verdict = a_run(tmp_path, answered(count), "goodput", bound=0.95, events=[LEFT, LOAD])

    assert verdict.value == pytest.approx(count / 150)
    assert verdict.is_kept is is_kept


def test_refused_requests_are_no_goodput(tmp_path: Path) -> None:
    attempts = answered(150, end="error", code="shed")

    assert not a_run(tmp_path, attempts, "goodput", bound=0.95, events=[LEFT, LOAD]).is_kept


@pytest.mark.parametrize(("bytes_per_s", "is_kept"), [(1_000_000, True), (1_400_000, False)])
def test_egress_is_looked_at_in_every_window(
    tmp_path: Path, *, bytes_per_s: int, is_kept: bool
) -> None:
    """Above the cap for 6 s of 30 is above the cap."""
    sent, probes = 0, []
    for second in range(31):
        probes.append({"at_s": float(second), "egress_bytes": sent, "senders": 1})
        sent += bytes_per_s if 10 <= second < 16 else 100_000

    verdict = a_run(tmp_path, [an_attempt()], "egress", bound=1.0, probes=probes, mbit_per_s=8)

    assert verdict.is_kept is is_kept


@pytest.mark.parametrize(("served", "value"), [((5, 5, 5), 1.0), ((12, 2, 1), 0.2)])
def test_the_worst_served_tenant_is_held_against_a_fair_share(
    tmp_path: Path, served: tuple[int, int, int], value: float
) -> None:
    """All ask for more than there is; fifteen are served."""
    tenants = [f"t{number}" for number in range(3) for _ in range(20)]
    attempts = [
        an_attempt(end="done" if number % 20 < served[number // 20] else "error")
        for number in range(60)
    ]

    verdict = a_run(tmp_path, attempts, "fair_share", bound=0.8, tenants=tenants)

    assert verdict.value == pytest.approx(value)


def test_a_tenant_that_asks_for_little_gets_all_of_it(tmp_path: Path) -> None:
    """Half of what a modest one asked for is unfair, however little that is."""
    tenants = ["modest"] * 2 + ["greedy"] * 20
    attempts = [an_attempt(end="done" if number else "error") for number in range(22)]

    assert a_run(tmp_path, attempts, "fair_share", tenants=tenants).value == pytest.approx(0.5)


@pytest.mark.parametrize(("status", "is_kept"), [(429, True), (503, True), (500, False)])
def test_a_refusal_without_a_time_to_come_back_is_seen(
    tmp_path: Path, *, status: int, is_kept: bool
) -> None:
    attempts = [an_attempt(), an_attempt(end="error", status=status)]

    assert a_run(tmp_path, attempts, "refused_politely").is_kept is is_kept


@pytest.mark.parametrize(("counts", "is_kept"), [((2, 2), True), ((2, 3), False)])
def test_connects_are_counted_for_all_routers_together(
    tmp_path: Path, counts: tuple[int, int], *, is_kept: bool
) -> None:
    events = [{"event": "herd", "connects": {f"r{n}": count for n, count in enumerate(counts)}}]

    verdict = a_run(tmp_path, [an_attempt()], "connects", bound=2, events=events)

    assert (verdict.n, verdict.is_kept) == (2, is_kept)


@pytest.mark.parametrize(
    ("roles", "known", "routers", "is_kept"),
    [
        (["master", "master"], [4, 4], ["router-0", "router-1"], True),
        (["master", "slave"], [8, 8], ["router-0", "router-1"], False),
        (["master", "master"], [8, 0], ["router-0", "router-1"], False),
        (["master", "master"], [4, 4], ["router-0", "router-0"], False),
    ],
    ids=["both halves", "no split", "one half is empty", "one half serves nothing"],
)
def test_a_split_that_was_none_proves_nothing(
    tmp_path: Path, roles: list[str], known: list[int], routers: list[str], *, is_kept: bool
) -> None:
    events = [
        {"event": "split", "at_s": 1.0},
        {"event": "joined", "at_s": 20.0, "roles": roles, "known": known},
    ]
    attempts = [an_attempt(router=router) for router in routers]

    verdict = a_run(
        tmp_path,
        attempts,
        "served_by_halves",
        bound=1,
        events=events,
        routers=["router-0", "router-1"],
    )

    assert verdict.is_kept is is_kept


def test_versions_are_those_of_the_moment(tmp_path: Path) -> None:
    """An old decode worker behind a new router, then behind an old one; between two it is neither."""
    said = (("west/d", "old", 5), ("router-0", "", 20), ("router-0", "old", 30))
    events = [
        {"event": "version", "target": target, "version": version, "at_s": at_s}
        for target, version, at_s in said
    ]
    attempts = [
        an_attempt(sent_s=at_s, prefill="west/p", decode="west/d") for at_s in (1, 10, 25, 35)
    ]

    verdict = a_run(tmp_path, attempts, "version_pairs", bound=6, events=events)

    assert set(verdict.examples) == {
        "new router, old decode: 1",
        "new prefill, old decode: 3",
        "old router, new prefill: 1",
    }


HERD = {
    "event": "herd_served",
    "head_tokens": 512,
    "computed": {"p1": 512, "p2": 512},
    "coalesced": 3,
    "waiters_max": 100,
    "queue_max": 10,
    "seen": {"prfaas_requests_in_flight": 50, "prfaas_queue_depth_requests": 10},
}


def a_record(request_id: str, decided_s: float, first_token_s: float, tokens: int = 512) -> Any:
    return {
        "request_id": request_id,
        "router": "router-0",
        "wall_s": 1000.0,
        "timeline": {"decided_s": decided_s, "first_token_s": first_token_s},
        "attempts": [{"uncached_tokens": tokens}],
    }


@pytest.mark.parametrize(("begin_s", "value"), [(2.0, 1), (1.5, 2)])
def test_prefills_of_one_prompt_may_follow_each_other_and_not_overlap(
    tmp_path: Path, begin_s: float, value: int
) -> None:
    names = ("a", "b", "cached")
    records = [
        a_record("a", 1.0, 2.0),
        a_record("b", begin_s, 3.0),
        a_record("cached", 1.2, 3.0, 0),
    ]
    attempts = [an_attempt(request_id=name) for name in names]

    verdict = a_run(tmp_path, attempts, "prefills_at_once", bound=1, events=[HERD], records=records)

    assert verdict.value == value


def test_a_worker_that_computes_a_prompt_twice_is_seen(tmp_path: Path) -> None:
    herd = {**HERD, "computed": {"p1": 1024, "p2": 0}}
    records = [a_record("a", 1.0, 2.0)]
    attempts = [an_attempt(request_id="a")]

    verdict = a_run(tmp_path, attempts, "prefills_at_once", bound=1, events=[herd], records=records)

    assert not verdict.is_kept


@pytest.mark.parametrize(("queued", "is_kept"), [(10, True), (11, False)])
def test_what_waits_is_held_against_its_bounds(
    tmp_path: Path, *, queued: int, is_kept: bool
) -> None:
    seen = {**HERD["seen"], "prfaas_queue_depth_requests": queued}  # type: ignore[dict-item]

    verdict = a_run(tmp_path, [an_attempt()], "waiters", bound=1, events=[{**HERD, "seen": seen}])

    assert verdict.is_kept is is_kept
