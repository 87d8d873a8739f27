"""The checks: each takes the evidence of a run and gives a value to hold against its bound."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, Final, TypeAlias

from chaos.answers import has_gap, has_repeat, is_beginning, is_right
from chaos.evidence import Evidence, quantile
from chaos.findings import EXAMPLES_MAX, Finding, counted
from chaos.fleet_checks import FLEET_CHECKS
from chaos.link_checks import LINK_CHECKS

CheckFunction: TypeAlias = Callable[[Evidence, Mapping[str, Any]], Finding]

_CALL_COUNTS: Final = ("connections", "reads_up")
#: Exit status of a worker that met a poison request (`chaos_worker.py`).
_POISONED: Final = 9


def lost(run: Evidence, _: Mapping[str, Any]) -> Finding:
    """Accepted, the client stayed, and no terminal event came; sent on and on in vain is the same."""
    found = [
        f"{attempt.request_id or request.number}: {attempt.end} {attempt.code} at {attempt.router}"
        for request, attempt in run.attempts()
        if attempt.end in {"timeout", "silent"} or (attempt.end == "refused")
    ]
    return counted(found, len(run.requests), "requests lost")


def wrong(run: Evidence, _: Mapping[str, Any]) -> Finding:
    """Any difference from the answers known before; of a cut answer, from their beginning."""
    found = []
    for request, attempt in run.attempts():
        item = run.pool[request.item]
        is_fine = is_right(attempt, item) if attempt.end == "done" else is_beginning(attempt, item)
        if not is_fine:
            found.append(f"{attempt.request_id}: {attempt.text!r} instead of {item.text!r}")
    return counted(found, sum(1 for _ in run.attempts()), "answers wrong")


def repeated(run: Evidence, _: Mapping[str, Any]) -> Finding:
    """A token twice or a token missing in a stream that claims to be whole."""
    found = []
    streams = 0
    for request, attempt in run.attempts():
        item = run.pool[request.item]
        if not request.is_stream or attempt.end != "done":
            continue
        streams += 1
        if has_repeat(attempt.text, item.text) or has_gap(attempt.text, item.text):
            found.append(f"{attempt.request_id}: {attempt.text!r} instead of {item.text!r}")
    return counted(found, streams, "streams with a gap or a repeat")


def broken(run: Evidence, _: Mapping[str, Any]) -> Finding:
    """Connections cut, but for those whose own router was killed at that moment."""
    cut = [(r, a) for r, a in run.attempts() if a.end == "broken"]
    found = [
        f"{attempt.request_id or request.number}: {attempt.code} at {attempt.router}"
        for request, attempt in cut
        if not run.killed_beside(attempt)
    ]
    victims = len(cut) - len(found)
    what = "streams broken" + (f" ({victims} more by the death of their router)" if victims else "")
    return counted(found, len(run.requests), what)


def success(run: Evidence, _: Mapping[str, Any]) -> Finding:
    """Requests answered in full, of all but those that left or whose router was killed."""
    ends: Counter[str] = Counter()
    for request in run.requests:
        last = request.last
        if last.end == "left" or (last.end == "broken" and run.killed_beside(last)):
            continue
        ends[last.end if last.end != "error" else f"error {last.code}"] += 1
    total = ends.total()
    failed = {end: count for end, count in ends.items() if end != "done"}
    return Finding(
        value=ends["done"] / total if total else 0.0,
        n=total,
        what=f"success{f', failed: {failed}' if failed else ''}",
        is_floor=True,
        examples=tuple(
            f"{request.last.request_id or request.number}: {request.last.end} {request.last.code}"
            for request in run.requests
            if request.last.end not in {"done", "left"}
        )[:EXAMPLES_MAX],
    )


def retries(run: Evidence, _: Mapping[str, Any]) -> Finding:
    """Further attempts that clients made because the API told them to, by request."""
    more = sum(len(request.attempts) - 1 for request in run.requests)
    codes = Counter(attempt.code for request in run.requests for attempt in request.attempts[:-1])
    share = more / len(run.requests) if run.requests else 0.0
    return Finding(value=share, n=len(run.requests), what=f"retries by clients {dict(codes)}")


def leaks(run: Evidence, _: Mapping[str, Any]) -> Finding:
    """Claims in Redis, leases and jobs at workers, requests at routers, after one time to live."""
    held = {f"redis {kind}": count for kind, count in run.end["redis"].items()}
    for worker, samples in run.end["workers"].items():
        held |= {
            f"{worker} {name}": value
            for name, value in samples.items()
            if not name.startswith("prfaas_jobs_total")
        }
    for router, samples in run.end["routers"].items():
        gauges = ("prfaas_requests_in_flight", "prfaas_link_reserved_bytes")
        held |= {f"{router} {k}": v for k, v in samples.items() if k.startswith(gauges)}
    found = [f"{name} = {value:g}" for name, value in held.items() if value]
    what = f"leases and claims left after {run.end['ttl_s']:g} s"
    answering = sum(bool(samples) for samples in run.end["workers"].values())
    return counted(found, len(run.requests) if answering else 0, what)


def added_ttft(run: Evidence, options: Mapping[str, Any]) -> Finding:
    """
    TTFT of requests that were open when a worker died, beyond an ordinary one.

    Ordinary is the median of streams that no death touched: it stands for one prefill.
    """
    deaths = [event["at_s"] for event in run.named("kill") if options["role"] in event["target"]]
    touched: list[float] = []
    calm: list[float] = []
    for request, attempt in run.attempts():
        if not request.is_stream or attempt.first_s is None:
            continue
        ttft_s = attempt.first_s - attempt.sent_s
        is_touched = any(attempt.sent_s <= at_s <= attempt.first_s for at_s in deaths)
        (touched if is_touched else calm).append(ttft_s)
    median_s = quantile(calm, 0.5)
    return Finding(
        value=max(0.0, quantile(touched, 0.99) - median_s),
        n=len(touched),
        what=f"added TTFT p99 (median of the others {median_s:.3f} s)",
        unit="s",
    )


def stall(run: Evidence, options: Mapping[str, Any]) -> Finding:
    """Longest silence within streams that were open when a worker died."""
    deaths = [event["at_s"] for event in run.named("kill") if options["role"] in event["target"]]
    gaps = []
    for request, attempt in run.attempts():
        if not request.is_stream or attempt.end != "done" or not attempt.pieces:
            continue
        times = [at_s for at_s, _ in attempt.pieces]
        if any(times[0] <= at_s <= times[-1] for at_s in deaths):
            gaps.append(max(b - a for a, b in pairwise(times)))
    return Finding(
        value=quantile(gaps, 0.99), n=len(gaps), what="longest silence of a stream, p99", unit="s"
    )


def longest_silence(run: Evidence, _: Mapping[str, Any]) -> Finding:
    """Longest wait for the next piece in any stream, its first included."""
    waits = [
        max(b - a for a, b in pairwise([attempt.sent_s, *(at_s for at_s, _ in attempt.pieces)]))
        for request, attempt in run.attempts()
        if request.is_stream and attempt.pieces
    ]
    return Finding(
        value=max(waits, default=0.0), n=len(waits), what="longest silence of any stream", unit="s"
    )


def promoted(run: Evidence, _: Mapping[str, Any]) -> Finding:
    """From the death of the master to another one, and all whole again after the load."""
    found = [event["after_s"] for event in run.named("promoted")]
    whole = run.named("whole")
    return Finding(
        value=max(found, default=0.0),
        n=len(found) * len(whole),
        what="replica promoted, everything whole after it",
        unit="s",
    )


def rebuilt(run: Evidence, _: Mapping[str, Any]) -> Finding:
    """Slowest return of all workers to Redis and to every view after a flush."""
    found = [event["after_s"] for event in run.named("rebuilt")]
    return Finding(value=max(found, default=0.0), n=len(found), what="view rebuilt", unit="s")


def decision_time(run: Evidence, options: Mapping[str, Any]) -> Finding:
    """From a parsed request to its first placement, the store's answer included."""
    times = []
    for record in run.records:
        line = record["timeline"]
        if len(record["attempts"]) != 1 or line["decided_s"] is None:
            continue
        until_s = line["reserved_s"] or line["prefill_accepted_s"]
        if until_s is not None:
            times.append(until_s - line["parsed_s"])
    share = options.get("share", 0.99)
    name = "max" if share == 1 else f"p{share * 100:g}"
    return Finding(
        value=quantile(times, share), n=len(times), what=f"request to placement {name}", unit="s"
    )


