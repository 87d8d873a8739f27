"""What the two requests of vLLM's NixlConnector (pull) must be; written from the protocol alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

#: The prefill leg's parameters: two flags, and four fields that are null or left out.
_NULLS: Final = ("remote_engine_id", "remote_block_ids", "remote_host", "remote_port")
_ASKED: Final = {"do_remote_decode": True, "do_remote_prefill": False}
#: What a router may change of what prefill answered: the address, for other networks.
_REWRITABLE: Final = frozenset({"remote_host"})


def prefill_faults(body: Mapping[str, Any]) -> tuple[str, ...]:
    """Say what is wrong with a prefill request, field by field; empty when nothing is."""
    faults = []
    if body.get("max_tokens") != 1:
        faults.append(f"max_tokens is {body.get('max_tokens')!r}, expected 1")
    if body.get("max_completion_tokens", 1) != 1:
        faults.append("max_completion_tokens must be 1 when it is there")
    if body.get("min_tokens", 0) not in {0, 1}:
        faults.append("min_tokens must be left out, or at most max_tokens (1)")
    if body.get("stream", False) is not False:
        faults.append("stream must be false")
    if "stream_options" in body:
        faults.append("stream_options must be left out without stream")
    return (*faults, *_asked_faults(body.get("kv_transfer_params")))


def _asked_faults(params: object) -> list[str]:
    if not isinstance(params, Mapping):
        return ["kv_transfer_params is missing, expected an object"]
    faults = [
        f"kv_transfer_params.{name} is {params.get(name)!r}, expected {value}"
        for name, value in _ASKED.items()
        if params.get(name) is not value
    ]
    faults += [
        f"kv_transfer_params.{name} must be null" for name in _NULLS if params.get(name) is not None
    ]
    unknown = sorted(set(params) - set(_ASKED) - set(_NULLS))
    return faults + [f"kv_transfer_params.{name} is unknown to prefill" for name in unknown]


def decode_faults(
    params: object,
    answered: Mapping[str, Any],
    *,
    prompt: list[int],
    prefilled: list[int],
    age_s: float,
    lease_s: float,
    uses: int,
) -> tuple[str, ...]:
    """
    Say what is wrong with a decode request; empty when nothing is.

    Args:
        params: Its `kv_transfer_params`.
        answered: What prefill answered, with fields that no router knows.
        prompt: Its token ids.
        prefilled: Those of the prefill request.
        age_s: Seconds since prefill answered.
        lease_s: Seconds for which prefill keeps the blocks.
        uses: How often these blocks were pulled before.
    """
    if not isinstance(params, Mapping):
        return ("kv_transfer_params is missing, expected what prefill answered",)
    faults = [
        f"kv_transfer_params.{name} was dropped, expected {answered[name]!r}"
        for name in answered
        if name not in params
    ]
    faults += [f"kv_transfer_params.{name} was added" for name in params if name not in answered]
    faults += [
        f"kv_transfer_params.{name} is {params[name]!r}, expected {answered[name]!r}"
        for name in answered
        if name in params and name not in _REWRITABLE and params[name] != answered[name]
    ]
    if prompt != prefilled:
        faults.append("the prompt's tokens differ from those that were prefilled")
    if age_s > lease_s:
        faults.append(f"the lease of {lease_s} s is over since {age_s - lease_s:.3f} s")
    if uses:
        faults.append("the blocks were pulled before; each answer of prefill is good for one")
    return tuple(faults)
