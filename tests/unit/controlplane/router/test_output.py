"""Frames of one decode worker after the other become one output: what is given, what is kept."""

from __future__ import annotations

import pytest
from builders import an_output
from output_builders import (
    ALIVE,
    DONE,
    a_failure,
    a_telling,
    an_answer,
    report,
    text_of,
    the_end,
    told,
)

from controlplane.domain import lifecycle as life
from controlplane.domain.byte_tokenizer import WIDTH_BYTES
from controlplane.router.output import Output, Taken
from controlplane.wire import FrameKind, pack_output


def an_attempt(*, is_stream: bool = True, tells_tokens: bool = True) -> Output:
    """The output of a request whose first worker begins."""
    output = Output(an_output(is_stream=is_stream), WIDTH_BYTES)
    output.begin_attempt(tells_tokens=tells_tokens)
    return output


def test_there_is_nothing_at_first() -> None:
    output = Output(an_output(), WIDTH_BYTES)

    assert len(output) == 0
    assert list(output.tokens) == []
    assert not output.tells_tokens


def test_tokens_are_kept_and_their_bytes_given() -> None:
    output = an_attempt()

    taken = output.take([told(11), told(12, 13)])

    assert taken == Taken(text_of(11, 12, 13), has_progress=True)
    assert list(output.tokens) == [11, 12, 13]
    assert len(output) == 3


def test_tokens_that_make_nothing_certain_are_progress_all_the_same() -> None:
    output = an_attempt()

    taken = output.take([(FrameKind.OUTPUT, pack_output([11], b""))])

    assert taken == Taken(b"", has_progress=True)
    assert list(output.tokens) == [11]


def test_a_sign_of_life_is_none_of_progress() -> None:
    assert an_attempt().take([ALIVE]) == Taken()


def test_text_without_tokens_is_given_at_once() -> None:
    output = an_attempt(tells_tokens=False)

    taken = output.take([the_end(b"a"), the_end(b"b")])

    assert taken == Taken(b"ab", has_progress=True)
    assert len(output) == 0


@pytest.mark.parametrize(
    ("is_stream", "tells_tokens"), [(True, True), (False, True), (False, False)]
)
def test_what_could_come_twice_is_held_until_the_report(
    *, is_stream: bool, tells_tokens: bool
) -> None:
    """The end of a stream, and the whole of an answer that is not streamed."""
    output = an_attempt(is_stream=is_stream, tells_tokens=tells_tokens)

    before = output.take([the_end(b"a")])
    after = output.take([the_end(b"b"), report(3)])

    assert before == Taken(b"", has_progress=True)
    assert after.content == b"ab"
    assert isinstance(after.end, life.StreamEnded)
    assert after.report is not None
    assert after.report.output_tokens == 3


def test_the_end_of_a_stream_without_tokens_waits_for_its_report_too() -> None:
    """Its text does not: what breaks between the two must not look like a whole answer."""
    output = an_attempt(tells_tokens=False)

    before = output.take([the_end(b"data: 1\n\n"), the_end(b"data: 2\n\n" + DONE)])
    after = output.take([report(2)])

    assert before.content == b"data: 1\n\n"
    assert after.content == b"data: 2\n\n" + DONE


@pytest.mark.parametrize("cut", range(1, 6))
def test_another_worker_goes_on_where_the_first_stopped(cut: int) -> None:
    """However the frames fall: all bytes once."""
    tokens = (11, 12, 13, 14)
    output = an_attempt()
    first = output.take(a_telling(tokens)[:cut])
    known = len(output)

    output.begin_attempt(tells_tokens=True)
    second = output.take(a_telling(tokens, resumed=known))

    assert first.content + second.content == an_answer(tokens)
    assert list(output.tokens) == list(tokens)


def test_output_that_is_forgotten_begins_anew() -> None:
    output = an_attempt(is_stream=False)
    output.take([told(11), the_end(b"first")])

    output.forget()
    output.begin_attempt(tells_tokens=True)
    taken = output.take([told(21), the_end(b"second"), report(1)])

    assert taken.content == text_of(21) + b"second"
    assert list(output.tokens) == [21]


def test_nothing_after_an_end_is_looked_at() -> None:
    output = an_attempt()

    taken = output.take([told(11), the_end(), report(1), told(12), a_failure("internal_error")])

    assert taken.content == text_of(11) + DONE
    assert isinstance(taken.end, life.StreamEnded)
    assert list(output.tokens) == [11]


def test_what_came_before_a_failure_is_given() -> None:
    output = an_attempt()

    taken = output.take([told(11), a_failure("internal_error")])

    assert taken.content == text_of(11)
    assert taken.failure == "it was internal_error"
    assert isinstance(taken.end, life.DecodeWorkerLost)


@pytest.mark.parametrize(
    ("code", "before", "after"),
    [
        ("link_down", life.LinkDown, life.DecodeWorkerLost),
        ("link_stalled", life.LinkStalled, life.DecodeWorkerLost),
        ("chunk_corrupt", life.KvChunkCorrupt, life.DecodeWorkerLost),
        ("segment_stale", life.LeaseExpired, life.DecodeWorkerLost),
        ("segment_failed", life.SegmentFailed, life.DecodeWorkerLost),
        ("worker_refused", life.DecodeRefused, life.DecodeWorkerLost),
        ("worker_timeout", life.EngineStalled, life.EngineStalled),
        ("draining", life.DecodeLeft, life.DecodeLeft),
        ("deadline_exceeded", life.DeadlinePassed, life.DeadlinePassed),
        ("internal_error", life.DecodeWorkerLost, life.DecodeWorkerLost),
        ("never-heard-of", life.DecodeWorkerLost, life.DecodeWorkerLost),
    ],
)
def test_each_failure_is_an_event_of_its_own_until_there_is_output(
    code: str, before: type, after: type
) -> None:
    """News of the KV that come after tokens make no sense: such a worker has failed itself."""
    early, late = an_attempt(), an_attempt()
    late.take([told(11)])

    assert type(early.take([a_failure(code)]).end) is before
    assert type(late.take([a_failure(code)]).end) is after


def test_each_attempt_has_its_own_beginning() -> None:
    """The second worker has no output yet, whatever the first one told."""
    output = an_attempt()
    output.take([told(11)])
    output.begin_attempt(tells_tokens=True)

    assert isinstance(output.take([a_failure("link_down")]).end, life.LinkDown)
    output.begin_attempt(tells_tokens=True)
    assert output.take([report(1)]).failure.endswith("a report without an answer")


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        ((FrameKind.OUTPUT, b"no"), "a malformed output"),
        ((FrameKind.OUTPUT, b"\xff\xff\xff\xff"), "a malformed output"),
        (told(1, 1 << 16), "tokens that no vocabulary has"),
        ((FrameKind.REPORT, b"no json"), "a malformed report"),
        ((FrameKind.REPORT, b"{}"), "a malformed report"),
        ((FrameKind.FAILURE, b"no json"), "a malformed failure"),
    ],
)
def test_what_makes_no_sense_is_a_worker_that_is_lost(
    frame: tuple[FrameKind, bytes], said: str
) -> None:
    """What came before it is given, and kept."""
    output = an_attempt()

    taken = output.take([told(11), frame, told(12)])

    assert isinstance(taken.end, life.DecodeWorkerLost)
    assert said in taken.failure
    assert taken.content == text_of(11)
    assert list(output.tokens) == [11]


def test_a_report_without_an_answer_is_none() -> None:
    taken = an_attempt().take([report(0)])

    assert isinstance(taken.end, life.DecodeWorkerLost)
    assert "without an answer" in taken.failure
    assert taken.report is None
