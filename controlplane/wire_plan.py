"""The plan as the store keeps it: JSON of `domain/plan.py`, checked when it is read."""

from __future__ import annotations

from math import isfinite
from typing import Final

from pydantic import TypeAdapter, ValidationError

from controlplane.domain.plan import NEVER_TOKENS, Plan

_ADAPTER: Final = TypeAdapter(Plan)


def encode_plan(plan: Plan) -> bytes:
    """The plan as JSON."""
    return _ADAPTER.dump_json(plan)


def decode_plan(body: bytes) -> Plan:
    """
    The plan of a published document.

    Raises:
        ValueError: It is none, or a threshold is not in 0 to `NEVER_TOKENS`.
    """
    try:
        plan = _ADAPTER.validate_json(body)
    except ValidationError as error:
        raise ValueError(f"no plan: {error.errors(include_url=False)[0]['msg']}") from error
    for link, tokens in plan.threshold_tokens.items():
        if not (isfinite(tokens) and 0 <= tokens <= NEVER_TOKENS):
            raise ValueError(
                f"threshold_tokens of {link} is {tokens}, expected 0 to {NEVER_TOKENS:g}"
            )
    return plan
