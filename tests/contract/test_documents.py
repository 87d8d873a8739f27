"""Published documents and blames: what all routers are told."""

from __future__ import annotations

import asyncio

import pytest

from controlplane.config import StoreConfig
from controlplane.errors import MalformedRequest, RequestTooLarge
from controlplane.store.api import Blamed, Document, Published, StateStore


async def test_there_is_no_document_before_the_first(store: StateStore) -> None:
    assert await store.document("plan") is None


async def test_a_published_document_is_read_as_it_was_written(store: StateStore) -> None:
    body = '{"threshold_tokens": 512, "name": "ü"}'.encode()

    published = await store.publish("plan", body)

    assert published == Document(version=1, body=body)
    assert await store.document("plan") == published
    assert await store.document("policy") is None


async def test_versions_count_up(store: StateStore) -> None:
    versions = [await store.publish("plan", b"%d" % number) for number in range(3)]

    assert [each.version for each in versions if each] == [1, 2, 3]
    assert await store.document("plan") == Document(version=3, body=b"2")


async def test_the_expected_version_is_replaced(store: StateStore) -> None:
    first = await store.publish("policy", b"1", expected_version=0)
    second = await store.publish("policy", b"2", expected_version=1)

    assert first == Document(version=1, body=b"1")
    assert second == Document(version=2, body=b"2")


@pytest.mark.parametrize("expected_version", [0, 1, 3, 99])
async def test_another_version_is_left_as_it_is(store: StateStore, expected_version: int) -> None:
    await store.publish("policy", b"1")
    await store.publish("policy", b"2")

    refused = await store.publish("policy", b"9", expected_version=expected_version)

    assert refused is None
    assert await store.document("policy") == Document(version=2, body=b"2")


async def test_publishing_again_what_was_published_is_no_new_version(store: StateStore) -> None:
    """The first call may have been done and timed out."""
    cursor = (await store.snapshot()).cursor
    once = await store.publish("plan", b"1", expected_version=0)
    again = [await store.publish("plan", b"1", expected_version=each) for each in (0, 1, None)]

    assert again == [once] * 3
    _, events = await store.events(cursor, wait_s=0)
    assert list(events) == [Published("plan", 1)]


async def test_of_many_publishers_one_replaces_a_version(store: StateStore) -> None:
    answers = await asyncio.gather(
        *(store.publish("plan", b"%d" % number, expected_version=0) for number in range(20))
    )

    won = [answer for answer in answers if answer is not None]
    assert won == [await store.document("plan")]


async def test_a_document_that_is_too_large_is_refused(
    store: StateStore, config: StoreConfig
) -> None:
    largest = b" " * (config.document_bytes_max - 1) + b"1"
    await store.publish("plan", largest)

    with pytest.raises(RequestTooLarge):
        await store.publish("plan", b" " + largest)

    assert await store.document("plan") == Document(version=1, body=largest)


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"NaN1"])
async def test_a_document_that_is_no_json_is_refused(store: StateStore, body: bytes) -> None:
    with pytest.raises(MalformedRequest):
        await store.publish("plan", body)


async def test_all_routers_are_told_of_a_new_version(store: StateStore) -> None:
    cursor = (await store.snapshot()).cursor
    await store.publish("plan", b"1")
    await store.publish("policy", b"1")
    await store.publish("plan", b"2")

    _, events = await store.events(cursor, wait_s=0)

    assert list(events) == [Published("plan", 1), Published("policy", 1), Published("plan", 2)]


async def test_all_routers_are_told_of_a_blame(store: StateStore) -> None:
    cursor = (await store.snapshot()).cursor
    blamed = Blamed(fingerprint="f00d", worker_id="p1", incarnation="one")

    await store.blame(blamed)

    _, events = await store.events(cursor, wait_s=0)
    assert list(events) == [blamed]
