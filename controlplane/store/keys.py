"""
The one table of keys: every key the store writes, what it holds and what is lost with it.

All keys of a fleet begin with `prfaas:{<fleet>}:`. The braces are a hash tag: on Redis Cluster a
fleet lives in one slot, so that a script may touch several of its keys.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from controlplane.wire import Reservation

KeyType: TypeAlias = Literal["hash", "list", "set", "stream", "string", "zset"]

#: Events, decision records and documents of a fleet that nobody uses any more go after this. 7
#: days: a record should survive a long weekend, the rest of a dead fleet should not stay for ever.
RECORDS_TTL_MS: Final = 7 * 24 * 3600 * 1000
#: What ends later than this from now is garbage, LIFE_MAX in prelude.lua: a second for clocks of a
#: master and its replica that differ.
LIFE_MAX_MS: Final = RECORDS_TTL_MS + 1000

#: Field of an inventory that names the incarnation it is complete for; never a block's hex.
INVENTORY_COMPLETE: Final = b"@"

#: Tokens or bytes one reservation can stand for: sums of many stay exact in a double.
AMOUNT_MAX: Final = 10**15 - 1

_FLEET = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySpec:
    """One row of the table."""

    #: Key after the fleet's prefix; `<...>` is the variable part.
    name: str
    type: KeyType
    #: When it expires by itself.
    ttl: str
    #: Who knows the truth that this is a copy of.
    owner: str
    #: Who writes it.
    writer: str
    #: What is lost when it is lost.
    lost: str


KEY_TABLE: Final = (
    KeySpec(
        name="workers",
        type="zset",
        ttl="longest registration in it",
        owner="each worker",
        writer="worker: heartbeat, deregister",
        lost="routers starting now see no workers until the next heartbeats",
    ),
    KeySpec(
        name="worker:<worker>",
        type="hash",
        ttl="heartbeat.ttl_s from the last beat",
        owner="the worker",
        writer="worker: heartbeat, deregister",
        lost="reservations there are refused as gone until the next heartbeat",
    ),
    KeySpec(
        name="inventory:<worker>",
        type="hash",
        ttl="heartbeat.ttl_s from the last beat",
        owner="the worker",
        writer="worker: heartbeat, deregister",
        lost="prefix hits are not predicted until the worker's next full report",
    ),
    KeySpec(
        name="reserved:<worker>",
        type="zset",
        ttl="longest reservation in it",
        owner="the routers that reserved; the worker itself admits or refuses",
        writer="router: reserve, finish, release; worker: a new incarnation clears it",
        lost="over-assignment until live reservations end; the worker refuses the excess",
    ),
    KeySpec(
        name="links",
        type="zset",
        ttl="longest reservation on any link",
        owner="the routers that reserved",
        writer="router: reserve",
        lost="routers starting now see idle links until the next reservation",
    ),
    KeySpec(
        name="link:<link>",
        type="zset",
        ttl="longest reservation in it",
        owner="the routers that reserved",
        writer="router: reserve, finish, release",
        lost="a busy link looks idle until its transfers end; budgets still hold",
    ),
    KeySpec(
        name="budget:<link>",
        type="hash",
        ttl="time to fill from empty, plus 1 s",
        owner="nobody: shared by the link's senders",
        writer="sender: take_link_budget",
        lost="one burst more than the rate allows",
    ),
    KeySpec(
        name="events",
        type="stream",
        ttl="7 days from the last event; store.events_max entries",
        owner="each worker; each router for whom it blames; each publisher",
        writer="worker: heartbeat, deregister; router: blame; publisher: publish",
        lost="routers catch up with their next snapshot; blames of this time are forgotten",
    ),
    KeySpec(
        name="segments",
        type="zset",
        ttl="longest lease in it",
        owner="the worker that holds the KV",
        writer="worker: put_segment, drop_segment",
        lost="segments are not listed until their renewal",
    ),
    KeySpec(
        name="segment:<segment>",
        type="string",
        ttl="the lease",
        owner="the worker that holds the KV",
        writer="worker: put_segment, drop_segment",
        lost="the segment is not listed until its renewal",
    ),
    KeySpec(
        name="decisions",
        type="stream",
        ttl="7 days from the last record; store.decisions_max entries",
        owner="the router that decided",
        writer="router: finish",
        lost="explanations of past decisions; each router keeps its newest in memory",
    ),
    KeySpec(
        name="decision-index",
        type="hash",
        ttl="as decisions",
        owner="the router that decided",
        writer="router: finish",
        lost="records are listed but not found by id; a repeated finish appends again",
    ),
    KeySpec(
        name="idempotency:<key>",
        type="hash",
        ttl="limits.key_ttl_s while its request runs, limits.key_keep_s after",
        owner="the router that runs the request",
        writer="router: claim_key, release_key",
        lost="a retry may run beside the first request, or the key may name another one",
    ),
    KeySpec(
        name="document:<topic>",
        type="hash",
        ttl="7 days from the last time it was published or read",
        owner="the operator or the planner",
        writer="publisher: publish; router: document prolongs",
        lost="routers keep what they have read last; versions begin at 1 again",
    ),
    KeySpec(
        name="leader:<topic>",
        type="hash",
        ttl="planner.lease_s from its last renewal",
        owner="the router that leads",
        writer="router: lead, resign",
        lost="another router may lead at once; both publish by version, so one of them does",
    ),
    KeySpec(
        name="traffic",
        type="zset",
        ttl="longest summary in it",
        owner="each router",
        writer="router: put_traffic",
        lost="the planner sees no traffic until the routers' next summaries",
    ),
    KeySpec(
        name="traffic:<router>",
        type="string",
        ttl="three times planner.report_interval_s",
        owner="the router",
        writer="router: put_traffic",
        lost="the planner misses this router's traffic until its next summary",
    ),
)


class Keys:
    """The keys of one fleet."""

    def __init__(self, fleet: str) -> None:
        if not _FLEET.fullmatch(fleet):
            raise ValueError(f"a fleet name is made of letters, digits, - and _, not {fleet!r}")
        self.prefix = f"prfaas:{{{fleet}}}:"
        self.workers = f"{self.prefix}workers"
        self.links = f"{self.prefix}links"
        self.events = f"{self.prefix}events"
        self.segments = f"{self.prefix}segments"
        self.traffic = f"{self.prefix}traffic"
        self.decisions = f"{self.prefix}decisions"
        self.decision_index = f"{self.prefix}decision-index"

    def worker(self, worker_id: str) -> str:
        """Registration of a worker."""
        return f"{self.prefix}worker:{worker_id}"

    def inventory(self, worker_id: str) -> str:
        """Prefix inventory of a worker."""
        return f"{self.prefix}inventory:{worker_id}"

    def reserved(self, worker_id: str) -> str:
        """Reservations at a worker."""
        return f"{self.prefix}reserved:{worker_id}"

    def of_worker(self, worker_id: str) -> list[str]:
        """All that a worker's registration touches, in the order the scripts expect."""
        return [
            self.worker(worker_id),
            self.inventory(worker_id),
            self.reserved(worker_id),
            self.workers,
            self.events,
        ]

    def link(self, link_id: str) -> str:
        """Reservations on a link."""
        return f"{self.prefix}link:{link_id}"

    def budget(self, link_id: str) -> str:
        """Token bucket of a link."""
        return f"{self.prefix}budget:{link_id}"

    def segment(self, segment_id: str) -> str:
        """One KV location."""
        return f"{self.prefix}segment:{segment_id}"

    def idempotency(self, key: str) -> str:
        """Claim of an idempotency key."""
        return f"{self.prefix}idempotency:{key}"

    def document(self, topic: str) -> str:
        """A published document."""
        return f"{self.prefix}document:{topic}"

    def leader(self, topic: str) -> str:
        """Who publishes a document by itself."""
        return f"{self.prefix}leader:{topic}"

    def traffic_of(self, router: str) -> str:
        """What one router has served lately."""
        return f"{self.prefix}traffic:{router}"

    def claims(self, reservation: Reservation) -> list[tuple[str, str]]:
        """Where a reservation is kept: key and member at the prefill worker, the decoder, the link.

        A member says all that is needed to count it and to find it again:
        `<phase>:<amount>:<reservation id>`.
        """
        who = reservation.reservation_id
        tokens = min(reservation.prefill_tokens, AMOUNT_MAX)
        claims = [
            (self.reserved(reservation.prefill_worker), f"p:{tokens}:{who}"),
            (self.reserved(reservation.decode_worker), f"d:0:{who}"),
        ]
        if reservation.link is not None:
            size = min(reservation.link_bytes, AMOUNT_MAX)
            claims.append((self.link(reservation.link), f"l:{size}:{who}"))
        return claims


_MEMBER = re.compile(rb"[a-z]:([0-9]{1,15}):.", re.DOTALL)


def amount_of(member: bytes) -> int | None:
    """Tokens or bytes a member of a reservation zset stands for; None if it is garbage."""
    match = _MEMBER.match(member)
    return int(match[1]) if match else None
