"""A placement that copies a cached prefix: who is asked, what is told to whom, what is recorded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from random import Random

import pytest
from builders import a_location
from router_builders import (
    DECODE_1,
    EAST_1,
    EAST_2,
    WEST_1,
    MemoryRouter,
    a_busy_beat,
    a_router,
    url_of,
)

from controlplane.domain.cluster import ClusterView
from controlplane.domain.decision import Decision, RequestFeatures
from controlplane.errors import PeerError, WorkerLost, WorkerRefused, WorkerTimeout, WorkerUnreached
from controlplane.router.memory_workers import Gate, a_report, a_stream
from controlplane.router.records import Attempt
from controlplane.wire import FrameKind, KvLocation, PrefillJob, PrefillReport
from policies.api import Parameters
from policies.local_only import LocalOnlyPolicy

LINK = "east>west"
COPY_BYTES = 50_000


class CopyingPolicy(LocalOnlyPolicy):
    """Prefill in west, with what a worker in east has cached of it."""

    def __init__(self, *sources: str, tokens: int = 64) -> None:
        super().__init__(Parameters())
        self._sources = sources or (EAST_1,)
        self._tokens = tokens

    def decide(self, request: RequestFeatures, view: ClusterView, rng: Random) -> Decision:
        decision = super().decide(request, view, rng)
        assert decision.placement is not None
        assert decision.prediction is not None
        return replace(
            decision,
            placement=replace(
                decision.placement,
                copy_from_worker=self._sources[request.sequence % len(self._sources)],
                copy_tokens=self._tokens,
            ),
            prediction=replace(decision.prediction, copy_bytes=COPY_BYTES),
        )


@asynccontextmanager
async def a_copying_router(
    *sources: str, can_export_prefix: bool = True
) -> AsyncIterator[MemoryRouter]:
    async with a_router(policy=CopyingPolicy(*sources)) as router:
        await router.register(
            *(
                a_busy_beat(one, sequence=2, can_export_prefix=can_export_prefix)
                for one in (EAST_1, EAST_2)
            )
        )
        yield router


def a_prefix(tokens: int = 48) -> KvLocation:
    location = a_location(segment_id="prefix")
    manifest = location.manifest.model_copy(update={"token_count": tokens})
    return location.model_copy(update={"manifest": manifest})


def sent_job(router: MemoryRouter) -> PrefillJob:
    job = router.workers.of_kind("prefill")[-1].job
    assert isinstance(job, PrefillJob)
    return job


async def only_attempt(router: MemoryRouter) -> Attempt:
    (attempt,) = (await router.record()).attempts
    return attempt


async def test_the_holder_is_asked_for_what_the_placement_copies() -> None:
    """No more tokens than that, under the life that was chosen."""
    async with a_copying_router() as router:
        await router.serve()

        (asked,) = router.workers.of_kind("prefix")

        assert asked.url == url_of(EAST_1)
        assert asked.tokens is not None
        assert asked.tokens == router.incoming().tokens.head(64)
        beat = router.tracker.beat(EAST_1)
        assert beat is not None
        assert asked.job is not None
        assert (asked.job.incarnation, asked.request_id) == (beat.incarnation, "req-0.1")


async def test_the_prefill_worker_is_told_where_the_prefix_is() -> None:
    async with a_copying_router() as router:
        router.workers.on_prefix(url_of(EAST_1), a_prefix())

        await router.serve()

        assert sent_job(router).prefix == a_prefix()


async def test_the_record_says_what_was_asked_and_what_could_be_given() -> None:
    async with a_copying_router() as router:
        router.workers.on_prefix(url_of(EAST_1), a_prefix(48))

        await router.serve()
        step = (await only_attempt(router)).copy

        assert step is not None
        assert (step.from_worker, step.asked_tokens, step.exported_tokens) == (EAST_1, 64, 48)
        assert (step.link, step.failure) == (LINK, "")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (WorkerRefused("full"), "worker_refused"),
        (WorkerUnreached("nobody"), "worker_lost"),
        (WorkerLost("cut"), "worker_lost"),
        (WorkerTimeout("silent"), "worker_timeout"),
    ],
)
async def test_a_holder_that_fails_costs_no_attempt(error: PeerError, code: str) -> None:
    """The prefill goes on without, and nobody is blamed."""
    async with a_copying_router() as router:
        router.workers.on_prefix(url_of(EAST_1), error)

        flight = await router.serve()
        attempt = await only_attempt(router)

        assert flight.error is None
        assert sent_job(router).prefix is None
        assert attempt.copy is not None
        assert (attempt.copy.failure, attempt.ended_by) == (code, "ok")
        view = router.tracker.view().worker(EAST_1)
        assert view is not None
        assert not view.is_suspect


async def test_a_prefix_that_is_gone_is_computed() -> None:
    async with a_copying_router() as router:
        await router.serve()
        attempt = await only_attempt(router)

        assert sent_job(router).prefix is None
        assert attempt.copy is not None
        assert attempt.copy.failure == "prefix_gone"


async def test_a_worker_that_cannot_export_is_not_asked() -> None:
    """Workers before 0.4 have no such route."""
    async with a_copying_router(can_export_prefix=False) as router:
        await router.serve()
        attempt = await only_attempt(router)

        assert router.workers.of_kind("prefix") == []
        assert attempt.copy is not None
        assert attempt.copy.failure == "cannot_export"


@pytest.mark.parametrize("source", ["east/p9", WEST_1])
async def test_nobody_is_asked_who_is_not_there_or_computes_it_himself(source: str) -> None:
    async with a_copying_router(source) as router:
        await router.serve()

        assert router.workers.of_kind("prefix") == []


async def test_bytes_of_a_copy_count_on_their_link_until_the_first_token() -> None:
    """Another request sees that the link is in use."""

    def reserved(router: MemoryRouter) -> int:
        link = router.tracker.view().link("east", "west")
        assert link is not None
        return link.reserved_bytes

    async with a_copying_router() as router:
        router.workers.on_prefix(url_of(EAST_1), gate := Gate(), a_prefix())
        running = router.send()
        await gate.reached()
        while_asked = reserved(router)
        gate.open()
        await running

        assert while_asked == COPY_BYTES
        assert reserved(router) == 0


async def test_a_client_that_leaves_while_the_holder_is_asked_leaves_nothing() -> None:
    async with a_copying_router() as router:
        router.workers.on_prefix(url_of(EAST_1), gate := Gate())
        running = router.send()
        await gate.reached()

        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await router.settled()

        assert router.workers.of_kind("prefill") == []


@pytest.mark.parametrize(
    ("failure", "is_down"), [("link_down", True), ("segment_stale", False), ("", False)]
)
async def test_copies_that_fail_on_the_way_tell_of_the_link(failure: str, *, is_down: bool) -> None:
    """Or every request would wait for a copy that cannot come."""
    prefill = PrefillReport(
        queue_s=0,
        compute_s=0.1,
        cached_tokens=0,
        computed_tokens=100,
        copied_bytes=1000,
        copy_failure=failure,
    )
    report = a_report(prefill=prefill).model_dump_json().encode()
    stream = [*a_stream()[:-1], [(FrameKind.REPORT, report)]]
    async with a_copying_router(EAST_1, EAST_2) as router:
        for holder in (EAST_1, EAST_2):
            router.workers.on_prefix(url_of(holder), a_prefix())
            router.workers.on_decode(url_of(DECODE_1), stream=stream)
        for _ in range(2):
            await router.serve()
        link = router.tracker.view().link("east", "west")

        assert link is not None
        assert link.is_down == is_down
