"""A stream goes on at another decode worker: the client's bytes are those of an unbroken one."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import pytest
from builders import a_location, a_manifest, an_output
from worker_builders import FakeEngine, Sent, a_decode_job_for, an_identity

from controlplane.config import KvConfig, ModelConfig
from controlplane.domain.byte_tokenizer import (
    END_OF_TURN,
    WIDTH_BYTES,
    encode_chat,
    encode_text,
)
from controlplane.domain.prefix import block_hashes
from controlplane.domain.tokens import TokenIds
from controlplane.errors import MalformedRequest
from controlplane.wire import (
    FrameKind,
    KvLocation,
    OutputShape,
    PrefillReport,
    Sampling,
    TransferReport,
    unpack_output,
)
from workers.decode_service import DecodeService
from workers.engine import Engine, KvPiece, TokenOut
from workers.engines.reference.engine import ReferenceEngine
from workers.kv.client import FetchResult
from workers.kv.timing import Clock
from workers.kv.traffic import LinkTraffic
from workers.links import LinkMeters
from workers.metrics import WorkerMetrics

SCOPE = "scope"
MODEL = ModelConfig(layers=4, context_tokens_max=512, cache_tokens_max=0, decode_slots=4)


class Near:
    """A prefill engine in this process instead of a network."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.tokens = TokenIds(b"", WIDTH_BYTES)
        self.fetches = 0

    def location(self, tokens: TokenIds) -> KvLocation:
        """Where the KV of these is."""
        self.tokens = tokens
        spec = self.engine.spec
        return a_location(
            manifest=a_manifest(
                fingerprint=spec.fingerprint,
                scope=SCOPE,
                token_count=len(tokens),
                block_tokens=spec.block_tokens,
                groups=spec.groups,
            )
        )

    async def fetch(
        self,
        location: KvLocation,
        *,
        held_tokens: int,
        destination: str,
        on_piece: Callable[[KvPiece], None],
        config: KvConfig,
        arrived_s: float,
        clock: Clock = float,
        traffic: LinkTraffic | None = None,
    ) -> FetchResult:
        """Compute and hand over what is lacking."""
        del location, destination, config, arrived_s, clock, traffic
        self.fetches += 1
        hashes = block_hashes(self.tokens, block_tokens=self.engine.spec.block_tokens, scope=SCOPE)
        run = self.engine.prefill(self.tokens, hashes)
        async for piece in run.pieces():
            if piece.group == "state" or piece.token_start >= held_tokens:
                on_piece(piece)
        return FetchResult(
            transfer=TransferReport(),
            prefill=PrefillReport(
                queue_s=0.0,
                compute_s=0.0,
                cached_tokens=run.cached_tokens,
                computed_tokens=len(self.tokens) - run.cached_tokens,
            ),
            goodput_bps=0.0,
            rtt_s=0.0,
        )


class Ticks:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Decoder:
    """A decode worker without a network."""

    def __init__(self, engine: Any, near: Near) -> None:
        self.engine = engine
        self.near = near
        self.clock = Ticks()
        self.service = DecodeService(
            engine,
            an_identity("decode"),
            KvConfig(),
            WorkerMetrics(),
            requests_max=4,
            links=LinkMeters("west"),
            fetch=near.fetch,
            clock=self.clock,
        )

    async def run(self, prompt: TokenIds, behind: list[int] | None = None, **job: Any) -> Sent:
        """All frames of a job that goes on behind output tokens."""
        tokens = with_output(prompt, behind or [])
        location = self.near.location(tokens.head(len(tokens) - 1))
        made = a_decode_job_for(
            location, **({"resumed_tokens": len(behind or []), "wants_tokens": True} | job)
        )
        self.service.check(made, tokens)
        sent = Sent()
        await self.service.run(made, tokens, sent)
        return sent


def with_output(prompt: TokenIds, output: list[int]) -> TokenIds:
    """The payload of a job that resumes."""
    return TokenIds.from_ints([*prompt.to_list(), *output], WIDTH_BYTES)


@dataclass
class Unbroken:
    """What a client gets of a stream that nothing interrupts."""

    tokens: list[int]
    #: Bytes that the client has after so many tokens, by the number of tokens.
    sent: list[bytes]
    whole: bytes
    report: dict[str, Any]