def store_calls(run: Evidence, _: Mapping[str, Any]) -> Finding:
    """Calls a second and replica that reach for a store that is away, breaker open."""
    stats = run.named("stats")
    if len(stats) < 2:
        return Finding(value=0.0, n=0, what="store calls while away")
    first, last = stats[0], stats[-1]
    seconds = last["at_s"] - first["at_s"]
    # A call is a connection that failed, or what was said on one: never counted twice.
    calls = [
        max(last["links"][name][kind] - first["links"][name][kind] for kind in _CALL_COUNTS)
        for name in last["links"]
        if name.startswith("redis-router")
    ]
    return Finding(
        value=max(calls) / seconds,
        n=round(seconds),
        what="store calls a second while away",
        unit="1/s",
    )


def offloads_while_cut(run: Evidence, options: Mapping[str, Any]) -> Finding:
    """Requests that came later than the grace after a cut, and were sent over it."""
    grace_s = options.get("grace_s", 2.0)
    cuts = [
        (event["wall_s"] + grace_s, event["wall_s"] + event["for_s"])
        for event in run.named("fault")
        if "is_stalled" in event["faults"] or "is_black_hole" in event["faults"]
    ]
    within = [r for r in run.records if any(a <= r["wall_s"] <= b for a, b in cuts)]
    found = [
        record["request_id"]
        for record in within
        for attempt in record["attempts"]
        if attempt["placement"] and attempt["placement"]["prefill_datacenter"] == "east"
    ]
    return counted(found, len(within), f"offloads begun {grace_s:g} s after a cut")


