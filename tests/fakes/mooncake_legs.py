"""What the two requests of vLLM's MooncakeConnector must be; written from the protocol alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

_PREFILL: Final = frozenset({"do_remote_decode", "do_remote_prefill", "transfer_id"})
_DECODE: Final = _PREFILL | {"remote_bootstrap_addr", "remote_engine_id"}


def mooncake_faults(body: Mapping[str, Any], rank: str | None) -> tuple[str, ...]:
    """
    Say what is wrong with a request of either leg, field by field; empty when nothing is.

    Args:
        body: Of the request.
        rank: Its header `X-data-parallel-rank`.
    """
    params = body["kv_transfer_params"]
    flags = params.get("do_remote_decode"), params.get("do_remote_prefill")
    faults = (
        [] if str(params["transfer_id"]).startswith("xfer-") else ["transfer_id begins otherwise"]
    )
    if flags == (True, False):
        faults += _prefill_faults(body, rank)
        expected = _PREFILL
    elif flags == (False, True):
        if not str(params.get("remote_bootstrap_addr")).startswith("http://"):
            faults.append("remote_bootstrap_addr is no URL")
        if not params.get("remote_engine_id"):
            faults.append("remote_engine_id is empty")
        expected = _DECODE
    else:
        return (f"do_remote_decode and do_remote_prefill are {flags}",)
    faults += [f"{name} is missing" for name in sorted(expected - set(params))]
    return (*faults, *(f"{name} is unknown" for name in sorted(set(params) - expected)))


def _prefill_faults(body: Mapping[str, Any], rank: str | None) -> list[str]:
    faults = []
    if body.get("max_tokens") != 1:
        faults.append(f"max_tokens is {body.get('max_tokens')!r}, expected 1")
    if body.get("stream", False) is not False or "stream_options" in body:
        faults.append("a prefill is not streamed")
    if rank is None or not rank.isdecimal():
        faults.append(f"X-data-parallel-rank is {rank!r}")
    return faults
