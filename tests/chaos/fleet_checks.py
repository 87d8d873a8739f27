"""Checks of what a fleet as a whole still does: see `chaos.checks` for their form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import combinations
from typing import Any, Final

from chaos.evidence import Evidence
from chaos.findings import EXAMPLES_MAX, Finding, counted
from chaos.history import Attempt

#: From the first request to when as many are under way as there will be: until then what a link
#: carries is for later answers.
_WARM_S: Final = 25.0
#: Bytes are counted where they pass, a moment after they were sent: in a short window that matters.
_WINDOW_S: Final = 5.0
#: Until nobody counts on a worker any more that has said nothing: its time to live.
_FORGOTTEN_S: Final = 5.0
_CLOCKS_S: Final = 0.002
_ROLES: Final = ("router", "prefill", "decode")


def goodput(run: Evidence, _: Mapping[str, Any]) -> Finding:
    """Requests answered a second under overload, as a part of what was measured just before."""
    (left,), (load,) = run.named("capacity_left"), run.named("own_load")
    begin_s = load["start_s"] + _WARM_S
    end_s = load["start_s"] + load["spec"]["count"] / load["spec"]["rate_per_s"]
    done = sum(
        attempt.end == "done" and begin_s <= attempt.ended_s <= end_s
        for _, attempt in run.attempts()
    )
    per_s = done / (end_s - begin_s)
    return Finding(
        value=per_s / left["rate_per_s"],
        n=done,
        what=f"goodput of the capacity left, {per_s:.1f}/s of {left['rate_per_s']:.1f}/s",
        is_floor=True,
    )


def egress(run: Evidence, options: Mapping[str, Any]) -> Finding:
    """
    Bytes that left the far datacenter in any window of 5 s or more, as a part of what may.

    That is the rate times the window, a quantum for the link and one for each sender, and two more
    that each may owe for what it sent while the store did not answer: 256 KiB each.
    """
    rate_bytes_per_s, quantum = options["mbit_per_s"] * 1e6 / 8, 256 << 10
    worst, windows = 0.0, 0
    for early, late in combinations(run.probes, 2):
        seconds = late["at_s"] - early["at_s"]
        if seconds < _WINDOW_S:
            continue
        windows += 1
        allowed = rate_bytes_per_s * seconds + quantum * (1 + 3 * late["senders"])
        worst = max(worst, (late["egress_bytes"] - early["egress_bytes"]) / allowed)
    return Finding(value=worst, n=windows, what="egress of the link, of its cap")


def link_use(run: Evidence, options: Mapping[str, Any]) -> Finding:
    """How much of the link was used while it was the only way: it, and nothing else, was scarce."""
    rate_bytes_per_s = options["mbit_per_s"] * 1e6 / 8
    (load,) = run.named("own_load")
    during = [one for one in run.probes if one["at_s"] >= load["start_s"]]
    first, last = during[0], during[-1]
    used = (last["egress_bytes"] - first["egress_bytes"]) / (last["at_s"] - first["at_s"])
    return Finding(
        value=used / rate_bytes_per_s, n=len(during), what="use of the link", is_floor=True
    )


def fair_share(run: Evidence, _: Mapping[str, Any]) -> Finding:
    """The smallest tenant's answers, as a part of its fair share of all."""
    offered = Counter(request.tenant for request in run.requests)
    served = Counter(request.tenant for request in run.requests if request.last.end == "done")
    fair = _fair(dict(offered), served.total())
    shares = {tenant: served[tenant] / fair[tenant] for tenant in offered}
    return Finding(
        value=min(shares.values(), default=0.0),
        n=served.total(),
        what=f"share of the worst served of {len(offered)} tenants, of a fair one",
        is_floor=True,
    )


def refused_politely(run: Evidence, _: Mapping[str, Any]) -> Finding:
    """Requests without an answer whose clients were not told so with a code and a time."""
    failed = [a for _, a in run.attempts() if a.end == "error"]
    found = [f"{a.request_id}: {a.status} {a.code}" for a in failed if a.status not in {429, 503}]
    return counted(found, len(failed), "refusals without a time to come back")


def connects(run: Evidence, _: Mapping[str, Any]) -> Finding:
    """Connections to a store that has come back, in the first second, by router."""
    counts = [one["connects"] for one in run.named("herd")]
    n = max((len(one) for one in counts), default=0)
    return Finding(
        value=max((sum(one.values()) / len(one) for one in counts), default=0.0),
        n=n,
        what=f"connects in the first second, by each of {n} routers",
        examples=tuple(str(one) for one in counts)[:EXAMPLES_MAX],
    )


