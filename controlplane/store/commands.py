"""Writes as commands: which script, which keys, which arguments. Pure."""

from __future__ import annotations

import math

from controlplane.config import StoreConfig
from controlplane.store import scripts
from controlplane.store.api import Blamed, Topic
from controlplane.store.keys import RECORDS_TTL_MS, Keys
from controlplane.store.scripts import Command
from controlplane.wire import KvLocation, Reservation, WorkerBeat


def heartbeat(keys: Keys, beat: WorkerBeat, *, ttl_s: float, config: StoreConfig) -> Command:
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
            config.events_max,
            RECORDS_TTL_MS,
            config.inventory_blocks_max,
            config.workers_max,
        ],
    )


def deregister(keys: Keys, worker_id: str, incarnation: str, *, events_max: int) -> Command:
    """For `deregister.lua`."""
    return scripts.DEREGISTER.by_digest(
        keys.of_worker(worker_id), [worker_id, incarnation, events_max, RECORDS_TTL_MS]
    )


def reserve(keys: Keys, reservation: Reservation, *, links_max: int) -> Command:
    """For `reserve.lua`."""
    places, members = _claims(keys, reservation)
    if reservation.link is not None:
        places.insert(2, keys.links)
        members += [reservation.link, str(links_max)]
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


def put_segment(keys: Keys, location: KvLocation, *, segments_max: int) -> Command:
    """For `put_segment.lua`."""
    return scripts.PUT_SEGMENT.by_digest(
        [keys.segment(location.segment_id), keys.segments],
        [
            location.segment_id,
            location.model_dump_json(exclude_defaults=True),
            _ms(location.lease_s),
            segments_max,
        ],
    )


def drop_segment(keys: Keys, segment_id: str) -> Command:
    """For `drop_segment.lua`."""
    return scripts.DROP_SEGMENT.by_digest([keys.segment(segment_id), keys.segments], [segment_id])


def claim_key(
    keys: Keys, key: str, *, owner: str, digest: str, ttl_s: float, is_renewal: bool
) -> Command:
    """For `claim_key.lua`."""
    return scripts.CLAIM_KEY.by_digest(
        [keys.idempotency(key)], [owner, digest, _ms(ttl_s), int(is_renewal)]
    )


def release_key(keys: Keys, key: str, *, owner: str, keep_s: float) -> Command:
    """For `release_key.lua`."""
    return scripts.RELEASE_KEY.by_digest([keys.idempotency(key)], [owner, _ms(keep_s)])


def blame(keys: Keys, blamed: Blamed, *, events_max: int) -> Command:
    """For `blame.lua`."""
    return scripts.BLAME.by_digest(
        [keys.events],
        [blamed.fingerprint, blamed.worker_id, blamed.incarnation, events_max, RECORDS_TTL_MS],
    )


def publish(
    keys: Keys, topic: Topic, body: bytes, *, expected_version: int | None, config: StoreConfig
) -> Command:
    """For `publish.lua`."""
    return scripts.PUBLISH.by_digest(
        [keys.document(topic), keys.events],
        [
            topic,
            body,
            "" if expected_version is None else expected_version,
            config.document_bytes_max,
            config.events_max,
            RECORDS_TTL_MS,
        ],
    )


def document(keys: Keys, topic: Topic, *, bytes_max: int) -> Command:
    """For `document.lua`."""
    return scripts.DOCUMENT.by_digest([keys.document(topic)], [bytes_max, RECORDS_TTL_MS])


def lead(keys: Keys, topic: Topic, owner: str, *, ttl_s: float) -> Command:
    """For `lead.lua`."""
    return scripts.LEAD.by_digest([keys.leader(topic)], [owner, _ms(ttl_s)])


def resign(keys: Keys, topic: Topic, owner: str) -> Command:
    """For `resign.lua`."""
    return scripts.RESIGN.by_digest([keys.leader(topic)], [owner])


def put_traffic(
    keys: Keys, router: str, body: bytes, *, ttl_s: float, config: StoreConfig
) -> Command:
    """For `put_segment.lua`: a value with a time to live, and its name in an index of bounded size."""
    return scripts.PUT_SEGMENT.by_digest(
        [keys.traffic_of(router), keys.traffic], [router, body, _ms(ttl_s), config.routers_max]
    )


def _claims(keys: Keys, reservation: Reservation) -> tuple[list[str], list[str]]:
    claims = keys.claims(reservation)
    return [place for place, _ in claims], [member for _, member in claims]


def _ms(seconds: float) -> int:
    """Whole milliseconds: at least one, for Redis refuses zero, and at most what records have."""
    return max(1, min(math.ceil(seconds * 1000), RECORDS_TTL_MS))
