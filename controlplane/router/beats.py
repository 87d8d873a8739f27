"""Which beats a router does not believe: figures that no worker can have."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

from controlplane.wire import LinkReport, WorkerBeat

#: Why a beat was refused; a closed list, a label of metrics.
BeatRefusal: TypeAlias = Literal["capacity", "load", "profile", "link"]

#: Requests and slots of one worker.
_REQUESTS_MAX: Final = 1_000_000
#: Tokens of a context, or waiting at a worker.
_TOKENS_MAX: Final = 1 << 40
#: Bytes, of KV held or of KV per token.
_BYTES_MAX: Final = 1 << 50
#: Seconds of one step or one token; an hour is no inference any more.
_STEP_S_MAX: Final = 3600.0
#: Bits per second of a link.
_BPS_MAX: Final = 1e15


def refusal_of(beat: WorkerBeat) -> BeatRefusal | None:
    """
    What is absurd about a beat; None when it can be taken.

    The schema keeps numbers finite, no more: a worker that says it has room for a billion requests
    would draw all there are, and a link of an exabit would be thought free. Ages need no bound
    here: they are only compared.
    """
    load, profile = beat.load, beat.profile
    if max(beat.requests_max, beat.slots) > _REQUESTS_MAX or (
        max(beat.context_tokens_max, beat.block_tokens, beat.sequence) > _TOKENS_MAX
    ):
        return "capacity"
    if max(load.queue_requests, load.running) > _REQUESTS_MAX or (
        load.queue_tokens > _TOKENS_MAX or load.kv_bytes > _BYTES_MAX
    ):
        return "load"
    times_s = (profile.prefill_s_per_token, profile.prefill_fixed_s, profile.decode_step_s)
    if max(times_s) > _STEP_S_MAX or (
        max(profile.kv_bytes_per_token, profile.kv_state_bytes) > _BYTES_MAX
    ):
        return "profile"
    return "link" if any(_is_absurd(report) for report in beat.links) else None


def _is_absurd(report: LinkReport) -> bool:
    return (
        report.goodput_bps > _BPS_MAX
        or report.rtt_s > _STEP_S_MAX
        or max(report.bytes_total, report.arrived_bytes_total) > 1 << 60
    )
