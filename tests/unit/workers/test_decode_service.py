"""Decode jobs: checked, fed, streamed to the last token, and stopped without a trace."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest
from builders import a_manifest, an_output
from router_builders import LoopClock, a_few_turns
from worker_builders import (
    SCOPE,
    STATE_BYTES,
    TOKEN_BYTES,
    FakeEngine,
    PrefillSide,
    Sent,
    a_decode_job_for,
    a_prefill_side,
    a_prompt,
    an_identity,
    until,
    words,
)

from controlplane.config import KvConfig
from controlplane.domain.byte_tokenizer import END_OF_TURN
from controlplane.errors import (
    DeadlineExceeded,
    Draining,
    LinkDown,
    MalformedRequest,
    SegmentFailed,
    SegmentStale,
    WorkerLost,
    WorkerRefused,
)
from controlplane.router.memory_workers import Gate
from controlplane.wire import FrameKind, KvGroup, KvLocation, Sampling
from workers.decode_service import DecodeService
from workers.engine import EngineTransfer, TokenOut
from workers.links import LinkMeters
from workers.metrics import WorkerMetrics

PROMPT = a_prompt(40)


class DecodeSide:
    """A decode worker without its HTTP listener, in the datacenter of the prefill side."""

    def __init__(self, prefill: PrefillSide, *, datacenter: str = "east") -> None:
        self.prefill = prefill
        self.engine = FakeEngine()
        self.links = LinkMeters(datacenter)
        self.metrics = WorkerMetrics()
        self.service = DecodeService(
            self.engine,
            an_identity("decode", datacenter=datacenter),
            KvConfig(),
            self.metrics,
            requests_max=2,
            links=self.links,
        )

    async def location(self, request_id: str = "req-1.1") -> KvLocation:
        """The location of a prefill for `PROMPT`."""
        return await self.prefill.accept(PROMPT, request_id=request_id)

    async def run(self, sent: Sent, location: KvLocation | None = None, **job: Any) -> None:
        """Serve one job."""
        location = location or await self.location()
        await self.service.run(a_decode_job_for(location, **job), PROMPT, sent)


@pytest.fixture
async def side() -> AsyncIterator[DecodeSide]:
    """Both sides; at the end of each test neither may hold anything."""
    async with a_prefill_side() as prefill:
        side = DecodeSide(prefill)
        yield side
        assert side.service.jobs == 0
        side.engine.check_integrity()
        await until(lambda: prefill.kv.connections == 0)


def texts(sent: Sent) -> list[str]:
    """The texts of a streamed completion."""
    events = [event for event in sent.content.split(b"\n\n") if event]
    assert events[-1] == b"data: [DONE]"
    return [
        json.loads(event.removeprefix(b"data: "))["choices"][0]["text"] for event in events[:-1]
    ]


def finish_reason(sent: Sent) -> str:
    """Of the last event before the end."""
    events = [event for event in sent.content.split(b"\n\n") if event]
    found: str = json.loads(events[-2].removeprefix(b"data: "))["choices"][0]["finish_reason"]
    return found


# --- When nothing fails ----------------------------------------------------------------------


async def test_a_job_is_served_from_its_kv_to_its_last_token(side: DecodeSide) -> None:
    """Each token an event, then the end, then the report."""
    sent = Sent()
    side.engine.decodes.append(words("hello"))

    await side.run(sent)

    assert texts(sent) == [*"hello", ""]
    assert finish_reason(sent) == "length"
    assert [kind for kind, _ in sent.frames] == [FrameKind.CONTENT] * 6 + [FrameKind.REPORT]


async def far(side: DecodeSide) -> KvLocation:
    """A location that says it is in another datacenter."""
    return (await side.location()).model_copy(update={"datacenter": "north"})


async def test_kv_that_the_engine_moves_by_itself_is_counted_as_ours_is(side: DecodeSide) -> None:
    """In the report, on the link, and with how sure that is."""
    side.engine.transfer = EngineTransfer(
        moved_bytes=8 << 20, moving_s=0.5, evidence="counted", is_mismatch=False
    )
    sent = Sent()

    await side.run(sent, await far(side))

    pieces = 39 * TOKEN_BYTES + STATE_BYTES
    assert side.engine.settled == 1
    assert sent.report["transfer"]["evidence"] == "counted"
    assert sent.report["transfer"]["bytes"] == pieces + (8 << 20)
    (link,) = side.links.reports()
    assert link.goodput_bps == (8 << 20) * 8 / 0.5
    assert link.arrived_bytes_total == pieces + (8 << 20)
    assert link.busy_s_total == pytest.approx(0.5, abs=0.2)


async def test_a_prompt_that_the_engine_computed_again_is_counted_as_a_mismatch(
    side: DecodeSide,
) -> None:
    side.engine.prompt_tokens_computed = 40
    side.engine.transfer = EngineTransfer(
        moved_bytes=0, moving_s=0.0, evidence="counted", is_mismatch=True
    )
    sent = Sent()

    await side.run(sent, await far(side))

    assert sent.report["prompt_tokens_computed"] == 40
    assert sent.report["transfer"]["is_mismatch"]
    mismatches = side.metrics.transfer_mismatches_total.labels("north")
    assert mismatches._value.get() == 1


async def test_an_engine_in_another_process_is_told_the_whole_job(side: DecodeSide) -> None:
    await side.run(Sent())

    context = side.engine.contexts[0]
    assert context is not None
    assert context.scope == SCOPE
    assert context.last_token == PROMPT.to_list()[-1]
    assert context.sampling == Sampling(temperature=0, output_tokens_max=8)


async def test_a_decode_that_fails_while_its_prefill_runs_ends_the_job(side: DecodeSide) -> None:
    """With a connector that pairs, the prefill alone would never end."""
    gate = Gate()
    side.prefill.engine.prefills.append([gate])
    running = asyncio.ensure_future(side.run(Sent()))
    await until(lambda: side.engine.contexts)
    context = side.engine.contexts[0]
    assert context is not None

    context.on_failure(SegmentFailed("the engine failed"))

    with pytest.raises(SegmentFailed, match="the engine failed"):
        await running


async def test_every_piece_is_written_once(side: DecodeSide) -> None:
    """Attention in blocks, then the state; over several connections in any order."""
    await side.run(Sent())

    (sequence,) = side.engine.sequences
    spans = sorted((piece.group, piece.token_start, piece.token_end) for piece in sequence.written)
    assert spans == [
        ("attention", 0, 16),
        ("attention", 16, 32),
        ("attention", 32, 39),
        ("state", 39, 39),
    ]


async def test_what_the_decoder_holds_is_not_fetched_again(side: DecodeSide) -> None:
    """The state always is."""
    side.engine.held_tokens = 32
    sent = Sent()

    await side.run(sent)

    (sequence,) = side.engine.sequences
    assert sorted(piece.token_start for piece in sequence.written) == [32, 39]
    assert sent.report["transfer"]["held_tokens"] == 32
    assert sent.report["transfer"]["bytes"] == 7 * 8 + 32


async def test_fetching_begins_while_prefill_still_computes(side: DecodeSide) -> None:
    """The first piece arrives long before the last one is there."""
    gates = [Gate(), Gate(), Gate()]
    side.prefill.engine.prefills.append(gates)
    running = asyncio.ensure_future(side.run(Sent()))
    gates[0].open()
    gates[1].open()

    await gates[2].reached()
    await until(lambda: side.engine.sequences and len(side.engine.sequences[0].written) == 2)
    was_done = running.done()
    gates[2].open()
    await running

    assert not was_done


async def test_the_report_says_what_really_happened(side: DecodeSide) -> None:
    """Both sides' figures, and times in order."""
    sent = Sent()
    side.engine.decodes.append(words("hey"))

    await side.run(sent)

    report = sent.report
    assert (report["finish_reason"], report["output_tokens"]) == ("length", 3)
    assert report["prefill"]["computed_tokens"] == 39
    assert report["transfer"]["chunks"] == 4
    assert report["transfer"]["bytes"] == 39 * 8 + 32
    assert (
        0
        < report["transfer"]["first_byte_s"]
        <= report["transfer"]["finished_s"]
        <= report["first_token_s"]
        <= report["finished_s"]
    )


