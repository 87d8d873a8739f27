from __future__ import annotations

import sys
from typing import Any

import pytest

from controlplane.domain.tokens import TokenIds, WidthBytes, width_for


@pytest.mark.parametrize(
    ("vocabulary_size", "width_bytes"),
    [
        pytest.param(1, 2, id="smallest"),
        pytest.param(1 << 16, 2, id="largest that fits two bytes"),
        pytest.param((1 << 16) + 1, 4, id="first that needs four"),
        pytest.param(1 << 20, 4, id="large"),
    ],
)
def test_width_follows_the_vocabulary(vocabulary_size: int, width_bytes: int) -> None:
    assert width_for(vocabulary_size) == width_bytes


@pytest.mark.parametrize(
    ("width_bytes", "data"),
    [
        pytest.param(2, b"\x01\x00\xff\xff", id="two bytes"),
        pytest.param(4, b"\x01\x00\x00\x00\xff\xff\x00\x00", id="four bytes"),
    ],
)
def test_ids_are_packed_little_endian(width_bytes: WidthBytes, data: bytes) -> None:
    tokens = TokenIds.from_ints([1, 0xFFFF], width_bytes)

    assert tokens.data == data
    assert tokens.to_list() == [1, 0xFFFF]


def test_ids_keep_their_byte_order_on_a_machine_of_the_other_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = TokenIds.from_ints([0x0102], 2).data
    monkeypatch.setattr(sys, "byteorder", "big" if sys.byteorder == "little" else "little")

    tokens = TokenIds.from_ints([0x0102], 2)

    assert tokens.data == here[::-1]  # swapped, as that machine's own order needs it
    assert tokens.to_list() == [0x0102]


@pytest.mark.parametrize(
    ("ids", "width_bytes", "error"),
    [
        pytest.param([-1], 2, OverflowError, id="negative"),
        pytest.param([-1], 4, OverflowError, id="negative in four bytes"),
        pytest.param([1 << 16], 2, OverflowError, id="too large for two bytes"),
        pytest.param([1 << 32], 4, OverflowError, id="too large for four bytes"),
        pytest.param([1 << 80], 4, OverflowError, id="too large for the machine"),
        pytest.param([1.0], 2, TypeError, id="a float"),
        pytest.param(["1"], 2, TypeError, id="a string"),
        pytest.param("ab", 2, TypeError, id="text"),
    ],
)
def test_ids_that_do_not_fit_are_refused(
    ids: Any, width_bytes: WidthBytes, error: type[Exception]
) -> None:
    with pytest.raises(error):
        TokenIds.from_ints(ids, width_bytes)


@pytest.mark.parametrize("kind", [list, tuple, iter, bytes, bytearray])
def test_ids_come_from_any_iterable_of_integers(kind: Any) -> None:
    tokens = TokenIds.from_ints(kind([7, 8, 9, 10]), 2)

    assert tokens.to_list() == [7, 8, 9, 10]


@pytest.mark.parametrize(("size", "width_bytes"), [(1, 2), (3, 2), (2, 4), (7, 4)])
def test_a_part_of_a_token_is_refused(size: int, width_bytes: WidthBytes) -> None:
    with pytest.raises(ValueError, match=f"{size} bytes are not a whole number of {width_bytes}"):
        TokenIds(bytes(size), width_bytes)


@pytest.mark.parametrize("width_bytes", [2, 4])
def test_length_counts_tokens_and_not_bytes(width_bytes: WidthBytes) -> None:
    assert len(TokenIds.from_ints([1, 2, 3], width_bytes)) == 3


@pytest.mark.parametrize("width_bytes", [2, 4])
@pytest.mark.parametrize(
    ("count", "expected"),
    [
        pytest.param(0, [], id="none"),
        pytest.param(2, [1, 2], id="some"),
        pytest.param(3, [1, 2, 3], id="all"),
        pytest.param(9, [1, 2, 3], id="more than there are"),
    ],
)
def test_head_is_the_first_tokens(width_bytes: WidthBytes, count: int, expected: list[int]) -> None:
    tokens = TokenIds.from_ints([1, 2, 3], width_bytes)

    head = tokens.head(count)

    assert head == TokenIds.from_ints(expected, width_bytes)


def test_head_of_a_negative_count_is_refused() -> None:
    tokens = TokenIds.from_ints([1, 2, 3], 2)

    with pytest.raises(ValueError, match="-1"):
        tokens.head(-1)


@pytest.mark.parametrize(
    ("count", "expected"), [(0, []), (1, [3]), (2, [2, 3]), (3, [1, 2, 3]), (4, [1, 2, 3])]
)
@pytest.mark.parametrize("width_bytes", [2, 4])
def test_tail_is_the_last_tokens(width_bytes: WidthBytes, count: int, expected: list[int]) -> None:
    tokens = TokenIds.from_ints([1, 2, 3], width_bytes)

    tail = tokens.tail(count)

    assert tail == TokenIds.from_ints(expected, width_bytes)


def test_tail_of_a_negative_count_is_refused() -> None:
    tokens = TokenIds.from_ints([1, 2, 3], 2)

    with pytest.raises(ValueError, match="-1"):
        tokens.tail(-1)
