"""Measures an engine server: prefill by length, decode steps by batch, bytes of KV by length."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final, TypeAlias

from controlplane.domain.throughput.profile import KvSize
from controlplane.errors import ConfigError
from controlplane.profilefile import DecodeSpec, KvSpec, Measurement, PrefillSpec, ProfileFile
from workers.profiling.points import batch_within, batches, kv_size_through, prompt_lengths, rising
from workers.profiling.repetition import is_settled, uncertainty
from workers.profiling.server import MeasurableServer, PromptCounts, ServerFull

#: Told after each measurement: what is measured, how many points are settled, of how many.
OnProgress: TypeAlias = Callable[[str, int, int], None]

#: Lengths at which KV is sent for its size; more would tell nothing new of a line.
_KV_LENGTHS: Final = 4
#: Decoded over one prompt of this many tokens, or half of the longest.
_CONTEXT_TOKENS: Final = 1024
#: What others asked for meanwhile, as a part of what was sent here, that is let pass: a health check.
_OTHERS_SHARE: Final = 0.01
_MS: Final = 1000.0
#: Digits of times in a profile.
_DIGITS: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What is measured, and how well."""

    #: Prompt lengths, tokens; None for powers of two up to the longest.
    lengths: tuple[int, ...] | None = None
    #: Objective of decode: seconds of each further token.
    tpot_s: float = 0.05
    batch_max: int = 256
    #: Steps that one measurement of decode runs over.
    steps: int = 32
    #: Uncertainty of each median that is good enough.
    tolerance: float = 0.05
    runs_max: int = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """All measurements of one server, seconds."""

    prefill_s: Mapping[int, Sequence[float]]
    step_s: Mapping[int, Sequence[float]]
    #: Pairs of tokens and bytes that crossed to a decode server.
    kv_bytes: tuple[tuple[int, int], ...]
    context_tokens: int

    @property
    def uncertainty_max(self) -> float:
        """Of the least sure median."""
        runs = (*self.prefill_s.values(), *self.step_s.values())
        return max(uncertainty(values) or 1.0 for values in runs)

    def unsettled(self, tolerance: float) -> list[str]:
        """Points whose medians are less sure than was asked for."""
        named = [(f"prefill of {tokens:,}", runs) for tokens, runs in self.prefill_s.items()]
        named += [(f"batch of {batch}", runs) for batch, runs in self.step_s.items()]
        return [name for name, runs in named if (uncertainty(runs) or 1.0) > tolerance]