@pytest.mark.parametrize("computed", [1, 40])
async def test_what_was_computed_here_is_the_engines_own_evidence(
    side: DecodeSide, computed: int
) -> None:
    """1 proves that the transfer was real; an engine that computed the prompt again says so."""
    side.engine.prompt_tokens_computed = computed
    sent = Sent()

    await side.run(sent)

    assert sent.report["prompt_tokens_computed"] == computed


async def test_an_end_token_is_counted_and_not_shown(side: DecodeSide) -> None:
    """It ends the output with `stop`."""
    sent = Sent()
    end = TokenOut(token=END_OF_TURN, finish_reason="stop")
    side.engine.decodes.append([*words("ab", finish_reason=None), end])

    await side.run(sent)

    assert texts(sent) == ["a", "b", ""]
    assert finish_reason(sent) == "stop"
    assert sent.report["output_tokens"] == 3


async def test_a_stop_string_ends_the_output_and_the_engines_work(side: DecodeSide) -> None:
    """Tokens behind it are never computed."""
    sent = Sent()
    side.engine.decodes.append([*words("one END", finish_reason=None), Gate()])

    await side.run(
        sent, sampling=Sampling(temperature=0, output_tokens_max=100, stop=("END", "xyz"))
    )

    assert "".join(texts(sent)) == "one "
    assert finish_reason(sent) == "stop"
    assert sent.report["output_tokens"] == 7


