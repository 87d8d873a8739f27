"""The body of a request, read within bounds of size and time."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

from aiohttp import hdrs, web

from controlplane.config import LimitsConfig
from controlplane.edge.requests import ModelFacts
from controlplane.errors import MalformedRequest, RequestTooLarge

#: What a request needs beside its prompt: parameters, stop strings, the frame of messages.
_FRAME_BYTES: Final = 64 << 10


def body_limit(limits: LimitsConfig, models: Mapping[str, ModelFacts]) -> int:
    """
    Bytes that a body may have: what the longest prompt of any model can need, with slack. Pure.

    A larger one could only be refused after it was parsed, and parsing holds up everybody.
    """
    longest = max((facts.context_tokens_max for facts in models.values()), default=0)
    return min(limits.body_bytes_max, _FRAME_BYTES + longest * limits.body_bytes_per_token)


def check_length(request: web.Request, limit: int) -> None:
    """
    Refuse a body by its header, before a byte of it is read.

    Raises:
        RequestTooLarge: It says that it has more than `limit` bytes.
    """
    if request.content_length is not None and request.content_length > limit:
        raise _too_large(limit, f"{request.content_length}")


async def read_body(request: web.Request, *, limit: int, timeout_s: float) -> bytes:
    """
    The whole body.

    Args:
        request: Nothing of its body was read yet.
        limit: Bytes, > 0; a chunked body is counted while it comes.
        timeout_s: It must have arrived within this.

    Raises:
        RequestTooLarge: It has more than `limit` bytes.
        MalformedRequest: It is compressed, or did not arrive in time.
    """
    check_length(request, limit)
    if request.headers.get(hdrs.CONTENT_ENCODING, "identity") != "identity":
        raise MalformedRequest(
            "compressed request bodies are not accepted; send it without Content-Encoding",
            param="content-encoding",
        )
    if request.content.is_eof():
        return await _counted(request, limit)  # it is here: nothing is waited for
    try:
        async with asyncio.timeout(timeout_s):
            return await _counted(request, limit)
    except TimeoutError as error:
        raise MalformedRequest(f"the body did not arrive within {timeout_s:g} s") from error


async def _counted(request: web.Request, limit: int) -> bytes:
    parts: list[bytes] = []
    length = 0
    while part := await request.content.readany():
        length += len(part)
        if length > limit:
            raise _too_large(limit, f"more than {limit}")
        parts.append(part)
    return b"".join(parts)


def _too_large(limit: int, found: str) -> RequestTooLarge:
    return RequestTooLarge(
        f"the body has {found} bytes, the limit is {limit}: no prompt of a model here needs more"
    )
