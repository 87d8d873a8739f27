"""What a router serves: the configured model, with what its workers said of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final

from controlplane.config import FleetConfig
from controlplane.domain.prefix import scope_of
from controlplane.edge.requests import ModelFacts
from controlplane.router.view import ViewTracker
from controlplane.tokenizing import tokenizer_for
from controlplane.wire import WorkerBeat

#: Tokens of a block before any worker has said how many; nothing is cached then.
_BLOCK_TOKENS: Final = 64

#: Another fingerprint takes over when so many times as many workers have it.
_TAKEOVER: Final = 2


def leading_fingerprint(counts: Mapping[str, int], current: str) -> str:
    """
    The fingerprint whose scope new requests are hashed with.

    During a rolling upgrade two are there, and a request finds the prefixes of one only. The
    change costs every request its hits once, so it comes late and does not come back: another one
    leads when twice as many workers have it, or nobody has the current one any more.

    Args:
        counts: Workers by fingerprint.
        current: The one so far; empty at first.
    """
    if not counts:
        return current
    most = max(counts.values())
    # Equals by name, or the choice would turn on the order in which they were heard of.
    best = min(name for name, count in counts.items() if count == most)
    mine = counts.get(current, 0)
    return best if not mine or most >= _TAKEOVER * mine else current


class ModelBook:
    """Facts of the served models by name; what the edge asks for with every request."""

    def __init__(self, fleet: FleetConfig, tracker: ViewTracker) -> None:
        self._fleet = fleet
        self._tracker = tracker
        self._tokenizer = tokenizer_for(fleet.model)
        self._generation = -1
        self._fingerprint = ""
        self._block_tokens = _BLOCK_TOKENS
        self._facts: dict[str, ModelFacts] = {}

    def __repr__(self) -> str:
        return f"<ModelBook {self._fleet.model.name} {self._fingerprint or 'without workers'}>"

    def __call__(self) -> Mapping[str, ModelFacts]:
        """
        The facts; made anew only when workers come, go or change.

        A request keeps the scope that it was hashed with, whatever leads when it is decided.
        """
        if self._tracker.generation != self._generation:
            self._generation = self._tracker.generation
            self._read(self._tracker.beats())
        return self._facts

    def _read(self, beats: list[WorkerBeat]) -> None:
        mine = [beat for beat in beats if beat.model == self._fleet.model.name]
        # Decode workers hold the user's conversation, so theirs is the prefix to find again.
        leaders = [beat for beat in mine if beat.role == "decode"] or mine
        counts = Counter(beat.fingerprint for beat in leaders)
        fingerprint = leading_fingerprint(counts, self._fingerprint)
        blocks = Counter(beat.block_tokens for beat in mine if beat.fingerprint == fingerprint)
        block_tokens = max(
            blocks, key=lambda size: (blocks[size], -size), default=self._block_tokens
        )
        if self._facts and (fingerprint, block_tokens) == (self._fingerprint, self._block_tokens):
            return
        self._fingerprint, self._block_tokens = fingerprint, block_tokens
        model = self._fleet.model
        self._facts = {
            model.name: ModelFacts(
                name=model.name,
                tokenizer=self._tokenizer,
                block_tokens=block_tokens,
                context_tokens_max=model.context_tokens_max,
                scope=scope_of(
                    model=model.name,
                    fingerprint=fingerprint,
                    tenant_salt=self._fleet.router.tenant_salt,
                ),
            )
        }
