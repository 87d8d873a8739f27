"""What an agent tells of its server's cache, and when it stops believing the server's events."""

from __future__ import annotations

import asyncio

import msgspec
from worker_builders import until

from controlplane.domain.prefix import BlockHash, InventoryEntry, block_hashes
from controlplane.domain.tokens import TokenIds
from workers.engines.kv_events.index import BlockIndex
from workers.engines.kv_events.inventory import ServerInventory
from workers.engines.kv_events.routed import RoutedBlocks

HELD = InventoryEntry(has_attention=True, has_state=True)


def a_batch(*tokens: int, salt: str = "s") -> bytes:
    event = {
        "type": "BlockStored", "block_hashes": list(tokens), "parent_block_hash": None,
        "token_ids": list(tokens), "block_size": 1, "medium": "GPU",
        "extra_keys": [[salt], *[None] * (len(tokens) - 1)],
    }  # fmt: skip
    return msgspec.msgpack.encode([1.0, [event], 0])


def hashes(*tokens: int) -> tuple[BlockHash, ...]:
    return block_hashes(TokenIds.from_ints(tokens, 2), block_tokens=1, scope="s")


def an_inventory(ranks: int = 1, blocks_max: int = 100) -> ServerInventory:
    indexes = [BlockIndex(block_tokens=1, width_bytes=2) for _ in range(ranks)]
    return ServerInventory(
        indexes, RoutedBlocks(blocks_max=blocks_max, has_state=False), match_s=0.001
    )


def test_events_are_told_as_they_come_and_in_full_when_asked() -> None:
    inventory = an_inventory()
    inventory.take(is_full=False)
    inventory.hear(0, a_batch(1, 2))

    delta = inventory.take(is_full=False)

    assert delta.stored == dict.fromkeys(hashes(1, 2), HELD)
    assert not inventory.take(is_full=False).stored
    assert inventory.take(is_full=True).stored == delta.stored
    assert not inventory.is_approximate


def test_a_source_that_lost_batches_is_forgotten_and_told_so() -> None:
    inventory = an_inventory()
    inventory.hear(0, a_batch(1))
    inventory.take(is_full=True)

    inventory.hear(0, None)

    assert inventory.take(is_full=False).removed == hashes(1)


def test_what_any_rank_holds_can_be_had() -> None:
    inventory = an_inventory(ranks=2)
    inventory.hear(0, a_batch(1))
    inventory.hear(1, a_batch(1, 2))
    assert len(inventory.take(is_full=True).stored) == 2

    inventory.hear(1, None)

    assert inventory.take(is_full=False).removed == hashes(1, 2)[1:]


async def test_without_events_what_was_sent_is_told_and_marked_as_a_guess() -> None:
    inventory = an_inventory(ranks=0, blocks_max=2)

    inventory.sent(hashes(1, 2, 3))

    assert inventory.is_approximate
    assert set(inventory.take(is_full=True).stored) == set(hashes(1, 2, 3)[:2])
    inventory.restarted()
    assert inventory.take(is_full=False).stored == {}


async def test_events_that_match_nothing_are_said_to_and_the_guess_is_told_until_they_do() -> None:
    inventory = an_inventory()
    for number in range(8):
        inventory.hear(0, a_batch(number, salt="of another scope"))
        inventory.sent(hashes(number))
    await until(lambda: inventory.unmatched_total == 8)

    assert inventory.is_approximate
    delta = inventory.take(is_full=False)
    assert delta.is_full
    assert len(delta.stored) == 8

    inventory.hear(0, a_batch(50))
    inventory.sent(hashes(50))
    await until(lambda: not inventory.is_approximate)

    told = inventory.take(is_full=False)
    assert told.is_full
    assert hashes(50)[0] in told.stored
    inventory.close()


async def test_a_few_prompts_without_an_event_are_no_alarm() -> None:
    inventory = an_inventory()
    for number in range(20):
        if number % 4 == 0:
            inventory.hear(0, a_batch(number))
        inventory.sent(hashes(number))
    await until(lambda: inventory.unmatched_total == 15)

    assert not inventory.is_approximate


async def test_many_prompts_at_once_wait_in_bounded_room() -> None:
    inventory = an_inventory()
    for number in range(1000):
        inventory.sent(hashes(number))
    await until(lambda: inventory.is_approximate)
    await asyncio.sleep(0)

    assert inventory.unmatched_total <= 64
    inventory.close()


def test_a_guess_leaves_from_the_end_of_the_oldest_chain() -> None:
    routed = RoutedBlocks(blocks_max=3, has_state=True)
    routed.sent(hashes(1, 2))
    routed.sent(hashes(7, 8))

    assert list(routed.entries) == [hashes(1)[0], hashes(7, 8)[1], hashes(7, 8)[0]]
    assert [routed.entries[block].has_state for block in hashes(7, 8)] == [False, True]
