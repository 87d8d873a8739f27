"""What flights share: hits and hints together, and errands that nobody waits for."""

from __future__ import annotations

from typing import Any

import pytest
from router_builders import EAST_1, EAST_2, LogBook, MemoryRouter, a_few_turns, url_of

from controlplane.observe.logs import FIELDS
from controlplane.router import services as services_module
from controlplane.router.memory_workers import Gate
from controlplane.wire import Inventory


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> LogBook:
    book = LogBook()
    monkeypatch.setattr(services_module, "_log", book)
    return book


@pytest.mark.parametrize(
    ("held_blocks", "expected"),
    [(0, {EAST_1: 64 * 16}), (2, {EAST_1: 64 * 16}), (65, {EAST_1: 65 * 16})],
    ids=["nothing", "less than the hint", "more than the hint"],
)
async def test_a_hint_adds_to_what_a_worker_has_said(
    router: MemoryRouter, held_blocks: int, expected: dict[str, int]
) -> None:
    """The longer of the two counts, for they are about the same cache."""
    incoming = router.incoming(text="x" * (65 * 16 + 1))
    lead = router.services.coalescing.lead(
        incoming.hashes[:64], block_tokens=16, prefill_worker=EAST_1
    )
    router.services.coalescing.over(lead, is_computed=True)
    stored: dict[str, Any] = {block.hex(): "as" for block in incoming.hashes[:held_blocks]}
    inventory = Inventory(is_full=True, stored=stored)
    beat = router.tracker.beat(EAST_1)
    assert beat is not None
    await router.register(beat.model_copy(update={"sequence": 2, "inventory": inventory}))

    hits = router.services.hits(incoming.hashes, block_tokens=16)

    assert {worker: hit.resumable_tokens for worker, hit in hits.items()} == expected


async def test_what_nobody_waits_for_is_waited_for_at_the_end(router: MemoryRouter) -> None:
    gate = Gate()
    router.workers.on_abort(url_of(EAST_2), gate)
    router.services.abort_prefill(url_of(EAST_2), "one")
    await gate.reached()
    gate.open()

    await router.services.settle()
    await router.services.settle()

    assert not router.services._errands


async def test_errands_are_bounded(
    router: MemoryRouter, monkeypatch: pytest.MonkeyPatch, log: LogBook
) -> None:
    """Blames too: a store that hangs cannot fill the router."""
    monkeypatch.setattr(services_module, "_ERRANDS_MAX", 1)
    router.store.before["blame"].append(gate := Gate())
    router.services.blame("d", EAST_1, "i1", exposure_s=0.1)
    await gate.reached()

    router.services.blame("d", EAST_2, "i2", exposure_s=0.1)
    gate.open()
    await router.services.settle()
    await a_few_turns()

    assert router.store.calls.count("blame") == 1
    assert router.services.quarantine.refuses("d")
    assert [event for _, event, _ in log.events] == ["request.blamed"] * 2


async def test_lines_about_further_attempts_have_listed_fields_alone(
    router: MemoryRouter, log: LogBook
) -> None:
    router.services.redispatched("req-1", "PrefillRefused", 1)
    router.services.migrated("req-1", "DecodeWorkerLost", 1, worker="west/d1", tokens=7)
    router.services.blame("d", EAST_1, "i1", exposure_s=0.1)
    await router.services.settle()

    assert [event for _, event, _ in log.events] == [
        "request.redispatched",
        "request.migrated",
        "request.blamed",
    ]
    assert all(fields.keys() <= FIELDS for _, _, fields in log.events)
    sample = router.metrics.registry.get_sample_value
    assert sample("prfaas_retries_total", {"cause": "PrefillRefused"}) == 1
    assert sample("prfaas_migrations_total", {"cause": "DecodeWorkerLost"}) == 1