async def test_text_that_was_held_back_comes_at_the_end(side: DecodeSide) -> None:
    """It began a stop string that never came."""
    sent = Sent()
    side.engine.decodes.append(words("one EN"))

    await side.run(sent, sampling=Sampling(temperature=0, output_tokens_max=100, stop=("END",)))

    assert "".join(texts(sent)) == "one EN"
    assert finish_reason(sent) == "length"


async def test_a_whole_answer_is_one_frame(side: DecodeSide) -> None:
    """With its usage, in which cached tokens are those of the prefill worker."""
    sent = Sent()
    side.engine.decodes.append(words("hello"))

    await side.run(sent, output=an_output(is_stream=False))

    answer = json.loads(sent.content)
    assert [kind for kind, _ in sent.frames] == [FrameKind.CONTENT, FrameKind.REPORT]
    assert answer["choices"][0]["text"] == "hello"
    assert answer["usage"]["prompt_tokens"] == 40
    assert answer["usage"]["completion_tokens"] == 5


async def test_the_engine_gets_the_sampling_of_the_request(side: DecodeSide) -> None:
    """As it came."""
    sampling = Sampling(temperature=0.5, top_p=0.9, seed=7, output_tokens_max=3)

    await side.run(Sent(), sampling=sampling)

    assert side.engine.sampled == [sampling]


async def test_a_finished_transfer_frees_the_segment(side: DecodeSide) -> None:
    """The reader has released it: nothing waits for a lease to end."""
    await side.run(Sent())

    await until(lambda: side.prefill.segments.held_bytes == 0)
    assert side.prefill.segments.counters.released_total == 1


async def test_transfers_are_measured_by_their_origin() -> None:
    """Only those over a link; inside the datacenter there is none."""
    async with a_prefill_side() as prefill:
        side = DecodeSide(prefill)
        await side.run(Sent())

        samples = side.metrics.registry.get_sample_value
        received = samples("prfaas_kv_received_bytes_total", {"from_dc": "east"})
        assert received == 39 * 8 + 32
        assert samples("prfaas_kv_transfer_seconds_count", {"from_dc": "east"}) == 1
        assert side.links.reports() == ()


# --- Refused ---------------------------------------------------------------------------------


def location_for(tokens: int = 39, **overrides: Any) -> KvLocation:
    """A location that fits the fake engine and 40 tokens of prompt."""
    spec = FakeEngine().spec
    manifest = a_manifest(
        **({"token_count": tokens, "scope": SCOPE, "groups": spec.groups} | overrides)
    )
    return KvLocation(
        worker_id="east/p1",
        datacenter="east",
        incarnation="i1",
        segment_id="s1",
        generation=1,
        host="127.0.0.1",
        port=1,
        lease_s=30,
        manifest=manifest,
    )


@pytest.mark.parametrize(
    ("job", "said"),
    [
        ({"incarnation": "i0"}, "another life"),
        ({"location": location_for(fingerprint="g")}, "another fingerprint"),
        (
            {
                "location": location_for(
                    groups=(KvGroup(name="attention", bytes_per_token=4, fixed_bytes=0),)
                )
            },
            "another layout",
        ),
        ({"scope": "other"}, "another scope"),
    ],
    ids=["incarnation", "fingerprint", "groups", "scope"],
)
async def test_kv_that_does_not_fit_is_refused(
    side: DecodeSide, job: dict[str, Any], said: str
) -> None:
    """Before one byte of it is fetched."""
    values = {"location": location_for(), **job}

    with pytest.raises(WorkerRefused, match=said):
        side.service.check(a_decode_job_for(values.pop("location"), **values), PROMPT)


@pytest.mark.parametrize(
    ("tokens", "location", "output_tokens_max"),
    [(0, location_for(0), 8), (40, location_for(40), 8), (40, location_for(39), 473)],
    ids=["no prompt", "another length", "no room for the output"],
)
async def test_a_job_that_cannot_be_is_malformed(
    side: DecodeSide, tokens: int, location: KvLocation, output_tokens_max: int
) -> None:
    """The edge has checked it; a worker does not rely on that."""
    job = a_decode_job_for(location, output_tokens_max=output_tokens_max)

    with pytest.raises(MalformedRequest):
        side.service.check(job, a_prompt(tokens))


