"""A prefill worker copies a cached prefix from another one, and computes what it could not copy."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from builders import a_prefill_job
from engine_builders import (
    BLOCK,
    MakeEngine,
    a_model,
    a_prompt,
    compute_held,
    hashes_of,
    prefill_all,
)
from worker_builders import HOST, an_identity, until

from controlplane.config import KvConfig
from controlplane.domain.tokens import TokenIds
from controlplane.errors import Draining, LinkDown, WorkerRefused
from controlplane.wire import KvLocation, PrefillReport, PrefixAsk
from workers.engines.reference.engine import ReferenceEngine
from workers.kv.client import fetch_segment
from workers.kv.segments import SegmentStore
from workers.kv.server import KvServer
from workers.links import LinkMeters
from workers.locations import LocationPublisher
from workers.metrics import WorkerMetrics
from workers.prefill_service import PrefillService
from workers.prefix_copy import PrefixCopier
from workers.prefix_export import PrefixExporter

SCOPE = "scope"
#: Four full blocks, the last of them with a snapshot, and a rest; the last token is decode's.
PROMPT = a_prompt(4 * BLOCK + 11)
PREFIX = 4 * BLOCK


class Holder:
    """A worker in west with a prefix cache, and its KV port."""

    def __init__(self, engine: ReferenceEngine, config: KvConfig) -> None:
        self.engine = engine
        identity = an_identity("decode")
        self.segments = SegmentStore(incarnation="i1", config=config)
        self.kv = KvServer(
            self.segments, worker_id=identity.worker_id, datacenter="east", config=config
        )
        self.exporter = PrefixExporter(
            engine, self.segments, identity, locate=lambda segment: self.kv.location(segment, HOST)
        )

    def ask(self, **overrides: Any) -> PrefixAsk:
        values: dict[str, Any] = {
            "request_id": "req-1.1",
            "incarnation": "i1",
            "fingerprint": self.engine.spec.fingerprint,
            "scope": SCOPE,
            "token_width_bytes": PROMPT.width_bytes,
        }
        return PrefixAsk(**(values | overrides))

    def export(self, tokens: TokenIds = PROMPT) -> KvLocation:
        location = self.exporter.export(self.ask(), tokens.head(len(tokens) - 1))
        assert location is not None
        return location


class Copying:
    """A prefill worker in east that can copy."""

    def __init__(self, engine: ReferenceEngine, config: KvConfig, **copier: Any) -> None:
        self.engine = engine
        self.metrics = WorkerMetrics()
        self.links = LinkMeters("west")
        self.segments = SegmentStore(incarnation="i1", config=config)
        options: dict[str, Any] = {"datacenter": "east", "copy_s_max": 5.0, **copier}
        self.service = PrefillService(
            engine,
            self.segments,
            an_identity("prefill"),
            self.metrics,
            requests_max=4,
            locate=lambda _: None,  # type: ignore[arg-type,return-value]
            publisher=_NoPublisher(),
            copier=PrefixCopier(engine, config, self.metrics, self.links, **options),
        )

    async def accept(self, prefix: KvLocation | None, request_id: str, tokens: TokenIds) -> None:
        job = a_prefill_job(
            request_id=request_id,
            incarnation="i1",
            fingerprint=self.engine.spec.fingerprint,
            scope=SCOPE,
            prefix=prefix,
            deadline_s=30,
        )
        await self.service.accept(job, tokens)

    async def prefill(self, prefix: KvLocation | None, tokens: TokenIds = PROMPT) -> PrefillReport:
        """What a job with this prefix reports."""
        await self.accept(prefix, "req-1.1", tokens)
        (segment,) = [one for one in self.segments._known.values() if one.is_readable]
        report = await segment.report()
        self.chunks = [chunk.data for chunk in segment._chunks]
        self.segments.release(segment)
        return report

    def copies(self, code: str) -> float | None:
        sample = self.metrics.registry.get_sample_value
        return sample("prfaas_prefix_copies_total", {"code": code})


class _NoPublisher(LocationPublisher):
    """Tells nobody."""

    def __init__(self) -> None:
        """Without a store."""

    def put(self, location: KvLocation) -> None:
        pass

    def drop(self, segment_id: str) -> None:
        pass


@pytest.fixture
async def make_engine() -> AsyncIterator[MakeEngine]:
    engines: list[ReferenceEngine] = []

    def make(**overrides: Any) -> ReferenceEngine:
        engines.append(ReferenceEngine(a_model(**overrides)))
        return engines[-1]

    yield make
    for engine in engines:
        engine.check_integrity()
        await engine.close()
        assert not engine._cache.leases


@pytest.fixture
async def holder(make_engine: MakeEngine) -> AsyncIterator[Holder]:
    """It has computed the prompt's first blocks for another request."""
    holder = Holder(make_engine(), KvConfig())
    holder.kv.start(HOST)
    await prefill_all(holder.engine, PROMPT.head(PREFIX))
    async with AsyncExitStack() as stack:
        stack.push_async_callback(holder.kv.close)
        yield holder