def read(sent: Sent) -> Unbroken:
    """Tokens and bytes of the frames of a whole job."""
    *frames, (last_kind, last), (report_kind, _) = sent.frames
    assert (last_kind, report_kind) == (FrameKind.CONTENT, FrameKind.REPORT)
    outputs = [unpack_output(payload) for kind, payload in frames if kind is FrameKind.OUTPUT]
    assert len(outputs) == len(frames), "with wants_tokens every frame carries its tokens"
    tokens = [token for some, _ in outputs for token in some]
    bounds = [0, *accumulate(len(some) for some, _ in outputs)]
    contents = [b"", *accumulate((content for _, content in outputs), lambda one, two: one + two)]
    known = dict(zip(bounds, contents, strict=True))
    by_count = [known[max(at for at in bounds if at <= n)] for n in range(len(tokens) + 1)]
    return Unbroken(tokens, by_count, contents[-1] + last, sent.report)


def sent_after(unbroken: Unbroken, count: int) -> bytes:
    """What a client of a stream has after so many tokens."""
    return unbroken.sent[min(count, len(unbroken.sent) - 1)]


def bytes_of(sent: Sent) -> bytes:
    """What a client gets of a job."""
    return b"".join(
        unpack_output(payload)[1] if kind is FrameKind.OUTPUT else payload
        for kind, payload in sent.frames
        if kind is not FrameKind.REPORT
    )


def shapes() -> list[Any]:
    """Every form of an answer."""
    return [
        pytest.param(
            an_output(kind=kind, is_stream=is_stream, include_usage=usage),
            id=f"{kind}{' stream' if is_stream else ' whole'}{' usage' if usage else ''}",
        )
        for kind in ("chat", "completion")
        for is_stream, usage in ((True, False), (True, True), (False, False))
    ]


@pytest.fixture
async def real() -> AsyncIterator[Decoder]:
    """Prefill and decode on the reference engine, without caches."""
    engine, prefill = ReferenceEngine(MODEL), ReferenceEngine(MODEL)
    yield Decoder(engine, Near(prefill))
    for one in (engine, prefill):
        one.check_integrity()
        await one.close()


# --- The reference engine --------------------------------------------------------------------

PROMPTS = {
    "one token": encode_text("x"),
    "words": encode_text("The old lighthouse keeper counted"),
    "to the edge of a block": encode_text("abcdefgh" * 8),
    "over a block": encode_text("Prefill here, decode there, and once more. " * 2),
    "chat": encode_chat([("system", "Be brief."), ("user", "Wie heißt du? 🙂")]),
}


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
async def test_greedy_output_after_a_resume_at_every_token_equals_the_unbroken_one(
    real: Decoder, prompt: TokenIds
) -> None:
    """Prefill of the output so far gives the tokens that decode steps gave."""
    sampling = Sampling(temperature=0, output_tokens_max=40)
    unbroken = read(await real.run(prompt, sampling=sampling))

    for count in range(1, len(unbroken.tokens) + 1):
        resumed = await real.run(prompt, unbroken.tokens[:count], sampling=sampling)

        assert unbroken.sent[count] + bytes_of(resumed) == unbroken.whole, count
        assert resumed.report["output_tokens"] == unbroken.report["output_tokens"]
        assert resumed.report["finish_reason"] == unbroken.report["finish_reason"]


@pytest.mark.parametrize("shape", shapes())
async def test_every_form_of_an_answer_resumes_byte_for_byte(
    real: Decoder, shape: OutputShape
) -> None:
    """Roles, usage and the end are those of one answer, with a stop string in its middle."""
    free = read(await real.run(PROMPTS["words"], output_tokens_max=40))
    stop = bytes(free.tokens[5:8]).decode()
    sampling = Sampling(temperature=0, output_tokens_max=40, stop=("never", stop))
    unbroken = read(await real.run(PROMPTS["words"], sampling=sampling, output=shape))
    ended = unbroken.report["output_tokens"]

    for count in range(1, ended + 1):
        resumed = await real.run(
            PROMPTS["words"], free.tokens[:count], sampling=sampling, output=shape
        )
        client = sent_after(unbroken, count) if shape.is_stream else b""
        assert client + bytes_of(resumed) == unbroken.whole, count

    assert unbroken.report["finish_reason"] == "stop"


