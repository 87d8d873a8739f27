"""Handles: small, of one size, and unreadable when they are not whole."""

from __future__ import annotations

import pytest

from workers.engines.remote.handle import handle_group, pack_handle, unpack_handle

PARAMETERS = {
    "do_remote_prefill": True,
    "remote_block_ids": [[12, 13, 14], [7]],
    "remote_host": "10.0.0.5",
    "a_field_of_next_year": {"nested": [None, 1.5]},
}


def test_what_is_packed_comes_out_unread_and_unchanged() -> None:
    data = pack_handle(PARAMETERS, size_bytes=512)

    assert len(data) == 512
    assert unpack_handle(data) == PARAMETERS


def test_the_blocks_of_the_longest_context_fit_for_several_groups() -> None:
    group = handle_group(context_tokens_max=131_072, block_tokens=16)
    # The worst that compresses: ids in no order.
    ids = [(number * 7919) % 20_000 for number in range(8_192)]

    pack_handle({"remote_block_ids": [ids, [1], [2]]}, size_bytes=group.fixed_bytes)


def test_what_does_not_fit_is_refused_with_its_size() -> None:
    with pytest.raises(ValueError, match=r"take \d+ bytes, more than the 28 of a handle"):
        pack_handle(PARAMETERS, size_bytes=32)


@pytest.mark.parametrize(
    "data",
    [b"", bytes(64), b"\0\0\0\x08garbage!", pack_handle(PARAMETERS, size_bytes=512)[:40]],
    ids=["empty", "zeros", "garbage", "cut short"],
)
def test_what_is_no_handle_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a handle"):
        unpack_handle(data)
