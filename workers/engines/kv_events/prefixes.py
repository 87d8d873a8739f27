"""One server's prefix cache as its agent knows it: the inventory, and who feeds it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from controlplane.domain.prefix import BlockHash, InventoryDelta
from controlplane.domain.tokens import width_for
from workers.engine import EngineSpec
from workers.engines.kv_events.follower import EventFollower, EventSource
from workers.engines.kv_events.index import BlockIndex
from workers.engines.kv_events.inventory import ServerInventory
from workers.engines.kv_events.routed import RoutedBlocks

#: Room of a server that does not tell its own.
_CACHE_TOKENS: Final = 131_072


class CachedPrefixes:
    """Opened with `of_server`; used on the event loop's thread alone."""

    def __init__(
        self, inventory: ServerInventory, follower: EventFollower | None, scopes: set[str]
    ) -> None:
        """
        Args:
            inventory: What is known.
            follower: Of the server's events; None where it sends none.
            scopes: Filled here with the scopes of what was sent.
        """
        self._inventory = inventory
        self._follower = follower
        self._scopes = scopes

    def __repr__(self) -> str:
        return f"<CachedPrefixes {self._inventory!r}>"

    @classmethod
    def of_nothing(cls) -> CachedPrefixes:
        """Of a server without a prefix cache."""
        return cls(ServerInventory((), None), None, set())

    @classmethod
    def of_server(
        cls,
        spec: EngineSpec,
        sources: Sequence[EventSource],
        *,
        cache_tokens: int,
        has_state: bool,
    ) -> CachedPrefixes:
        """
        Args:
            spec: What the server is.
            sources: Where its ranks publish KV events; none where they do not.
            cache_tokens: Room of its cache; 0 where it does not tell.
            has_state: The model has linear-attention state.
        """
        scopes: set[str] = set()
        indexes = [
            BlockIndex(
                block_tokens=spec.block_tokens,
                width_bytes=width_for(spec.vocabulary_size),
                has_state=has_state,
                # A server that tells no salts: with one scope there is nothing to confuse.
                untold_scope=lambda: next(iter(scopes)) if len(scopes) == 1 else None,
            )
            for _ in sources
        ]
        blocks = (cache_tokens or _CACHE_TOKENS) // spec.block_tokens
        routed = RoutedBlocks(blocks_max=blocks, has_state=has_state)
        inventory = ServerInventory(indexes, routed)
        follower = EventFollower(sources, inventory) if sources else None
        return cls(inventory, follower, scopes)

    @property
    def is_approximate(self) -> bool:
        """What is known is a guess."""
        return self._inventory.is_approximate

    @property
    def unmatched_total(self) -> int:
        """Prompts that no event told of."""
        return self._inventory.unmatched_total

    def start(self) -> None:
        """Follow the server from now on."""
        if self._follower is not None:
            self._follower.start()

    def take(self, *, is_full: bool) -> InventoryDelta:
        """Changes since the last call, or everything."""
        return self._inventory.take(is_full=is_full)

    def sent(self, hashes: Sequence[BlockHash], scope: str) -> None:
        """The server has answered for a prompt with these full blocks."""
        if len(self._scopes) < 2:  # noqa: PLR2004 - two are too many already
            self._scopes.add(scope)
        self._inventory.sent(hashes)

    def restarted(self) -> None:
        """The server has begun anew, with an empty cache."""
        self._inventory.restarted()
        if self._follower is not None:
            self._follower.restarted()

    async def close(self) -> None:
        """Stop following. Idempotent."""
        self._inventory.close()
        if self._follower is not None:
            await self._follower.close()
