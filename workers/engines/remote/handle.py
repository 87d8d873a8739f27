"""
What stands in for KV on our path when an engine moves its KV itself: a handle that its peer can use.

A handle is the connector's own parameters, which are never read here, in one piece of a fixed size:
so leases, generations, aborts, link probes and deadlines of the KV path hold for it as for KV.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Any, Final

from controlplane.wire import KvGroup

#: Fields of a handle: the life of the server that prefilled, and what its connector needs.
ORIGIN: Final = "origin"
PARAMETERS: Final = "parameters"

_LENGTH_BYTES: Final = 4
#: Fixed part, and what an id of a block takes, compressed, for each block of the longest context.
_FIXED_BYTES: Final = 4096
_BLOCK_BYTES: Final = 4
#: Of what is unpacked; a handle of 131,072 blocks in one group is 1 MB.
_UNPACKED_BYTES_MAX: Final = 16 << 20


def handle_group(*, context_tokens_max: int, block_tokens: int) -> KvGroup:
    """The one group that a segment with a handle has: the same size for equal contexts and blocks."""
    blocks = -(-context_tokens_max // block_tokens)
    return KvGroup(
        name="state", bytes_per_token=0, fixed_bytes=_FIXED_BYTES + _BLOCK_BYTES * blocks
    )


def pack_handle(content: Mapping[str, Any], *, size_bytes: int) -> bytes:
    """
    Compressed JSON behind its length, filled up with zeros.

    Args:
        content: What the other side needs.
        size_bytes: Of the result.

    Raises:
        ValueError: It does not fit.
    """
    packed = zlib.compress(json.dumps(content, separators=(",", ":")).encode())
    if _LENGTH_BYTES + len(packed) > size_bytes:
        raise ValueError(
            f"the connector's parameters take {len(packed)} bytes, more than the "
            f"{size_bytes - _LENGTH_BYTES} of a handle"
        )
    return (len(packed).to_bytes(_LENGTH_BYTES, "big") + packed).ljust(size_bytes, b"\0")


def unpack_handle(data: bytes) -> dict[str, Any]:
    """
    The content of a handle.

    Raises:
        ValueError: It is none.
    """
    length = int.from_bytes(data[:_LENGTH_BYTES], "big")
    packed = data[_LENGTH_BYTES : _LENGTH_BYTES + length]
    try:
        text = zlib.decompressobj().decompress(packed, _UNPACKED_BYTES_MAX)
        content = json.loads(text)
    except (zlib.error, ValueError) as error:
        raise ValueError(f"not a handle: {error}") from error
    if len(packed) != length or not isinstance(content, dict):
        raise ValueError("not a handle: cut short, or no object")
    return content
