"""The page of one decision: the sentence, the course of the request, and every candidate."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, TypeVar

from controlplane.admin.binding import svg_bar
from controlplane.admin.decisions import FoundDecision
from controlplane.admin.explain import CandidateRow, candidate_rows, omitted_words, sentence
from controlplane.admin.layout import brand, document
from controlplane.admin.markup import Content, Html, tag
from controlplane.admin.notes import TITLES, Topic, notes
from controlplane.admin.phases import Phase, phases
from controlplane.admin.text import NOTHING, count, date_and_clock, seconds, size, words
from controlplane.router.records import Attempt, DecisionRecord

_T = TypeVar("_T", int, float)

_PREFILL_LABELS: Final = (
    "Worker", "Verdict", "Uncached", "Bytes", "Queue", "Prefill", "Transfer", "State tail",
    "Round trip", "First token",
)  # fmt: skip

_DECODE_LABELS: Final = ("Worker", "Verdict", "Requests", "Tokens held")


def decision_page(found: FoundDecision) -> Html:
    """The page as a document."""
    record = found.record
    main = tag(
        "main",
        tag("h1", "Request ", tag("code", record.request_id)),
        tag("p", sentence(record), class_="lead"),
        _facts(record),
        _section("Course", _course(phases(record))),
        [_attempt(record, number) for number in range(len(record.attempts), 0, -1)],
        _section("Story", tag("ol", [tag("li", name) for name in record.story], class_="story")),
        tag(
            "p",
            tag("a", "The whole record as JSON", href=f"/admin/v1/decisions/{record.decision_id}"),
            f" (from the {words(found.source)})",
        ),
        id="main",
    )
    header = tag(
        "header",
        tag("div", brand(), tag("a", "All decisions", href="/#latest-decisions"), class_="top"),
    )
    return document(record.request_id, (header, main))


def _facts(record: DecisionRecord) -> Html:
    return tag(
        "dl",
        [tag("div", tag("dt", name), tag("dd", value)) for name, value in _fact_list(record)],
        class_="facts",
    )


def _fact_list(record: DecisionRecord) -> Iterator[tuple[str, Content]]:
    yield "Outcome", tag("span", record.outcome, class_="badge", data_state=record.outcome)
    yield "Code", record.code
    yield "Accepted", date_and_clock(record.at)
    yield "Model", record.model
    yield "Kind", f"{record.kind}, {'streamed' if record.is_stream else 'whole'}"
    yield "Router", record.router
    if record.client_request_id is not None:
        yield "Client's id", record.client_request_id
    if record.attempts:
        yield "Prompt", f"{count(record.attempts[-1].features.input_tokens)} tokens"
    if record.report is not None:
        report = record.report
        yield "Answer", f"{count(report.output_tokens)} tokens, {report.finish_reason}"
        yield "From cache", f"{count(report.prefill.cached_tokens)} tokens"
        yield "KV received", size(report.transfer.bytes)


def _section(title: str, *content: Content) -> Html:
    return tag("section", tag("h2", title), content)


# --- The course -------------------------------------------------------------------------------


def _course(spans: Sequence[Phase]) -> Html:
    total_s = max((span.ends_s for span in spans), default=0.0) or 1.0
    rows = [
        tag(
            "tr",
            tag("th", span.name, scope="row"),
            tag(
                "td",
                svg_bar(
                    (span.begins_s / total_s, span.ends_s / total_s),
                    kind="wide " + span.name.replace(" ", "-"),
                ),
            ),
            tag("td", seconds(span.begins_s), class_="number"),
            tag("td", seconds(span.ends_s - span.begins_s), class_="number"),
        )
        for span in spans
    ]
    head = ("Phase", "", "Begins", "Takes")
    return _table(head, rows, "Course of the request", kind="course")


# --- The attempts -----------------------------------------------------------------------------


def _attempt(record: DecisionRecord, number: int) -> Html:
    attempt = record.attempts[number - 1]
    candidates = [item for item in candidate_rows(record) if item.attempt == number]
    prefill = [_prefill_row(item) for item in candidates if item.role == "prefill"]
    decode = [_decode_row(item) for item in candidates if item.role == "decode"]
    title = "Candidates" if len(record.attempts) == 1 else f"Attempt {number}"
    omitted = omitted_words(attempt)
    return _section(
        title,
        tag("p", _basis(attempt), class_="quiet"),
        tag("h3", "For prefill"),
        _table(_PREFILL_LABELS, prefill, "Prefill candidates", numbers_from=2),
        tag(
            "p",
            "First token = queue + the longer of prefill and transfer + state tail + round trip.",
            class_="quiet",
        ),
        tag("h3", "For decode"),
        _table(_DECODE_LABELS, decode, "Decode candidates", numbers_from=2),
        tag("p", f"{omitted}.") if omitted else (),
        [_notes(record, number, topic) for topic in TITLES],
    )


def _notes(record: DecisionRecord, number: int, topic: Topic) -> Content:
    """What is to be said about one topic; nothing when there is nothing."""
    said = [note.text for note in notes(record) if (note.attempt, note.topic) == (number, topic)]
    if not said:
        return ()
    return (tag("h3", TITLES[topic]), tag("ul", [tag("li", text) for text in said]))


def _basis(attempt: Attempt) -> str:
    """What the decision was made from."""
    parameters = ", ".join(
        f"{name} = {json.dumps(value, default=str)}" for name, value in attempt.parameters.items()
    )
    policy = f"{attempt.policy} ({parameters})" if parameters else attempt.policy
    return (
        f"Decided by {policy}, reason {words(attempt.decision.reason)}, seed {attempt.seed}, on "
        f"view {count(attempt.view.epoch)}, {seconds(attempt.view_age_s)} old. "
        + ("It ended well." if attempt.ended_by == "ok" else f"Ended by {attempt.ended_by}.")
    )


def _prefill_row(item: CandidateRow) -> Html:
    terms = (
        _known(item.uncached_tokens, count),
        _known(item.transfer_bytes, size),
        _known(item.queue_s, seconds),
        _known(item.prefill_s, seconds),
        _known(item.transfer_s, seconds),
        _known(item.state_tail_s, seconds),
        _known(item.rtt_s, seconds),
        tag("strong", _known(item.ttft_s, seconds)),
    )
    return _candidate(item, _PREFILL_LABELS, terms)


def _decode_row(item: CandidateRow) -> Html:
    return _candidate(item, _DECODE_LABELS, (count(item.pending_requests), count(item.held_tokens)))


def _candidate(item: CandidateRow, labels: Sequence[str], terms: Iterable[Content]) -> Html:
    detail = tag("span", f" {item.detail}", class_="quiet") if item.detail else ()
    verdict = (tag("span", item.verdict, class_="badge", data_state=item.fate), detail)
    cells = [
        tag("td", tag("div", tag("strong", item.worker_id)), data_label=labels[0], class_="line"),
        tag("td", tag("div", verdict), data_label=labels[1], class_="line"),
    ]
    cells += [
        tag("td", tag("div", term), data_label=label, class_="number")
        for label, term in zip(labels[2:], terms, strict=True)
    ]
    return tag("tr", cells, class_=f"fate-{item.fate}")


def _known(value: _T | None, form: Callable[[_T], str]) -> str:
    return NOTHING if value is None else form(value)


def _table(
    labels: Sequence[str],
    rows: Sequence[Html],
    caption: str,
    *,
    numbers_from: int = 2,
    kind: str | None = None,
) -> Html:
    head = [
        tag("th", label, scope="col", class_="number" if index >= numbers_from else None)
        for index, label in enumerate(labels)
    ]
    empty = tag("tr", tag("td", "None was known.", colspan=len(labels)))
    return tag(
        "div",
        tag(
            "table",
            tag("caption", caption, class_="unseen"),
            tag("thead", tag("tr", head)),
            tag("tbody", rows or empty),
            class_=kind,
        ),
        class_="card",
    )
