"""Decision records and KV locations."""

from __future__ import annotations

import pytest
from store_builders import TTL_S, Advance, a_location

from controlplane.errors import MalformedRequest
from controlplane.store.api import StateStore


async def record(store: StateStore, *numbers: int) -> None:
    await store.finish([(None, f"decision-{number}", b"%d" % number) for number in numbers])


async def test_decisions_come_newest_first(store: StateStore) -> None:
    await record(store, 1, 2, 3)

    assert [item.record for item in await store.decisions(count=2)] == [b"3", b"2"]


async def test_pages_of_decisions_join_without_gap_or_repeat(store: StateStore) -> None:
    await record(store, 1, 2, 3, 4, 5)
    pages = []
    before = None
    while page := await store.decisions(count=2, before=before):
        pages.append([item.record for item in page])
        before = page[-1].cursor

    assert pages == [[b"5", b"4"], [b"3", b"2"], [b"1"]]


async def test_asking_for_no_decisions_gives_none(store: StateStore) -> None:
    await record(store, 1)

    assert list(await store.decisions(count=0)) == []


async def test_a_decision_is_found_by_its_id(store: StateStore) -> None:
    await record(store, 1, 2)

    found = await store.decision("decision-1")

    assert found is not None
    assert found.record == b"1"
    assert found in await store.decisions(count=9)


async def test_an_unknown_decision_is_not_found(store: StateStore) -> None:
    assert await store.decision("decision-9") is None


async def test_finishing_twice_records_once(store: StateStore) -> None:
    await record(store, 1)
    await record(store, 1, 2)

    assert [item.record for item in await store.decisions(count=9)] == [b"2", b"1"]


async def test_only_the_newest_decisions_are_kept_and_found(store: StateStore) -> None:
    for number in range(1, 8):
        await record(store, number)

    kept = [item.record for item in await store.decisions(count=99)]
    found = [await store.decision(f"decision-{number}") is not None for number in range(1, 8)]
    assert kept == [b"7", b"6", b"5", b"4", b"3"]
    assert found == [False, False, True, True, True, True, True]


async def test_a_batch_larger_than_what_is_kept_leaves_the_newest(store: StateStore) -> None:
    await record(store, *range(300))

    assert [item.record for item in await store.decisions(count=99)] == [
        b"%d" % number for number in range(299, 294, -1)
    ]


async def test_records_are_bytes_and_come_back_unchanged(store: StateStore) -> None:
    raw = bytes(range(256)) * 40

    await store.finish([(None, "decision-1", raw)])

    found = await store.decision("decision-1")
    assert found is not None
    assert found.record == raw


async def test_finishing_nothing_is_fine(store: StateStore) -> None:
    await store.finish([])

    assert list(await store.decisions(count=9)) == []


async def test_a_page_before_what_is_no_cursor_is_refused(store: StateStore) -> None:
    with pytest.raises(MalformedRequest):
        await store.decisions(count=1, before="yesterday")


async def test_a_published_segment_is_listed_until_it_is_dropped(store: StateStore) -> None:
    location = a_location()
    await store.put_segment(location)
    listed = await store.segments(count=9)

    await store.drop_segment("s1")
    await store.drop_segment("s1")

    assert list(listed) == [location]
    assert list(await store.segments(count=9)) == []


async def test_a_segment_is_listed_for_its_lease(store: StateStore, advance: Advance) -> None:
    await store.put_segment(a_location(lease_s=0.05))

    await advance(0.1)

    assert list(await store.segments(count=9)) == []


async def test_publishing_again_renews_the_lease(store: StateStore, advance: Advance) -> None:
    await store.put_segment(a_location(lease_s=0.05))
    renewed = a_location(lease_s=TTL_S, generation=2)
    await store.put_segment(renewed)

    await advance(0.1)

    assert list(await store.segments(count=9)) == [renewed]


async def test_segments_with_the_longest_lease_left_come_first(store: StateStore) -> None:
    for name, lease_s in (("s1", 20.0), ("s2", 40.0), ("s3", 30.0)):
        await store.put_segment(a_location(name, lease_s=lease_s))

    assert [item.segment_id for item in await store.segments(count=2)] == ["s2", "s3"]
    assert list(await store.segments(count=0)) == []
