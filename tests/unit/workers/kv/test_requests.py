from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from kv_builders import a_fetch_request, a_location, a_manifest, identity_of, property_settings

from workers.kv.frames import WireError
from workers.kv.layout import CHUNKS_MAX
from workers.kv.requests import (
    PREFACE_BYTES,
    RANGES_MAX,
    REQUEST_BYTES_MAX,
    FetchRequest,
    ReleaseRequest,
    RenewRequest,
    ReportRequest,
    Request,
    expand_ranges,
    pack_request,
    parse_preface,
    parse_request,
    to_ranges,
)

IDENTITY = identity_of(a_location(1))


@pytest.mark.parametrize(
    "request_",
    [
        a_fetch_request(a_location(1)),
        ReportRequest(**IDENTITY),
        RenewRequest(**IDENTITY, wants_answer=False),
        ReleaseRequest(**IDENTITY),
    ],
    ids=["fetch", "report", "renew", "release"],
)
def test_a_request_comes_back_as_it_was(request_: Request) -> None:
    packed = pack_request(request_)

    assert parse_preface(packed[:PREFACE_BYTES]) == len(packed) - PREFACE_BYTES
    assert parse_request(packed[PREFACE_BYTES:]) == request_


def test_a_preface_has_exactly_the_documented_bytes() -> None:
    packed = pack_request(ReportRequest(**IDENTITY))

    length = len(packed) - PREFACE_BYTES
    assert packed[:PREFACE_BYTES] == b"PFKV\1\0\0\0" + length.to_bytes(4, "little")


def test_fields_from_the_future_are_ignored() -> None:
    body = json.dumps(IDENTITY | {"op": "report", "colour": "blue"}).encode()

    assert parse_request(body) == ReportRequest(**IDENTITY)


@property_settings
@given(st.binary(max_size=300))
@example(b"[" * 60_000)
@example(b"\xff\xfe")
@example(b'{"op": "fetch"}')
@example(b'{"op": ' + b"9" * 5000 + b"}")
@example(b"null")
def test_an_arbitrary_body_is_a_request_or_a_wire_error(body: bytes) -> None:
    try:
        request = parse_request(body)
    except WireError:
        return
    assert isinstance(request, Request)


@property_settings
@given(
    st.fixed_dictionaries(
        {"op": st.sampled_from(["fetch", "report", "renew", "release", "drop"])},
        optional={
            name: st.one_of(
                st.none(), st.integers(), st.floats(), st.text(max_size=5), st.just(value)
            )
            for name, value in a_fetch_request(a_location(1)).model_dump().items()
            if name != "op"
        },
    )
)
def test_arbitrary_fields_are_a_request_or_a_wire_error(fields: dict[str, object]) -> None:
    try:
        request = parse_request(json.dumps(fields).encode())
    except WireError:
        return
    assert isinstance(request, Request)


@property_settings
@given(st.binary(max_size=2 * PREFACE_BYTES))
def test_an_arbitrary_preface_is_a_length_within_bounds_or_a_wire_error(data: bytes) -> None:
    try:
        length = parse_preface(data)
    except WireError:
        return
    assert 0 <= length <= REQUEST_BYTES_MAX


def test_an_error_does_not_repeat_what_the_peer_sent() -> None:
    with pytest.raises(WireError) as caught:
        parse_request(b'{"op": "canary"}')

    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    "bad",
    [[0, 1, 0], [-1, 1, 1], [0, 10**30, 1], [0, CHUNKS_MAX + 1, 1], [0, 1]],
    ids=["no step", "negative", "astronomic", "beyond any plan", "two numbers"],
)
def test_a_range_that_cannot_be_is_refused(bad: list[int]) -> None:
    fields = a_fetch_request(a_location(1)).model_dump() | {"ranges": [bad]}

    with pytest.raises(WireError):
        parse_request(json.dumps(fields).encode())


def test_too_many_ranges_are_refused() -> None:
    fields = a_fetch_request(a_location(1)).model_dump() | {"ranges": [[0, 1, 1]] * 1025}

    with pytest.raises(WireError):
        parse_request(json.dumps(fields).encode())


def test_a_request_over_the_bound_is_not_sent() -> None:
    huge = FetchRequest.model_construct(
        **IDENTITY, destination="east", ranges=((0, 1, 1),) * 20_000
    )
    with pytest.raises(ValueError, match="is over"):
        pack_request(huge)


def test_the_most_ranges_there_may_be_fit_a_request() -> None:
    widest = (CHUNKS_MAX, CHUNKS_MAX, CHUNKS_MAX)

    packed = pack_request(a_fetch_request(a_location(1), ranges=(widest,) * RANGES_MAX))

    assert len(packed) < REQUEST_BYTES_MAX


@property_settings
@given(st.sets(st.integers(0, 500)))
def test_ranges_stand_for_exactly_their_indexes(indexes: set[int]) -> None:
    asked = sorted(indexes)

    assert expand_ranges(to_ranges(asked), chunk_count=501) == asked


@property_settings
@given(st.integers(0, 50), st.integers(1, 100_000), st.integers(1, 64))
def test_a_stripe_is_one_range(first: int, count: int, step: int) -> None:
    stripe = range(first, first + count * step, step)

    assert len(to_ranges(stripe)) == 1


def test_a_chunk_beyond_the_plan_is_refused() -> None:
    with pytest.raises(WireError, match="there is no chunk 5"):
        expand_ranges([(5, 6, 1)], chunk_count=5)


def test_a_fetch_of_more_chunks_than_there_are_is_refused() -> None:
    with pytest.raises(WireError, match="more than the 5"):
        expand_ranges([(0, 5, 1), (0, 1, 1)], chunk_count=5)


def test_an_empty_range_asks_for_nothing() -> None:
    assert expand_ranges([(3, 3, 1), (9, 2, 1)], chunk_count=5) == []


def test_a_large_stripe_is_a_small_request() -> None:
    location = a_location(1, a_manifest(131_072, block_tokens=1))

    packed = pack_request(a_fetch_request(location, ranges=((1, 131_073, 2),)))

    assert len(packed) < 400
