"""Output text: whole characters, nothing of a stop string, nothing twice."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from controlplane.domain.byte_tokenizer import ASSISTANT, BEGIN, END_OF_TURN
from controlplane.tokenizing import ByteTokenizer
from workers.text import TextStream


def feed(tokens: Sequence[int], stop: Sequence[str] = ()) -> tuple[list[str], TextStream]:
    """What each token makes certain, and at last what the end does."""
    stream = TextStream(stop, ByteTokenizer().detokenizer())
    pieces = [stream.push(token) for token in tokens]
    return [*pieces, stream.finish()], stream


def naive(tokens: Sequence[int], stop: Sequence[str]) -> str:
    """All of the text again after each token, cut where a stop string is complete first."""
    text = ""
    for end in range(len(tokens) + 1):
        raw = bytes(token for token in tokens[:end] if token < BEGIN)
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        text = decoder.decode(raw, final=end == len(tokens))
        found = [at for word in stop if (at := text.find(word)) >= 0]
        if found:
            return text[: min(found)]
    return text


def test_each_character_comes_with_its_last_byte() -> None:
    """Half a character is never shown."""
    pieces, _ = feed("a\u00e9\u20ac\U0001f600".encode())

    assert pieces == ["a", "", "\u00e9", "", "", "\u20ac", "", "", "", "\U0001f600", ""]


def test_control_tokens_say_nothing() -> None:
    """They are no text, and end no character."""
    pieces, _ = feed([END_OF_TURN, 0xC3, ASSISTANT, 0xA9])

    assert "".join(pieces) == "\u00e9"


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"\xff", "\ufffd"),
        (b"\xc3", "\ufffd"),
        (b"a\x80b", "a\ufffdb"),
        (b"\xe2\x82a", "\ufffda"),
        (b"\xed\xa0\x80", "\ufffd\ufffd\ufffd"),
    ],
    ids=["no lead", "cut at the end", "no start", "interrupted", "a surrogate"],
)
def test_bytes_that_are_no_text_are_replaced(raw: bytes, text: str) -> None:
    """A model may put out anything; a client gets valid UTF-8."""
    assert "".join(feed(raw)[0]) == text


def test_without_stop_strings_nothing_is_held_back() -> None:
    """A token that makes a character makes text."""
    pieces, stream = feed(b"abc")

    assert pieces == ["a", "b", "c", ""]
    assert not stream.is_stopped


def test_a_stop_string_ends_the_text_before_it() -> None:
    """Across tokens, and nothing of it is shown."""
    pieces, stream = feed(b"one END two", ["END"])

    assert "".join(pieces) == "one "
    assert stream.is_stopped
    assert stream.push(ord("x")) == ""
    assert stream.finish() == ""


def test_what_could_begin_a_stop_string_waits() -> None:
    """And is shown as soon as it cannot be one any more."""
    pieces, _ = feed(b"aENxE", ["END"])

    assert pieces == ["a", "", "", "ENx", "", "E"]


def test_the_stop_string_that_comes_first_counts() -> None:
    """In the text, whatever their order in the list."""
    pieces, _ = feed(b"a two one", ["one", "two"])

    assert "".join(pieces) == "a "


def test_of_two_that_end_together_the_longer_one_begins_first() -> None:
    """So nothing of either is shown."""
    pieces, _ = feed(b"abcd", ["cd", "bcd"])

    assert "".join(pieces) == "a"


def test_a_stop_string_may_hold_any_character() -> None:
    """Its bytes come over several tokens."""
    pieces, _ = feed("ab\u20ac!".encode(), ["\u20ac"])

    assert "".join(pieces) == "ab"


@settings(deadline=None, max_examples=200)
@given(
    st.lists(
        st.sampled_from([*b"abAB", *"\u00e9\u20ac\U0001f600".encode(), 0xFF, 0xED, END_OF_TURN]),
        max_size=30,
    )
    | st.text("ab\u00e9\u20ac", max_size=12).map(lambda text: list(text.encode())),
    st.lists(st.text("abAB\u00e9\u20ac\ufffd", min_size=1, max_size=3), max_size=4),
)
@example(list(b"aab"), ["ab"])
@example(list(b"ababac"), ["abac"])
@example([0xE2, 0x82], ["\ufffd"])
def test_pieces_add_up_to_the_text_cut_at_its_first_stop(
    tokens: list[int], stop: list[str]
) -> None:
    """The same as decoding all of it and cutting then; nothing comes twice, nothing is lost."""
    pieces, _ = feed(tokens, stop)

    assert "".join(pieces) == naive(tokens, stop)


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.sampled_from(b"ab"), max_size=40),
    st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=3),
)
def test_what_is_held_back_is_shorter_than_the_longest_stop_string(
    tokens: list[int], stop: list[str]
) -> None:
    """So memory and delay are bounded by the request itself."""
    stream = TextStream(stop, ByteTokenizer().detokenizer())

    for token in tokens:
        stream.push(token)

        assert len(stream._held) < max(len(word) for word in stop)
