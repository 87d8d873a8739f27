"""Fingerprints: equal for equal fields, a name on the wire, and readable where they differ."""

from __future__ import annotations

from pydantic import TypeAdapter

from controlplane.domain.fingerprint import fingerprint_difference, fingerprint_of
from controlplane.wire_types import Name

FIELDS = {"vllm": "0.32.0", "block": "128", "model": "org/tiny model"}


def test_fields_can_be_read_in_the_name() -> None:
    assert fingerprint_of(FIELDS) == "vllm:0.32.0/block:128/model:org-tiny-model"


def test_what_is_too_long_for_a_name_is_one_anyway() -> None:
    long = fingerprint_of({**FIELDS, "model": "m" * 500})
    other = fingerprint_of({**FIELDS, "model": "m" * 499})

    TypeAdapter(Name).validate_python(long)
    assert long != other
    assert fingerprint_difference(long, other).startswith("model is ")


def test_many_long_fields_are_a_digest() -> None:
    many = {f"field-number-{number}": "x" * 40 for number in range(30)}

    TypeAdapter(Name).validate_python(fingerprint_of(many))


def test_a_difference_names_the_first_field_that_differs() -> None:
    other = fingerprint_of({**FIELDS, "block": "256"})

    said = fingerprint_difference(fingerprint_of(FIELDS), other)

    assert said == "block is 128 here and 256 there"


def test_a_fingerprint_of_another_kind_is_told_whole() -> None:
    assert fingerprint_difference("a1b2", "c3d4") == "a1b2 here and c3d4 there"
