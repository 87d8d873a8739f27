from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from random import Random

import pytest

from controlplane.domain.prefix import BlockHash, InventoryEntry
from workers.engines.local import cache as cache_module
from workers.engines.local.cache import Lease, PrefixCache

BLOCK = 64
ATTENTION_ONLY = InventoryEntry(has_attention=True, has_state=False)
WITH_STATE = InventoryEntry(has_attention=True, has_state=True)


@pytest.fixture
def cache() -> Iterator[PrefixCache]:
    """Room for six blocks."""
    made = a_cache()
    yield made
    made.check_integrity()


def a_cache(blocks: int = 6) -> PrefixCache:
    return PrefixCache(block_tokens=BLOCK, tokens_max=blocks * BLOCK)


def chain(path: str) -> tuple[BlockHash, ...]:
    """Hashes of a prompt whose blocks are letters: equal beginnings have equal hashes."""
    return tuple(sha256(path[: end + 1].encode()).digest()[:16] for end in range(len(path)))


def fill(cache: PrefixCache, path: str, *, states: str = "") -> Lease:
    """A lease with all blocks of a prompt that there is room for; letters of `states` get one."""
    lease = cache.lease(chain(path))
    for count, letter in enumerate(path, start=1):
        lease.offer(count, b"kv" + path[:count].encode(), b"state" if letter in states else None)
    return lease


def seen(cache: PrefixCache, path: str, *, states: str = "") -> None:
    """A prompt that came and went."""
    fill(cache, path, states=states).release()


def held(cache: PrefixCache, path: str) -> int:
    """Leading blocks of a prompt that are there; looking does not count as use."""
    known = (block in cache.blocks for block in chain(path))
    return next((count for count, is_held in enumerate(known) if not is_held), len(path))


def test_a_lease_holds_the_leading_blocks_that_are_there(cache: PrefixCache) -> None:
    seen(cache, "abc")

    lease = cache.lease(chain("abxy"))

    assert lease.attention == (b"kva", b"kvab")
    lease.release()


def test_an_empty_cache_gives_an_empty_lease(cache: PrefixCache) -> None:
    lease = cache.lease(chain("abc"))

    assert lease.hashes == ()
    assert lease.snapshot() == (0, None)
    lease.release()


def test_the_last_snapshot_within_the_leading_blocks_is_found(cache: PrefixCache) -> None:
    seen(cache, "abcd", states="bd")

    lease = cache.lease(chain("abcx"))

    assert lease.snapshot() == (2, b"state")
    assert cache.resumable_tokens(chain("abcx")) == 2 * BLOCK
    lease.release()


def test_attention_without_a_snapshot_cannot_be_resumed(cache: PrefixCache) -> None:
    seen(cache, "abc")

    assert cache.resumable_tokens(chain("abc")) == 0


def test_a_snapshot_can_be_added_to_a_block_that_is_there(cache: PrefixCache) -> None:
    seen(cache, "abc")

    lease = cache.lease(chain("abc"))
    assert lease.offer(2, b"ignored", b"state")

    assert lease.snapshot() == (2, b"state")
    assert lease.attention[1] == b"kvab"
    lease.release()


def test_a_block_behind_a_hole_is_refused(cache: PrefixCache) -> None:
    lease = cache.lease(chain("abc"))

    assert not lease.offer(2, b"kv")
    assert not lease.offer(0, b"kv")
    assert not lease.offer(4, b"kv")

    assert lease.hashes == ()
    lease.release()


def test_the_least_recently_used_prompt_leaves_first(cache: PrefixCache) -> None:
    seen(cache, "abc")
    seen(cache, "xyz")
    cache.lease(chain("abc")).release()

    seen(cache, "m")

    assert (held(cache, "abc"), held(cache, "xyz"), held(cache, "m")) == (3, 2, 1)


def test_the_deepest_block_of_a_prompt_leaves_first(cache: PrefixCache) -> None:
    seen(cache, "abcdef")

    seen(cache, "xy")

    assert (held(cache, "abcdef"), held(cache, "xy")) == (4, 2)


def test_a_shared_beginning_outlives_its_branches(cache: PrefixCache) -> None:
    seen(cache, "abcd")
    seen(cache, "abx")

    seen(cache, "mno")

    assert (held(cache, "abcd"), held(cache, "abx"), held(cache, "mno")) == (2, 3, 3)


def test_leased_blocks_stay_whatever_comes(cache: PrefixCache) -> None:
    lease = fill(cache, "abcd")

    other = fill(cache, "uvwxyz")

    assert held(cache, "abcd") == 4
    assert len(other.hashes) == 2
    other.release()
    lease.release()