def served_by_halves(run: Evidence, _: Mapping[str, Any]) -> Finding:
    """Requests answered within each half of a fleet whose store is split: the smaller number."""
    begins = [event["at_s"] + _FORGOTTEN_S for event in run.named("split")]
    ends = run.named("joined")
    spans = [(begin_s, end["at_s"]) for begin_s, end in zip(begins, ends, strict=True)]
    served = Counter(
        attempt.router
        for _, attempt in run.attempts()
        if attempt.end == "done" and any(a <= attempt.sent_s <= b for a, b in spans)
    )
    are_two = all(
        event["roles"] == ["master", "master"] and min(event["known"]) > 0 for event in ends
    )
    return Finding(
        value=min((served[name] for name in run.scenario["routers"]), default=0),
        n=len(ends) if are_two else 0,
        what=f"answered by each half, {[event['known'] for event in ends]} workers known to them",
        is_floor=True,
    )


def version_pairs(run: Evidence, _: Mapping[str, Any]) -> Finding:
    """Which pairs of roles, one of the old version and one of the new, have served together."""
    found: Counter[str] = Counter()
    for _, attempt in run.attempts():
        if attempt.end != "done":
            continue
        versions = _versions(run, attempt)
        for one, other in combinations(_ROLES, 2):
            if {versions[one], versions[other]} == {"old", "new"}:
                found[f"{versions[one]} {one}, {versions[other]} {other}"] += 1
    return Finding(
        value=len(found),
        n=found.total(),
        what=f"pairs of versions that served together, at least {min(found.values(), default=0)} "
        "requests each",
        is_floor=True,
        examples=tuple(f"{pair}: {count}" for pair, count in sorted(found.items())),
    )


def prefills_at_once(run: Evidence, _: Mapping[str, Any]) -> Finding:
    """
    The most computations of one prompt that a router began until the first of them was done.

    Later ones may follow: a policy may choose another worker to hold the prompt, too. No worker
    computes it twice, which counts like two at once.
    """
    (served,) = run.named("herd_served")
    spans: dict[str, list[tuple[float, float]]] = {}
    for record in run.records:
        if span := _computing(record, served["head_tokens"]):
            spans.setdefault(record["router"], []).append(span)
    at_once = [sum(begin_s < min(own)[1] for begin_s, _ in own) for own in spans.values()]
    times = [tokens / served["head_tokens"] for tokens in served["computed"].values()]
    return Finding(
        value=max([*at_once, *times], default=0),
        n=len(run.records) if spans else 0,
        what=f"prefills of one prompt under way at a router; {sum(times):.2f} in all at "
        f"{len(times)} workers, {served['coalesced']:.0f} waited",
    )


def waiters(run: Evidence, _: Mapping[str, Any]) -> Finding:
    """The most requests that were open, and that were queued, as a part of their bounds."""
    (served,) = run.named("herd_served")
    parts = (
        served["seen"]["prfaas_requests_in_flight"] / served["waiters_max"],
        served["seen"]["prfaas_queue_depth_requests"] / served["queue_max"],
    )
    seen = {name.removeprefix("prfaas_"): count for name, count in served["seen"].items()}
    return Finding(value=max(parts), n=len(run.requests), what=f"waiting {seen}, of its bound")


FLEET_CHECKS: Final = (
    goodput, egress, link_use, fair_share, refused_politely, connects, served_by_halves,
    version_pairs, prefills_at_once, waiters,
)  # fmt: skip


def _fair(offered: dict[str, int], served: int) -> dict[str, float]:
    """Max-min fair shares: nobody gets more than it asked for, the rest is divided equally."""
    fair: dict[str, float] = {}
    left = float(served)
    for count, tenant in sorted((count, tenant) for tenant, count in offered.items()):
        fair[tenant] = min(count, left / (len(offered) - len(fair)))
        left -= fair[tenant]
    return fair


def _computing(record: dict[str, Any], tokens: int) -> tuple[float, float] | None:
    """From the decision to compute so many tokens to the first one of the answer; wall clock."""
    line = record["timeline"]
    computed = record["attempts"][-1]["uncached_tokens"] or 0 if record["attempts"] else 0
    if computed < tokens or line["first_token_s"] is None:
        return None
    begin_s: float = record["wall_s"]
    # Two clocks are read for it: what is nearer than that is one after the other.
    return begin_s + line["decided_s"], begin_s + line["first_token_s"] - _CLOCKS_S


def _versions(run: Evidence, attempt: Attempt) -> dict[str, str]:
    """Of the three processes that served an attempt, when it was sent; empty if that is unsure."""
    names = (attempt.router, attempt.prefill, attempt.decode)
    return {
        role: _version(run, name, attempt.sent_s) for role, name in zip(_ROLES, names, strict=True)
    }


def _version(run: Evidence, name: str, at_s: float) -> str:
    said = [e for e in run.named("version") if e["target"] == name and e["at_s"] <= at_s]
    first: str = run.scenario["version"]
    return said[-1]["version"] if said else first