async def test_a_job_that_fills_the_context_is_taken(side: DecodeSide) -> None:
    """To the last token."""
    side.service.check(a_decode_job_for(location_for(), output_tokens_max=472), PROMPT)


async def test_a_worker_that_is_full_refuses(side: DecodeSide) -> None:
    """Until one of its jobs has ended."""
    gate = Gate()
    side.engine.decodes.extend([[gate, *words("a")], [gate, *words("b")]])
    running = [
        asyncio.ensure_future(side.run(Sent(), await side.location(f"req-{number}.1")))
        for number in range(2)
    ]
    await gate.reached()

    with pytest.raises(WorkerRefused, match="2 jobs"):
        side.service.check(a_decode_job_for(location_for()), PROMPT)
    gate.open()
    await asyncio.gather(*running)

    side.service.check(a_decode_job_for(location_for()), PROMPT)


async def test_a_worker_that_drains_refuses_what_is_new(side: DecodeSide) -> None:
    """And serves what it has."""
    gate = Gate()
    side.engine.decodes.append([gate, *words("a")])
    sent = Sent()
    running = asyncio.ensure_future(side.run(sent))
    await gate.reached()
    side.service.is_draining = True

    with pytest.raises(Draining):
        side.service.check(a_decode_job_for(location_for()), PROMPT)
    gate.open()
    await running

    assert sent.report["output_tokens"] == 1
    assert repr(side.service) == "<DecodeService 0 jobs>"


# --- KV does not come ------------------------------------------------------------------------


async def test_a_segment_that_is_gone_is_stale(side: DecodeSide) -> None:
    """Released before, or its lease was over."""
    location = await side.location()
    side.prefill.service.abort("req-1.1")
    sent = Sent()

    with pytest.raises(SegmentStale):
        await side.run(sent, location)

    assert sent.frames == []


async def test_a_prefill_that_is_aborted_ends_its_decode(side: DecodeSide) -> None:
    """In the middle of the transfer."""
    gates = [Gate(), Gate()]
    side.prefill.engine.prefills.append(gates)
    gates[0].open()
    running = asyncio.ensure_future(side.run(Sent()))
    await until(lambda: side.engine.sequences and side.engine.sequences[0].written)

    side.prefill.service.abort("req-1.1")

    with pytest.raises(SegmentStale):
        await running


async def test_a_prefill_that_fails_ends_its_decode(side: DecodeSide) -> None:
    """The owner says so at once."""
    gate = Gate()
    side.prefill.engine.prefills.append([gate, ZeroDivisionError()])
    running = asyncio.ensure_future(side.run(Sent()))
    await gate.reached()
    await until(lambda: side.prefill.kv.connections > 0)

    gate.open()

    with pytest.raises(SegmentFailed):
        await running


async def test_an_owner_that_is_not_there_is_a_link_down(side: DecodeSide) -> None:
    """Nothing was sent to the router yet."""
    sent = Sent()

    with pytest.raises(LinkDown):
        await side.run(sent, location_for())

    assert sent.frames == []


# --- Stopped ---------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["fetching", "waiting for a slot", "between tokens", "sending"])
async def test_a_job_that_is_cancelled_lets_go_of_everything(side: DecodeSide, stage: str) -> None:
    """Wherever it is: the router has closed its stream."""
    gate, sent = Gate(), Sent()
    if stage == "fetching":
        side.prefill.engine.prefills.append([gate])
    elif stage == "waiting for a slot":
        side.engine.decodes.append([gate, *words("abc")])
    elif stage == "between tokens":
        side.engine.decodes.append([*words("ab", finish_reason=None), gate, *words("c")])
    else:
        side.engine.decodes.append(words("abc"))
        sent.steps[1] = gate
    running = asyncio.ensure_future(side.run(sent))
    await gate.reached()
    await a_few_turns()

    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    assert side.service.jobs == 0
    side.engine.check_integrity()


@pytest.mark.parametrize("stage", ["fetching", "decoding"])
async def test_the_deadline_of_the_request_ends_its_decode(side: DecodeSide, stage: str) -> None:
    """With an error that says so, and everything given back."""
    clock, gate, sent = LoopClock(), Gate(), Sent()
    if stage == "fetching":
        side.prefill.engine.prefills.append([gate])
    else:
        side.engine.decodes.append([*words("ab", finish_reason=None), gate])
    running = asyncio.ensure_future(side.run(sent, deadline_s=3))
    await gate.reached()

    clock.advance(4)

    with pytest.raises(DeadlineExceeded):
        await running
    assert not any(kind is FrameKind.REPORT for kind, _ in sent.frames)
    side.prefill.service.abort("req-1.1")