def test_blocks_that_found_no_room_leave_no_hole(cache: PrefixCache) -> None:
    first = fill(cache, "abcd")
    second = cache.lease(chain("uvwxyz"))
    for count in (1, 2, 3):
        second.offer(count, b"kv")
    first.release()

    assert second.offer(3, b"kv")
    assert not second.offer(5, b"kv")

    assert held(cache, "uvwxyz") == 3
    second.release()


def test_a_block_leased_twice_stays_until_both_are_released(cache: PrefixCache) -> None:
    first, second = fill(cache, "ab"), fill(cache, "ab")
    first.release()

    seen(cache, "uvwxyz")
    assert held(cache, "ab") == 2

    second.release()
    seen(cache, "ghijkl")
    assert held(cache, "ab") == 0


def test_releasing_twice_counts_once(cache: PrefixCache) -> None:
    first, second = fill(cache, "ab"), fill(cache, "ab")

    first.release()
    first.release()

    assert cache.leases == {second}
    assert not first.offer(2, b"kv")
    second.release()


def test_a_cache_of_no_tokens_holds_nothing() -> None:
    cache = a_cache(blocks=0)

    seen(cache, "abc")

    assert cache.held_tokens == 0
    cache.check_integrity()


def test_bytes_and_tokens_are_counted(cache: PrefixCache) -> None:
    seen(cache, "ab", states="b")

    assert cache.held_tokens == 2 * BLOCK
    assert cache.held_bytes == len(b"kva") + len(b"kvab") + len(b"state")


# --- Inventory --------------------------------------------------------------------------------


def test_a_delta_has_what_was_stored_since_the_last(cache: PrefixCache) -> None:
    seen(cache, "a")
    cache.take_delta(is_full=False)

    seen(cache, "ab", states="b")
    delta = cache.take_delta(is_full=False)

    assert not delta.is_full
    assert delta.stored == {chain("ab")[1]: WITH_STATE}
    assert delta.removed == ()


def test_a_delta_has_what_left_since_the_last(cache: PrefixCache) -> None:
    seen(cache, "abcdef")
    cache.take_delta(is_full=False)

    seen(cache, "x")
    delta = cache.take_delta(is_full=False)

    assert delta.removed == (chain("abcdef")[5],)
    assert delta.stored == {chain("x")[0]: ATTENTION_ONLY}


def test_a_snapshot_added_later_is_a_change(cache: PrefixCache) -> None:
    seen(cache, "ab")
    cache.take_delta(is_full=False)

    seen(cache, "ab", states="a")

    assert cache.take_delta(is_full=False).stored == {chain("a")[0]: WITH_STATE}


def test_using_a_prompt_is_no_change(cache: PrefixCache) -> None:
    seen(cache, "ab")
    cache.take_delta(is_full=False)

    cache.lease(chain("ab")).release()
    delta = cache.take_delta(is_full=False)

    assert (delta.stored, delta.removed) == ({}, ())


def test_a_full_delta_has_everything(cache: PrefixCache) -> None:
    seen(cache, "ab", states="b")
    cache.take_delta(is_full=False)

    delta = cache.take_delta(is_full=True)

    assert delta.is_full
    first, second = chain("ab")
    assert delta.stored == {first: ATTENTION_ONLY, second: WITH_STATE}
    assert delta.removed == ()


def test_too_many_changes_make_the_next_delta_full(
    cache: PrefixCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "CHANGES_MAX", 3)
    seen(cache, "abcd")

    delta = cache.take_delta(is_full=False)
    seen(cache, "x")

    assert delta.is_full
    assert set(delta.stored) == set(chain("abcd"))
    assert not cache.take_delta(is_full=False).is_full


def test_deltas_add_up_to_the_cache() -> None:
    draw = Random(1)
    cache, known = a_cache(), dict[BlockHash, InventoryEntry]()

    for _ in range(200):
        seen(cache, "".join(draw.choices("ab", k=draw.randrange(1, 6))), states=draw.choice("ab"))
        delta = cache.take_delta(is_full=False)
        for block in delta.removed:
            known.pop(block, None)
        known.update(delta.stored)

    assert known == cache.take_delta(is_full=True).stored


@pytest.mark.parametrize("seed", range(5))
def test_any_order_of_leases_conserves_blocks(seed: int) -> None:
    draw = Random(seed)
    cache, leases = a_cache(), list[Lease]()

    for _ in range(150):
        if leases and draw.random() < 0.5:
            leases.pop(draw.randrange(len(leases))).release()
        else:
            path = "".join(draw.choices("abc", k=draw.randrange(1, 8)))
            leases.append(fill(cache, path, states=draw.choice("abc")))
        cache.check_integrity()
