"""Writes as commands: which script, which keys, which arguments. Pure."""

from __future__ import annotations

import math

from controlplane.store import scripts
from controlplane.store.keys import RECORDS_TTL_MS, Keys
from controlplane.store.scripts import Command
from controlplane.wire import KvLocation, Reservation, WorkerBeat


def heartbeat(keys: Keys, beat: WorkerBeat, *, ttl_s: float, events_max: int) -> Command:
    """For `heartbeat.lua`; beat and inventory travel apart, because only the first is stored."""
    return scripts.HEARTBEAT.by_digest(
        keys.of_worker(beat.worker_id),
        [
            beat.worker_id,
            beat.incarnation,
            beat.sequence,
            _ms(ttl_s),
            int(beat.inventory.is_full),
            beat.model_dump_json(exclude={"inventory"}),
            beat.inventory.model_dump_json(),
            events_max,
            RECORDS_TTL_MS,
        ],
    )


def deregister(keys: Keys, worker_id: str, incarnation: str, *, events_max: int) -> Command:
    """For `deregister.lua`."""
    return scripts.DEREGISTER.by_digest(
        keys.of_worker(worker_id), [worker_id, incarnation, events_max, RECORDS_TTL_MS]
    )


def reserve(keys: Keys, reservation: Reservation) -> Command:
    """For `reserve.lua`."""
    places, members = _claims(keys, reservation)
    if reservation.link is not None:
        places.insert(2, keys.links)
        members.append(reservation.link)
    return scripts.RESERVE.by_digest(
        [
            keys.worker(reservation.prefill_worker),
            keys.worker(reservation.decode_worker),
            *places,
        ],
        [
            reservation.prefill_incarnation,
            reservation.decode_incarnation,
            _ms(reservation.prefill_ttl_s),
            _ms(reservation.ttl_s),
            reservation.prefill_requests_max,
            reservation.decode_requests_max,
            *members,
        ],
    )


def release(keys: Keys, reservation: Reservation) -> Command:
    """For `release.lua`."""
    places, members = _claims(keys, reservation)
    return scripts.RELEASE.by_digest(places, [*members])


def finish(
    keys: Keys,
    reservation: Reservation | None,
    decision_id: str,
    record: bytes,
    *,
    decisions_max: int,
) -> Command:
    """For `finish.lua`."""
    places, members = _claims(keys, reservation) if reservation is not None else ([], [])
    return scripts.FINISH.by_digest(
        [keys.decisions, keys.decision_index, *places],
        [decision_id, record, decisions_max, RECORDS_TTL_MS, *members],
    )


def take_link_budget(
    keys: Keys, link: str, *, want_bytes: int, rate_bytes_per_s: float, burst_bytes: int
) -> Command:
    """For `link_budget.lua`."""
    return scripts.LINK_BUDGET.by_digest(
        [keys.budget(link)], [want_bytes, float(rate_bytes_per_s), burst_bytes]
    )


def put_segment(keys: Keys, location: KvLocation) -> Command:
    """For `put_segment.lua`."""
    return scripts.PUT_SEGMENT.by_digest(
        [keys.segment(location.segment_id), keys.segments],
        [
            location.segment_id,
            location.model_dump_json(exclude_defaults=True),
            _ms(location.lease_s),
        ],
    )


def drop_segment(keys: Keys, segment_id: str) -> Command:
    """For `drop_segment.lua`."""
    return scripts.DROP_SEGMENT.by_digest([keys.segment(segment_id), keys.segments], [segment_id])


def _claims(keys: Keys, reservation: Reservation) -> tuple[list[str], list[str]]:
    claims = keys.claims(reservation)
    return [place for place, _ in claims], [member for _, member in claims]


def _ms(seconds: float) -> int:
    """Whole milliseconds, at least one: Redis refuses an expiry of zero."""
    return max(1, math.ceil(seconds * 1000))