async def test_a_resumed_stream_may_break_and_resume_again(real: Decoder) -> None:
    """Three moves are one answer."""
    sampling = Sampling(temperature=0, output_tokens_max=40)
    unbroken = read(await real.run(PROMPTS["words"], sampling=sampling))

    tokens: list[int] = []
    client = b""
    for _ in range(3):
        part = read(await real.run(PROMPTS["words"], tokens, sampling=sampling))
        tokens += part.tokens[:9]
        client += part.sent[9]
    client += bytes_of(await real.run(PROMPTS["words"], tokens, sampling=sampling))

    assert client == unbroken.whole


# --- Text that is not certain yet ------------------------------------------------------------

#: Characters of one to four bytes, the beginning of a stop string, and a stop string.
TEXT = "naïve 日本 🙂🙃 EN EX END tail"


@pytest.fixture
def scripted() -> Decoder:
    """A decoder whose engine puts out `TEXT` from where the job begins."""
    engine = FakeEngine()
    return Decoder(engine, Near(FakeEngine()))


async def run_text(
    decoder: Decoder, count: int, *, text: str = TEXT, end: bool = False, **job: Any
) -> Sent:
    """A job that begins behind the first `count` tokens of a text."""
    tokens = list(text.encode())
    script = [TokenOut(token=token) for token in tokens[count:]]
    if end:
        script.append(TokenOut(token=END_OF_TURN, finish_reason="stop"))
    elif script:
        script[-1] = TokenOut(token=script[-1].token, finish_reason="length")
    decoder.engine.decodes.clear()
    decoder.engine.decodes.append(script)
    values = {"sampling": Sampling(temperature=0, output_tokens_max=len(tokens))}
    return await decoder.run(encode_text("prompt"), tokens[:count], **(values | job))


@pytest.mark.parametrize("stop", [(), ("END", "EXIT"), ("never", "🙂🙃 EN E"), ("tails",)])
@pytest.mark.parametrize("end", [False, True], ids=["length", "end token"])
@pytest.mark.parametrize("shape", shapes())
async def test_a_resume_in_the_middle_of_a_character_or_a_stop_string_loses_nothing(
    scripted: Decoder, shape: OutputShape, stop: tuple[str, ...], *, end: bool
) -> None:
    """Bytes that wait for their rest wait at the next worker too."""
    limit = len(TEXT.encode()) + end
    job = {
        "sampling": Sampling(temperature=0, output_tokens_max=limit, stop=stop),
        "output": shape,
    }
    unbroken = read(await run_text(scripted, 0, end=end, **job))

    for count in range(1, unbroken.report["output_tokens"] + 1 - end):
        resumed = await run_text(scripted, count, end=end, **job)
        client = sent_after(unbroken, count) if shape.is_stream else b""
        assert client + bytes_of(resumed) == unbroken.whole, count
        assert resumed.report["output_tokens"] == unbroken.report["output_tokens"]


# --- What a job may ask ----------------------------------------------------------------------