async def measure(
    server: MeasurableServer,
    options: Options,
    *,
    decode: MeasurableServer | None,
    on_progress: OnProgress,
) -> Measured:
    """
    Measure until all medians are sure enough, or `runs_max` times.

    Args:
        server: Does nothing else meanwhile.
        options: What and how well.
        decode: A server that pulls KV from it, to count the bytes; None where that is not wanted.
        on_progress: Told of each step.

    Raises:
        ConfigError: Others used the server meanwhile, or its prefix cache answered; a length is too
            long for it.
        PrfaasError: It failed.
    """
    lengths = _lengths(options, server)
    before = await server.counts()
    # The first request of each shape may compile; nothing is learnt from it.
    await server.prefill_s(min(lengths))
    prefill_s = await _rounds("prefill", lengths, server.prefill_s, options, on_progress)
    context = min(_CONTEXT_TOKENS, server.context_tokens // 2)

    async def step_s(batch: int) -> float:
        return await server.step_s(batch, context_tokens=context, steps=options.steps)

    steps_s = await _decode(step_s, options, on_progress)
    sizes = []
    if decode is not None:
        for number, tokens in enumerate(chosen := lengths[:_KV_LENGTHS]):
            on_progress("KV", number, len(chosen))
            sizes.append((tokens, await server.kv_bytes(tokens, decode)))
    _check(before, await server.counts(), server.sent_tokens)
    return Measured(
        prefill_s=prefill_s, step_s=steps_s, kv_bytes=tuple(sizes), context_tokens=context
    )


def _check(before: PromptCounts | None, after: PromptCounts | None, sent_tokens: int) -> None:
    """
    See that the server did what it was asked here, and nothing else.

    Raises:
        ConfigError: It did.
    """
    if before is None or after is None:
        return
    total, cached = after.total - before.total, after.cached - before.cached
    if total > sent_tokens * (1 + _OTHERS_SHARE):
        raise ConfigError(
            f"the engine computed {total:,} prompt tokens meanwhile, and was sent {sent_tokens:,} of "
            "them here: others use it. Take it out of service first"
        )
    if cached:
        raise ConfigError(
            f"{cached:,} prompt tokens came from the engine's prefix cache, of prompts that were "
            "drawn: it answers from something else than what it is asked"
        )


async def _decode(
    step_s: Callable[[int], Awaitable[float]], options: Options, on_progress: OnProgress
) -> dict[int, list[float]]:
    """Batches up to the first one that is too slow or does not fit, and the largest that is not."""
    once: dict[int, float] = {}
    for batch in batches():
        on_progress(f"decode {batch:,}", 0, 1)
        try:
            if batch <= options.batch_max:
                once[batch] = await step_s(batch)
        except ServerFull:
            break
        if batch > options.batch_max or once[batch] > options.tpot_s:
            break
    if not once:
        raise ConfigError("not even one stream decodes there: its prompt and output do not fit")
    best = batch_within(once, options.tpot_s)
    return await _rounds("decode", sorted({*once, best}), step_s, options, on_progress)


async def _rounds(
    name: str,
    points: Iterable[int],
    run: Callable[[int], Awaitable[float]],
    options: Options,
    on_progress: OnProgress,
) -> dict[int, list[float]]:
    """All points in turn, again and again: what disturbs the machine for a while disturbs all alike."""
    runs: dict[int, list[float]] = {point: [] for point in points}
    open_points = list(runs)
    while open_points:
        for point in open_points:
            on_progress(f"{name} {point:,}", len(runs) - len(open_points), len(runs))
            runs[point].append(await run(point))
        open_points = [
            point
            for point in open_points
            if not is_settled(runs[point], tolerance=options.tolerance, runs_max=options.runs_max)
        ]
    return runs


def _lengths(options: Options, server: MeasurableServer) -> list[int]:
    lengths = sorted(set(options.lengths or prompt_lengths(server.context_tokens)))
    if len(lengths) < 2:  # noqa: PLR2004 - a line has two ends
        raise ConfigError(
            f"two lengths are needed at least; the engine takes {server.context_tokens:,} tokens"
        )
    if lengths[-1] >= server.context_tokens:
        raise ConfigError(
            f"--lengths {lengths[-1]:,}: the engine takes {server.context_tokens:,} tokens with the "
            "output (max_model_len)"
        )
    return lengths


def profile_of(
    measured: Measured,
    options: Options,
    *,
    name: str,
    server: MeasurableServer,
    configured: KvSize | None,
) -> ProfileFile:
    """
    The profile that was measured.

    Args:
        measured: All of it.
        options: It was measured with.
        name: Of the profile.
        server: It is of.
        configured: Sizes of KV by the model's configuration; measured ones count first.
    """
    medians_s = [(tokens, median(times)) for tokens, times in measured.prefill_s.items()]
    steps_s = {batch: median(times) for batch, times in measured.step_s.items()}
    slots = max(
        (batch for batch, step_s in steps_s.items() if step_s <= options.tpot_s),
        default=min(steps_s),
    )
    size = kv_size_through(measured.kv_bytes) if measured.kv_bytes else configured
    return ProfileFile(
        name=name,
        source="measured",
        model=None
        if size is None
        else KvSpec(
            kv_state_bytes=round(size.state_bytes),
            kv_bytes_per_token=round(size.bytes_per_token, 2),
        ),
        prefill=PrefillSpec(
            table=tuple((tokens, _rounded(time_s)) for tokens, time_s in rising(medians_s))
        ),
        decode=DecodeSpec(
            slots=slots,
            step_ms=_rounded(steps_s[slots] * _MS),
            table=tuple((batch, _rounded(step_s * _MS)) for batch, step_s in steps_s.items()),
        ),
        measurement=Measurement(
            engine=f"{server.engine}, {server.model}",
            context_tokens_max=server.context_tokens,
            decode_context_tokens=measured.context_tokens,
            tpot_s=options.tpot_s,
            uncertainty_max=round(measured.uncertainty_max, _DIGITS),
        ),
    )


def _rounded(value: float) -> float:
    """To as many digits as such a measurement has."""
    return float(f"{value:.{_DIGITS}g}")