def abort_time(run: Evidence, _: Mapping[str, Any]) -> Finding:
    """From a client's leaving to the moment when no worker works or holds anything for it."""
    left = [probe for probe in run.probes if probe["end"] == "left"]
    middle = sum(probe["pieces"] > 0 for probe in left)
    return Finding(
        value=max((probe["idle_after_s"] for probe in left), default=0.0),
        n=len(left),
        what=f"slowest abort after a client left ({middle} of them in mid-stream)",
        unit="s",
    )


def poison_deaths(run: Evidence, _: Mapping[str, Any]) -> Finding:
    """Worker processes that one request has ended, its repetitions included."""
    marked = run.named("marked")
    fingerprints = {event["marker"] for event in marked}
    deaths = [event for event in run.named("ended") if event["status"] == _POISONED]
    counts = []
    for marker in fingerprints:
        first_s = min(event["at_s"] for event in marked if event["marker"] == marker)
        next_s = min(
            (e["at_s"] for e in marked if e["marker"] != marker and e["at_s"] > first_s),
            default=float("inf"),
        )
        counts.append(sum(first_s <= event["at_s"] < next_s for event in deaths))
    return Finding(
        value=max(counts, default=0), n=len(fingerprints), what="workers ended by one request"
    )


def poison_refused(run: Evidence, _: Mapping[str, Any]) -> Finding:
    """Poison requests whose last answer is that they are refused for good."""
    ends = [probe["attempts"][-1] for probe in run.probes]
    refused = sum(end["code"] == "request_quarantined" for end in ends)
    told = Counter(f"{end['end']} {end['code']}" for end in ends)
    return Finding(
        value=refused / len(ends) if ends else 0.0,
        n=len(ends),
        what=f"poison refused for good {dict(told)}",
        is_floor=True,
    )


def served_by_strangers(run: Evidence, _: Mapping[str, Any]) -> Finding:
    """Answers with a part of a worker whose weights are others."""
    found = [
        f"{attempt.request_id}: {attempt.prefill} {attempt.decode}"
        for _, attempt in run.attempts()
        if "stranger" in attempt.prefill + attempt.decode
    ]
    during = len(run.requests) if run.named("strangers") else 0
    return counted(found, during, "requests at workers of another fingerprint")


def exit_time(run: Evidence, _: Mapping[str, Any]) -> Finding:
    """From SIGTERM to the end of a router."""
    found = [event["after_s"] for event in run.named("left")]
    return Finding(value=max(found, default=0.0), n=len(found), what="SIGTERM to exit", unit="s")


def crashes(run: Evidence, _: Mapping[str, Any]) -> Finding:
    """Processes that ended although nobody killed them."""
    killed = Counter(
        event["target"] for event in run.named("kill", "term") if event.get("hit", True)
    )
    ended = Counter(event["target"] for event in run.named("ended") if event["status"] != _POISONED)
    found = [f"{name} x{count}" for name, count in (ended - killed).items()]
    return counted(found, len(run.scenario["routers"]) + len(run.scenario["workers"]), "crashes")


CHECKS: Final[dict[str, CheckFunction]] = {
    check.__name__: check
    for check in (
        lost, wrong, repeated, broken, success, retries, leaks, added_ttft, stall, rebuilt,
        decision_time, store_calls, offloads_while_cut, abort_time, exit_time, crashes, poison_deaths, poison_refused,
        served_by_strangers, longest_silence, promoted, *FLEET_CHECKS, *LINK_CHECKS,
    )
}  # fmt: skip