async def test_usage_counts_the_prompt_alone_and_the_whole_output(scripted: Decoder) -> None:
    """Whoever has computed them."""
    sent = await run_text(scripted, 4, text="hello!", output=an_output(is_stream=False))

    usage = json.loads(bytes_of(sent))["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (6, 6, 12)


async def test_the_engine_is_asked_for_the_rest_of_the_output(scripted: Decoder) -> None:
    """The limit of the request is for all of it."""
    sampling = Sampling(temperature=0, output_tokens_max=20)

    await run_text(scripted, 4, text="hello!", sampling=sampling)

    assert [one.output_tokens_max for one in scripted.engine.sampled] == [16]


@pytest.mark.parametrize(
    ("text", "stop", "reason"),
    [("hello", (), "length"), ("one END", ("END",), "stop")],
    ids=["all tokens", "stop string"],
)
async def test_an_answer_that_is_all_said_but_its_end_ends_at_once(
    scripted: Decoder, text: str, stop: tuple[str, ...], reason: str
) -> None:
    """The worker before died between its last token and its report: nothing is computed."""
    sampling = Sampling(temperature=0, output_tokens_max=7 if stop else 5, stop=stop)

    sent = await run_text(scripted, len(text), text=text, sampling=sampling)

    assert [kind for kind, _ in sent.frames] == [FrameKind.CONTENT, FrameKind.REPORT]
    assert bytes_of(sent).endswith(b"data: [DONE]\n\n")
    assert (sent.report["finish_reason"], sent.report["output_tokens"]) == (reason, len(text))
    assert (scripted.near.fetches, scripted.engine.sequences) == (0, [])


@pytest.mark.parametrize(
    ("resumed", "limit", "said"),
    [(46, 100, "at least"), (47, 100, "at least"), (9, 8, "asked for"), (4, 471, "512 in all")],
    ids=["no prompt", "more than all", "over the limit", "over the context"],
)
async def test_a_resume_that_cannot_be_is_malformed(
    scripted: Decoder, resumed: int, limit: int, said: str
) -> None:
    """46 tokens, so many of them output."""
    tokens = encode_text("x" * 46)
    job = a_decode_job_for(
        scripted.near.location(tokens.head(45)), resumed_tokens=resumed, output_tokens_max=limit
    )

    with pytest.raises(MalformedRequest, match=said):
        scripted.service.check(job, tokens)


async def test_output_does_not_count_twice_against_the_context(scripted: Decoder) -> None:
    """46 tokens with 4 of output leave 470 for the whole output."""
    tokens = encode_text("x" * 46)
    location = scripted.near.location(tokens.head(45))

    scripted.service.check(
        a_decode_job_for(location, resumed_tokens=4, output_tokens_max=470), tokens
    )


# --- Frames ----------------------------------------------------------------------------------


def outputs(sent: Sent) -> list[tuple[int, bool]]:
    """Number of tokens of each output frame, and whether it has content."""
    return [
        (len(unpack_output(payload)[0]), bool(unpack_output(payload)[1]))
        for kind, payload in sent.frames
        if kind is FrameKind.OUTPUT
    ]


async def test_a_frame_has_the_tokens_that_made_its_bytes_certain(scripted: Decoder) -> None:
    """A character of four bytes comes with its four tokens."""
    sent = await run_text(scripted, 0, text="a🙂b")

    assert outputs(sent) == [(1, True), (4, True), (1, True)]


async def test_a_router_without_tokens_gets_the_frames_of_before(scripted: Decoder) -> None:
    """An older router knows no output frames."""
    sent = await run_text(scripted, 0, text="a🙂b", wants_tokens=False)

    assert [kind for kind, _ in sent.frames] == [FrameKind.CONTENT] * 4 + [FrameKind.REPORT]


@pytest.mark.parametrize("is_stream", [False, True])
async def test_tokens_without_text_wait_for_at_most_thirty_two(
    scripted: Decoder, *, is_stream: bool
) -> None:
    """Also of an answer that comes whole: a router could go on with it elsewhere."""
    stop = "x" * 99 + "y"
    sampling = Sampling(temperature=0, output_tokens_max=90, stop=(stop,))

    sent = await run_text(
        scripted,
        0,
        text="x" * 90,
        sampling=sampling,
        output=an_output(is_stream=is_stream),
    )

    assert outputs(sent) == [(32, False), (32, False)]


async def test_tokens_without_text_wait_for_at_most_half_a_second(scripted: Decoder) -> None:
    """A slow engine must not make much to compute again."""
    tick = scripted.clock
    run = scripted.engine.decode

    class Slow:
        """Every token takes 0.3 s."""

        def __init__(self, stream: Any) -> None:
            self._stream = stream

        def __aiter__(self) -> Slow:
            return self

        async def __anext__(self) -> TokenOut:
            tick.now_s += 0.3
            token: TokenOut = await self._stream.__anext__()
            return token

        async def aclose(self) -> None:
            await self._stream.aclose()

    scripted.engine.decode = lambda *some: Slow(run(*some))  # type: ignore[method-assign]

    sent = await run_text(scripted, 0, text="abcde", output=an_output(is_stream=False))

    assert outputs(sent) == [(2, False), (2, False)]