@pytest.mark.parametrize("stage", ["fetching", "decoding", "sending"])
async def test_all_jobs_can_be_ended_with_a_reason(side: DecodeSide, stage: str) -> None:
    """The worker leaves, or its engine hangs: routers are told which, and nothing is held."""
    gate, sent = Gate(), Sent()
    if stage == "fetching":
        side.prefill.engine.prefills.append([gate])
    elif stage == "decoding":
        side.engine.decodes.append([*words("ab", finish_reason=None), gate])
    else:
        side.engine.decodes.append(words("ab"))
        sent.steps[1] = gate
    running = asyncio.ensure_future(side.run(sent))
    await gate.reached()

    for said in ("first", "second"):
        side.service.end_jobs(partial(Draining, said))

    with pytest.raises(Draining, match="first"):
        await running
    side.prefill.service.abort("req-1.1")


async def test_ending_jobs_ends_none_that_comes_later(side: DecodeSide) -> None:
    """Who refuses new ones is another's business."""
    side.service.end_jobs(partial(Draining, "leaving"))
    sent = Sent()

    await side.run(sent)

    assert sent.report["finish_reason"] == "length"


async def test_a_job_waits_for_the_engine_only_while_it_does(side: DecodeSide) -> None:
    """Not while its KV comes, and not while its router reads."""
    fetching, computing, sending, sent = Gate(), Gate(), Gate(), Sent()
    side.prefill.engine.prefills.append([fetching])
    side.engine.decodes.append([computing, *words("ab")])
    sent.steps[1] = sending
    running = asyncio.ensure_future(side.run(sent))
    waiting = []

    for gate in (fetching, computing, sending):
        await gate.reached()
        await a_few_turns()
        waiting.append(side.service.waiting)
        gate.open()
    await running

    assert [*waiting, side.service.waiting] == [0, 1, 0, 0]


async def test_a_worker_whose_engine_hangs_refuses_what_is_new(side: DecodeSide) -> None:
    """Until it moves again."""
    side.service.is_stalled = True
    with pytest.raises(WorkerRefused, match="hangs"):
        side.service.check(a_decode_job_for(location_for()), PROMPT)
    side.service.is_stalled = False

    side.service.check(a_decode_job_for(location_for()), PROMPT)


async def test_a_router_that_has_gone_ends_its_decode(side: DecodeSide) -> None:
    """The next frame cannot be sent."""
    sent = Sent()
    sent.steps[1] = ConnectionResetError()
    side.engine.decodes.append([*words("ab", finish_reason=None), Gate()])

    with pytest.raises(ConnectionResetError):
        await side.run(sent)

    assert len(sent.frames) == 1


# --- The engine fails ------------------------------------------------------------------------


@pytest.mark.parametrize("shown", ["", "ab"])
async def test_an_engine_that_stops_in_the_middle_has_not_finished(
    side: DecodeSide, shown: str
) -> None:
    """Closing an engine ends its iterators: a cut answer must not look like a whole one."""
    sent = Sent()
    side.engine.decodes.append(words(shown, finish_reason=None))

    with pytest.raises(WorkerLost, match="engine"):
        await side.run(sent)

    assert b"[DONE]" not in sent.content
    assert len(sent.frames) == len(shown)


async def test_an_engine_that_raises_ends_one_job(side: DecodeSide) -> None:
    """And holds nothing for it."""
    side.engine.decodes.append([*words("ab", finish_reason=None), RuntimeError("a bug")])

    with pytest.raises(RuntimeError):
        await side.run(Sent())

    await side.run(Sent(), await side.location("req-2.1"))


async def test_a_timeout_of_the_engine_does_not_pass_for_the_requests_time(
    side: DecodeSide,
) -> None:
    """The router would give the request up, although another worker could go on with it."""
    side.engine.decodes.append([*words("ab", finish_reason=None), TimeoutError("a device")])

    with pytest.raises(TimeoutError, match="a device"):
        await side.run(Sent())


async def test_kv_that_the_engine_does_not_take_ends_one_job(side: DecodeSide) -> None:
    """Wrong KV is worse than lost KV."""
    side.engine.write_error = ValueError("not expected")

    with pytest.raises(ValueError, match="not expected"):
        await side.run(Sent())

    assert side.service.jobs == 0
    side.prefill.service.abort("req-1.1")
