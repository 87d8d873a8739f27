"""What `prfaas explain` prints: the sentence, the candidates, the course."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from controlplane.admin.explain import CandidateRow
from controlplane.admin.notes import TITLES, Note
from controlplane.admin.phases import Phase
from controlplane.admin.text import NOTHING, count, seconds, size

#: Width of output that goes to a file or another program.
_WIDTH: Final = 140

#: Below this a table has no room for workers, verdicts and all terms.
_NARROW: Final = 120

_BAR: Final = 36

_STYLES: Final = {"chosen": "bold green", "rejected": "yellow", "lost": "dim"}

_T = TypeVar("_T", int, float)


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """The part of an answer that is shown."""

    request_id: str
    source: str
    explanation: str
    candidates: tuple[CandidateRow, ...]
    phases: tuple[Phase, ...]
    #: Not from routers before 0.4.
    notes: tuple[Note, ...] = ()


def plain(text: str) -> str:
    """Text without control characters: what a client sent must not steer a terminal."""
    return "".join(char if char.isprintable() else "?" for char in text)


def _known(value: _T | None, form: Callable[[_T], str]) -> str:
    return NOTHING if value is None else form(value)


_PREFILL_TERMS: Final[Mapping[str, Callable[[CandidateRow], str]]] = {
    "uncached": lambda row: _known(row.uncached_tokens, count),
    "bytes": lambda row: _known(row.transfer_bytes, size),
    "queue": lambda row: _known(row.queue_s, seconds),
    "prefill": lambda row: _known(row.prefill_s, seconds),
    "transfer": lambda row: _known(row.transfer_s, seconds),
    "tail": lambda row: _known(row.state_tail_s, seconds),
    "rtt": lambda row: _known(row.rtt_s, seconds),
    "ttft": lambda row: _known(row.ttft_s, seconds),
}

_DECODE_TERMS: Final[Mapping[str, Callable[[CandidateRow], str]]] = {
    "requests": lambda row: count(row.pending_requests),
    "tokens held": lambda row: count(row.held_tokens),
}


def output_console() -> Console:
    """Standard output: a terminal as wide as it is, anything else wide enough for the tables."""
    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else _WIDTH, highlight=False)


def print_explained(explained: Explained, console: Console) -> None:
    """Print for people."""
    console.print(Text(plain(explained.explanation)))
    attempts = sorted({row.attempt for row in explained.candidates})
    for attempt in attempts:
        rows = [row for row in explained.candidates if row.attempt == attempt]
        suffix = f", attempt {attempt}" if len(attempts) > 1 else ""
        for role, terms in (("prefill", _PREFILL_TERMS), ("decode", _DECODE_TERMS)):
            title = f"{role.capitalize()} candidates{suffix}"
            found = [row for row in rows if row.role == role]
            if console.width < _NARROW:
                console.print(Text(f"\n{title}", "bold"))
                console.print(*map(_lines, found), sep="")
            else:
                console.print(_candidates(title, found, terms))
        for topic, topic_title in TITLES.items():
            said = [
                note.text
                for note in explained.notes
                if (note.attempt, note.topic) == (attempt, topic)
            ]
            if said:
                console.print(Text(f"{topic_title}{suffix}", "bold"))
                console.print(*[Padding(Text(plain(text)), (0, 0, 0, 1)) for text in said], "")
    if explained.phases:
        console.print(_course(explained.phases, is_ascii=console.options.ascii_only))


def _candidates(
    title: str,
    rows: Sequence[CandidateRow],
    terms: Mapping[str, Callable[[CandidateRow], str]],
) -> Table:
    """One role's candidates, a row each."""
    table = _table(title, "worker", "verdict")
    for label in terms:
        table.add_column(label, justify="right", no_wrap=True)
    for row in rows:
        values = [term(row) for term in terms.values()]
        style = _STYLES[row.fate]
        table.add_row(Text(plain(row.worker_id)), Text(_verdict(row)), *values, style=style)
    return table


def _lines(row: CandidateRow) -> Group:
    """One candidate where a table has no room: the terms as the sum that they are."""
    head = Text(f"{plain(row.worker_id)}: {_verdict(row)}", _STYLES[row.fate])
    if row.role == "decode":
        terms = f"{count(row.pending_requests)} requests, {count(row.held_tokens)} tokens held"
    elif row.ttft_s is None:
        return Group(Padding(head, (0, 0, 0, 1)))
    else:
        said = {name: term(row) for name, term in _PREFILL_TERMS.items()}
        terms = (
            f"ttft {said['ttft']} = queue {said['queue']} + max(prefill {said['prefill']}, "
            f"transfer {said['transfer']}) + tail {said['tail']} + rtt {said['rtt']}; "
            f"{said['uncached']} uncached tokens, {said['bytes']}"
        )
    return Group(Padding(head, (0, 0, 0, 1)), Padding(Text(terms), (0, 0, 0, 5)))


def _verdict(row: CandidateRow) -> str:
    return plain(f"{row.verdict}: {row.detail}" if row.detail else row.verdict)


def _course(phases: Sequence[Phase], *, is_ascii: bool) -> Table:
    """Bars of all phases on one axis."""
    mark, rest = ("#", ".") if is_ascii else ("█", "·")
    total_s = max(phase.ends_s for phase in phases) or 1.0
    table = _table("Course", "phase", "")
    table.add_column("begins", justify="right", no_wrap=True)
    table.add_column("takes", justify="right", no_wrap=True)
    for phase in phases:
        begin = min(_BAR - 1, int(_BAR * phase.begins_s / total_s))
        width = max(1, min(_BAR - begin, round(_BAR * (phase.ends_s - phase.begins_s) / total_s)))
        bar = Text(rest * begin, "dim") + Text(mark * width, "blue")
        bar.append(rest * (_BAR - begin - width), "dim")
        table.add_row(
            Text(plain(phase.name)),
            bar,
            seconds(phase.begins_s),
            seconds(phase.ends_s - phase.begins_s),
        )
    return table


def _table(title: str, *labels: str) -> Table:
    table = Table(
        title=title, title_justify="left", box=SIMPLE_HEAD, title_style="bold", padding=(0, 1, 0, 0)
    )
    for label in labels:
        table.add_column(label, overflow="fold")
    return table