@pytest.fixture
async def copying(make_engine: MakeEngine) -> AsyncIterator[Copying]:
    copying = Copying(make_engine(), KvConfig())
    yield copying
    await copying.service.close()


async def test_what_was_copied_is_not_computed(
    holder: Holder, copying: Copying, make_engine: MakeEngine
) -> None:
    """The segment is, byte for byte, what computing it all would have made."""
    location = holder.export()

    report = await copying.prefill(location)

    assert (report.copied_tokens, report.cached_tokens, report.computed_tokens) == (256, 256, 10)
    assert report.copy_failure == ""
    assert copying.engine.counters().prefill_tokens_total == 10
    alone = await prefill_all(make_engine(), PROMPT.head(len(PROMPT) - 1))
    assert copying.chunks == [piece.data for piece in alone]


async def test_a_copy_is_counted_in_bytes_where_it_came_from(
    holder: Holder, copying: Copying
) -> None:
    spec = holder.engine.spec
    size = sum(one.bytes_per_token * PREFIX + one.fixed_bytes for one in spec.groups)

    report = await copying.prefill(holder.export())

    assert report.copied_bytes == size
    sample = copying.metrics.registry.get_sample_value
    assert sample("prfaas_kv_received_bytes_total", {"from_dc": "east"}) == size
    assert [one.bytes_total for one in copying.links.reports()] == [size]
    assert copying.copies("ok") == 1


async def test_the_holder_lets_go_of_what_was_copied(holder: Holder, copying: Copying) -> None:
    await copying.prefill(holder.export())

    await until(lambda: holder.segments.held_bytes == 0)
    holder.engine.check_integrity()


async def test_attention_that_is_here_already_does_not_move(
    holder: Holder, copying: Copying
) -> None:
    """Only what is missing, and the state."""
    await prefill_all(copying.engine, PROMPT.head(2 * BLOCK))
    await prefill_all(holder.engine, a_prompt(7 * BLOCK, after=PROMPT.head(PREFIX)))
    attention, state = holder.engine.spec.groups

    report = await copying.prefill(holder.export())

    assert report.copied_bytes == 2 * BLOCK * attention.bytes_per_token + state.fixed_bytes
    # Two blocks were here with their state.
    assert (report.copied_tokens, report.computed_tokens) == (2 * BLOCK, 10)


async def test_nothing_is_copied_that_is_here(holder: Holder, copying: Copying) -> None:
    """It was computed here since the router looked."""
    await prefill_all(copying.engine, PROMPT.head(PREFIX))

    report = await copying.prefill(holder.export())

    assert (report.copied_bytes, report.copied_tokens, report.cached_tokens) == (0, 0, PREFIX)
    # And the holder need not keep it until its lease ends.
    await until(lambda: holder.segments.held_bytes == 0)


async def test_the_holder_lets_go_of_what_does_not_fit(holder: Holder, copying: Copying) -> None:
    report = await copying.prefill(holder.export(), PROMPT.head(PREFIX - 1))

    assert report.copy_failure == "other_length"
    await until(lambda: holder.segments.held_bytes == 0)


async def test_a_copy_waits_in_the_cache_for_its_prefill(
    holder: Holder, make_engine: MakeEngine
) -> None:
    """Another prompt is computed before it, and would take its place in a small cache."""
    copying = Copying(make_engine(cache_tokens_max=PREFIX), KvConfig())
    with compute_held(copying.engine):
        await copying.accept(None, "req-1.1", a_prompt(PREFIX + 1, salt=9))
        await copying.accept(holder.export(), "req-2.1", PROMPT)
        await until(lambda: copying.copies("ok"))
    _, segment = copying.segments._known.values()

    report = await segment.report()

    assert (report.copied_tokens, report.cached_tokens) == (PREFIX, PREFIX)
    await copying.service.close()


async def gone(location: KvLocation, holder: Holder) -> KvLocation:
    await holder.kv.close()
    return location


async def released(location: KvLocation, holder: Holder) -> KvLocation:
    (segment,) = holder.segments._known.values()
    holder.segments.release(segment)
    return location


async def reborn(location: KvLocation, _: Holder) -> KvLocation:
    return location.model_copy(update={"incarnation": "i0"})


async def spoiled(location: KvLocation, holder: Holder) -> KvLocation:
    (segment,) = holder.segments._known.values()
    first = segment._chunks[0]
    segment._chunks[0] = type(first)(bytes(len(first.data)), first.digest)
    return location


