from __future__ import annotations

from controlplane.domain.prefix import InventoryDelta, InventoryEntry, PrefixHit
from controlplane.domain.prefix_hits import (
    Hits,
    SharedHits,
    discounted,
    kept_for,
    longest_first,
    resumable_tokens_max,
    with_hit,
)
from controlplane.domain.prefix_index import HOLDERS_EACH_MAX, PrefixIndex

BOTH = InventoryEntry(has_attention=True, has_state=True)
A, B, C = b"a", b"b", b"c"
CROWD = tuple(f"{site}/p{number:03}" for site in ("east", "west") for number in range(50))
SHORT, LONG = PrefixHit(16, 16), PrefixHit(32, 32)


def an_index() -> PrefixIndex:
    """All hold the first block, two of the east the second as well."""
    index = PrefixIndex()
    for name in CROWD:
        blocks = (A, B) if name in {"east/p003", "east/p007"} else (A,)
        index.apply(name, InventoryDelta(stored=dict.fromkeys(blocks, BOTH)))
    return index


def crowd_hits() -> Hits:
    return an_index().match((A, B, C), block_tokens=16)


def test_hits_of_a_crowd_are_a_mapping_like_any_other() -> None:
    hits = crowd_hits()

    expected = dict.fromkeys(CROWD, SHORT) | {"east/p003": LONG, "east/p007": LONG}
    assert isinstance(hits, SharedHits)
    assert hits == expected
    assert len(hits) == len(CROWD) > HOLDERS_EACH_MAX
    assert sorted(hits) == sorted(CROWD)
    assert hits.get("west/p001") == SHORT
    assert hits.get("west/p999") is None
    assert "west/p999" not in hits


def test_what_was_matched_does_not_change_with_the_index() -> None:
    index = an_index()
    hits = index.match((A, B, C), block_tokens=16)

    for name in CROWD:
        index.forget(name)
    index.apply("north/p001", InventoryDelta(stored={A: BOTH}))

    assert hits == crowd_hits()
    assert hits.get("north/p001") is None
    assert index.match((A,), block_tokens=16) == {"north/p001": SHORT}


def test_the_longest_come_first_and_a_crowd_that_does_not_fit_is_left_out() -> None:
    hits = crowd_hits()
    assert isinstance(hits, SharedHits)

    assert hits.longest(10, crowd_min=50) == (["east/p003", "east/p007"], SHORT)
    names, crowd = hits.longest(10, crowd_min=1000)
    assert names[:2] == ["east/p003", "east/p007"]
    assert len(names) == 10
    assert crowd is None


def test_the_longest_of_a_datacenter_come_first() -> None:
    for hits in (crowd_hits(), dict(crowd_hits())):
        found = list(longest_first(hits, "east"))

        assert found[0][1] == found[1][1] == LONG
        assert {name for name, _ in found} == {name for name in CROWD if name < "west"}
        assert resumable_tokens_max(hits) == 32


def test_a_hit_of_one_worker_can_be_another() -> None:
    hits = with_hit(crowd_hits(), "west/p001", PrefixHit(48, 48))

    assert hits == {**crowd_hits(), "west/p001": PrefixHit(48, 48)}
    assert resumable_tokens_max(hits) == 48


def test_a_part_of_each_hit_counts_when_the_view_is_old() -> None:
    expected = {name: discounted({name: hit}, 0.5)[name] for name, hit in crowd_hits().items()}

    assert discounted(crowd_hits(), 0.5) == expected


def test_a_record_keeps_the_hits_of_those_it_names() -> None:
    assert kept_for(crowd_hits(), ["east/p003", "gone"]) == {"east/p003": LONG}
    assert type(kept_for(crowd_hits(), [])) is dict
    assert kept_for({"east/p1": LONG}, []) == {"east/p1": LONG}


def test_numbers_of_workers_that_are_gone_are_given_up() -> None:
    """A fleet whose workers are replaced again and again takes no more memory than one that stays."""
    index = PrefixIndex(each_max=1)
    for number in range(4000):
        index.apply(f"west/p{number}", InventoryDelta(stored={A: BOTH}))
        if number >= 5:
            index.forget(f"west/p{number - 5}")

    hits = index.match((A,), block_tokens=16)
    assert hits == {f"west/p{number}": SHORT for number in range(3995, 4000)}
    assert len(index._numbers) < 2000
