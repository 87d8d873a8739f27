"""Fingerprints that people can read: what KV depends on, field by field."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Final

#: Of names on the wire.
_NAME_MAX: Final = 128
_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9._-]+")
_DIGEST_DIGITS: Final = 12


def fingerprint_of(fields: Mapping[str, str]) -> str:
    """
    One name for some fields, such as `vllm:0.32.0/connector:nixl/block:128/model:tiny`.

    Args:
        fields: By name, in the order in which a difference should be told. Values that make the name
            too long become digests, the longest first.
    """
    said = dict(fields)
    while len(name := _named(said)) > _NAME_MAX:
        longest = max(said, key=lambda key: len(said[key]))
        if len(said[longest]) <= _DIGEST_DIGITS:
            return hashlib.sha256(name.encode()).hexdigest()
        said[longest] = hashlib.sha256(said[longest].encode()).hexdigest()[:_DIGEST_DIGITS]
    return name


def fingerprint_difference(mine: str, other: str) -> str:
    """
    What two fingerprints differ in, such as `block is 128 here and 256 there`.

    Args:
        mine: Of this worker.
        other: Of the other one; of any engine.
    """
    ours, theirs = _fields(mine), _fields(other)
    for name, value in ours.items():
        if value and theirs.get(name) != value:
            return f"{name} is {value} here and {theirs.get(name, 'not given')} there"
    return f"{mine} here and {other} there"


def _named(fields: Mapping[str, str]) -> str:
    return "/".join(f"{key}:{_NOT_IN_NAMES.sub('-', value)}" for key, value in fields.items())


def _fields(fingerprint: str) -> dict[str, str]:
    found = (part.partition(":") for part in fingerprint.split("/"))
    return {name: value for name, _, value in found}