def with_manifest(**changes: Any) -> Callable[[KvLocation, Holder], Any]:
    async def change(location: KvLocation, _: Holder) -> KvLocation:
        return location.model_copy(
            update={"manifest": location.manifest.model_copy(update=changes)}
        )

    return change


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (gone, "link_down"),
        (released, "segment_stale"),
        (reborn, "segment_stale"),
        (spoiled, "chunk_corrupt"),
        (with_manifest(scope="another"), "other_scope"),
        (with_manifest(fingerprint="another"), "other_fingerprint"),
        (with_manifest(block_tokens=32), "other_blocks"),
        (with_manifest(token_count=PREFIX + 1), "other_blocks"),
        (with_manifest(token_count=8 * BLOCK), "other_length"),
        (with_manifest(token_count=0), "other_length"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_copy_that_fails_is_computed_instead(
    holder: Holder, copying: Copying, make_engine: MakeEngine, spoil: Any, code: str
) -> None:
    """The segment is right in every case, and the report says what went wrong."""
    location = await spoil(holder.export(), holder)

    report = await copying.prefill(location)

    assert (report.copy_failure, report.copied_tokens, report.computed_tokens) == (code, 0, 266)
    assert copying.copies(code) == 1
    alone = await prefill_all(make_engine(), PROMPT.head(len(PROMPT) - 1))
    assert copying.chunks == [piece.data for piece in alone]


async def test_a_copy_that_takes_too_long_is_given_up(
    holder: Holder, make_engine: MakeEngine
) -> None:
    """A slow link costs no more than the bound."""

    async def slow(*_: Any, **__: Any) -> Any:
        await asyncio.Event().wait()

    copying = Copying(make_engine(), KvConfig(), copy_s_max=0.02, fetch=slow)

    report = await copying.prefill(holder.export())

    assert (report.copy_failure, report.computed_tokens) == ("deadline_exceeded", 266)
    await copying.service.close()


async def test_a_job_that_is_aborted_while_it_copies_holds_nothing(
    holder: Holder, make_engine: MakeEngine
) -> None:
    """Its router has gone; the engine never hears of it."""
    is_asked = asyncio.Event()

    async def slow(*_: Any, **__: Any) -> Any:
        is_asked.set()
        await asyncio.Event().wait()

    copying = Copying(make_engine(), KvConfig(), fetch=slow)
    await copying.accept(holder.export(), "req-1.1", PROMPT)
    await is_asked.wait()

    assert copying.service.abort("req-1.1")
    await until(lambda: copying.service.jobs == 0)

    copying.engine.check_integrity()
    assert not copying.engine._cache.leases
    assert copying.segments.held_bytes == 0
    assert copying.engine.counters().prefill_tokens_total == 0


async def test_bytes_of_a_copy_that_broke_are_counted(
    holder: Holder, make_engine: MakeEngine
) -> None:
    """They crossed the link, whatever they were good for."""

    async def broken(location: KvLocation, *, on_piece: Any, **options: Any) -> Any:
        await fetch_segment(location, on_piece=on_piece, **options)
        raise LinkDown("cut before its end")

    copying = Copying(make_engine(), KvConfig(), fetch=broken)

    report = await copying.prefill(holder.export())

    assert (report.copy_failure, report.copied_tokens) == ("link_down", 0)
    assert report.copied_bytes > 0
    assert [one.bytes_total for one in copying.links.reports()] == [report.copied_bytes]
    await copying.service.close()


# --- Exporting --------------------------------------------------------------------------------


async def test_what_is_not_cached_is_not_exported(holder: Holder) -> None:
    assert holder.exporter.export(holder.ask(), a_prompt(300, salt=9)) is None


async def test_another_scope_sees_nothing(holder: Holder) -> None:
    """Prefixes are shared within a scope alone."""
    assert holder.exporter.export(holder.ask(scope="another"), PROMPT) is None


@pytest.mark.parametrize("change", [{"incarnation": "i0"}, {"fingerprint": "another"}])
async def test_a_question_for_somebody_else_is_refused(
    holder: Holder, change: dict[str, str]
) -> None:
    with pytest.raises(WorkerRefused, match="another"):
        holder.exporter.export(holder.ask(**change), PROMPT)


async def test_a_worker_that_leaves_exports_nothing_more(holder: Holder) -> None:
    holder.exporter.is_draining = True

    with pytest.raises(Draining):
        holder.exporter.export(holder.ask(), PROMPT)


async def test_an_export_that_does_not_fit_is_refused(make_engine: MakeEngine) -> None:
    """Bytes held for readers are bounded, whoever asked for them."""
    holder = Holder(make_engine(), KvConfig(segment_bytes_max=1 << 20))
    holder.kv.start(HOST)
    tokens = a_prompt(900)
    await prefill_all(holder.engine, tokens)
    for _ in range(2):
        holder.exporter.export(holder.ask(), tokens)

    with pytest.raises(WorkerRefused, match="does not fit"):
        holder.exporter.export(holder.ask(), tokens)
    await holder.kv.close()


async def test_hashes_depend_on_tokens_alone(holder: Holder) -> None:
    """The holder needs no word of the router on what is where."""
    location = holder.export(PROMPT)

    assert location.manifest.token_count == PREFIX
    assert len(hashes_of(PROMPT.head(PREFIX))) == 4
