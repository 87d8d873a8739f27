"""
Proof of transfer: what decode engines really took from outside, by their own count. Pure.

An answer is no proof: an engine whose transfer fails may prefill the prompt again and say nothing.
Engines count the prompt tokens of all requests by source; a request is settled when their count of
prompt tokens has grown by exactly those of the requests whose first token has been seen.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from controlplane.wire import TransferEvidence
from workers.engines.remote.snapshot import PromptSources, Snapshot

#: Looks in which the counts may disagree before they are divided: a request's first token and the
#: count of its prompt come over different connections.
_LOOKS_MAX: Final = 3
#: Verdicts that the rate of bad ones is taken over.
_WINDOW: Final = 20
#: And so many are needed, of which half must be bad.
_VERDICTS_MIN: Final = 6


@dataclass(slots=True)
class Claim:
    """One request whose prompt should have come from outside, but for a tail."""

    prompt_tokens: int
    #: Prompt tokens that the engine may compute itself: the last one, and what blocks make of it.
    tail_tokens: int
    evidence: TransferEvidence = "none"
    #: Set with the evidence.
    computed_tokens: int = 0
    #: What the connector moved for it, payload, and how long that took, seconds.
    moved_bytes: int = 0
    moving_s: float = 0.0
    is_settled: bool = False

    @property
    def outside_tokens(self) -> int:
        """Prompt tokens that were to come from outside; 0 for what the server has prefilled itself."""
        return max(0, self.prompt_tokens - self.tail_tokens)

    @property
    def is_mismatch(self) -> bool:
        """The engine has computed what was to come from outside."""
        return self.is_settled and self.computed_tokens > self.tail_tokens


@dataclass(slots=True)
class Ledger:
    """Claims that wait for the engine's count."""

    #: Counts up to which everything is settled; None before the first look.
    settled: Snapshot | None = None
    _claims: list[Claim] = field(default_factory=list)
    _looks: int = 0
    _recent: deque[bool] = field(default_factory=lambda: deque(maxlen=_WINDOW))

    @property
    def waiting(self) -> int:
        """Claims without a verdict."""
        return len(self._claims)

    @property
    def is_unproven(self) -> bool:
        """Most requests of late were computed again: this engine gets nothing from outside."""
        bad = sum(self._recent)
        return len(self._recent) >= _VERDICTS_MIN and 2 * bad >= len(self._recent)

    def claim(self, prompt_tokens: int, *, tail_tokens: int) -> Claim:
        """Enter a request, once its first token is there."""
        claim = Claim(prompt_tokens, tail_tokens)
        self._claims.append(claim)
        return claim

    def restart(self, counted: Snapshot) -> None:
        """
        The engine has begun to count anew; claims of its old life are not settled any more.

        Args:
            counted: By its new life so far, whoever for.
        """
        for claim in self._claims:
            claim.is_settled = True
        self._claims.clear()
        self.settled, self._looks = counted if counted.sources is not None else None, 0
        self._recent.clear()

    def look(self, claims: Sequence[Claim], counted: Snapshot) -> None:
        """
        Compare with counts that were asked for after the claims were entered.

        Args:
            claims: Those of them that are to be settled; see `open_claims`.
            counted: The engine's; without sources where it does not count.
        """
        if counted.sources is None:
            self._settle(claims, "none", PromptSources(), Snapshot(cache={}))
            return
        before = self.settled or Snapshot(sources=PromptSources(), cache={})
        assert before.sources is not None, "an engine that counts goes on with it"
        grown = counted.sources.since(before.sources)
        expected = sum(claim.prompt_tokens for claim in claims)
        if grown.total != expected and self._looks < _LOOKS_MAX:
            self._looks += 1
            return
        is_exact = grown.total == expected and (len(claims) == 1 or not grown.computed)
        moved = Snapshot(
            moved_bytes_total=max(0, counted.moved_bytes_total - before.moved_bytes_total),
            moving_s_total=max(0.0, counted.moving_s_total - before.moving_s_total),
            cache={},
        )
        self._settle(claims, "counted" if is_exact else "shared", grown, moved)
        self.settled, self._looks = counted, 0

    def open_claims(self) -> tuple[Claim, ...]:
        """Claims that a count asked for now can settle."""
        return tuple(self._claims)

    def _settle(
        self,
        claims: Sequence[Claim],
        evidence: TransferEvidence,
        grown: PromptSources,
        moved: Snapshot,
    ) -> None:
        tokens = sum(claim.prompt_tokens for claim in claims)
        outside = sum(claim.outside_tokens for claim in claims)
        # What others let the engine compute meanwhile is not these requests': what of their tokens
        # came from nowhere else is.
        computed = max(0, tokens - grown.external - grown.cached) if evidence != "none" else 0
        for claim in claims:
            share = claim.outside_tokens / max(1, outside)
            claim.computed_tokens = round(computed * claim.prompt_tokens / max(1, tokens))
            claim.moved_bytes = round(moved.moved_bytes_total * share)
            claim.moving_s = moved.moving_s_total * share
            claim.evidence, claim.is_settled = evidence, True
            self._claims.remove(claim)
            if evidence != "none" and claim.outside_tokens:
                self._recent.append(claim.is_mismatch)
