"""The course of a request as spans of time, from what router and workers recorded. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from controlplane.router.records import DecisionRecord, Timeline
from controlplane.wire import DecodeReport


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """One span of a request's time, seconds since it was accepted."""

    name: str
    begins_s: float
    ends_s: float


def phases(record: DecisionRecord) -> tuple[Phase, ...]:
    """
    What happened when; spans may overlap, as transfer and prefill do.

    Times of the workers are durations from the arrival of their job, so they are laid from the
    moment the prefill worker accepted: wrong by the half round trip a job travels, and no more.
    """
    finished_s = record.timeline.finished_s
    spans = list(_router_spans(record))
    if record.report is not None and record.timeline.prefill_accepted_s is not None:
        spans += _worker_spans(record.report, record.timeline.prefill_accepted_s)
    at_s = max((span.ends_s for span in spans), default=0.0)
    spans += _stream_spans(record.timeline, at_s)
    return tuple(_clamped(span, finished_s) for span in spans)


def _stream_spans(timeline: Timeline, at_s: float) -> list[Phase]:
    """From the last thing that was waited for to the end."""
    finished_s = timeline.finished_s
    if timeline.resumed_s is not None and timeline.resumed_s >= at_s:
        name, shown_s = "output goes on", timeline.resumed_s
    elif timeline.first_token_s is not None and timeline.first_token_s >= at_s:
        name, shown_s = "first token", timeline.first_token_s
    else:
        return [Phase(name="until the end", begins_s=at_s, ends_s=finished_s)]
    return [
        Phase(name=name, begins_s=at_s, ends_s=shown_s),
        Phase(name="stream", begins_s=shown_s, ends_s=finished_s),
    ]


def _router_spans(record: DecisionRecord) -> Iterator[Phase]:
    timeline = record.timeline
    yield Phase(name="parse", begins_s=0.0, ends_s=timeline.parsed_s)
    if timeline.decided_s is None:
        return
    began_s = timeline.parsed_s
    if len(record.attempts) > 1:
        yield Phase(name="earlier attempts", begins_s=began_s, ends_s=timeline.decided_s)
    else:
        if timeline.turn_came_s is not None:
            yield Phase(name="wait for prefix", begins_s=began_s, ends_s=timeline.turn_came_s)
            began_s = timeline.turn_came_s
        yield Phase(name="decide", begins_s=began_s, ends_s=timeline.decided_s)
    reserved_s = _of_last_attempt(timeline.reserved_s, timeline)
    if reserved_s is not None:
        yield Phase(name="reserve", begins_s=timeline.decided_s, ends_s=reserved_s)
    accepted_s = _of_last_attempt(timeline.prefill_accepted_s, timeline)
    if accepted_s is not None:
        begins_s = timeline.decided_s if reserved_s is None else reserved_s
        yield Phase(name="hand over", begins_s=begins_s, ends_s=accepted_s)


def _of_last_attempt(at_s: float | None, timeline: Timeline) -> float | None:
    """A moment of an attempt that was given up comes before the last decision."""
    assert timeline.decided_s is not None
    return None if at_s is None or at_s < timeline.decided_s else at_s


def _worker_spans(report: DecodeReport, accepted_s: float) -> list[Phase]:
    prefill, transfer = report.prefill, report.transfer
    starts_s = accepted_s + prefill.queue_s
    spans = [
        Phase(name="prefill queue", begins_s=accepted_s, ends_s=starts_s),
        Phase(name="prefill", begins_s=starts_s, ends_s=starts_s + prefill.compute_s),
    ]
    if transfer.bytes:
        spans.append(
            Phase(
                name="transfer",
                begins_s=accepted_s + transfer.first_byte_s,
                ends_s=accepted_s + transfer.finished_s,
            )
        )
    return spans


def _clamped(span: Phase, finished_s: float) -> Phase:
    """Clocks of several machines are laid on one axis: nothing may stick out of it."""
    begins_s = min(max(0.0, span.begins_s), finished_s)
    ends_s = min(max(begins_s, span.ends_s), finished_s)
    return Phase(name=span.name, begins_s=begins_s, ends_s=ends_s)
