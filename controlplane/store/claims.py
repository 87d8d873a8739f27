"""Idempotency keys in use, as plain data: what `claim_key.lua` keeps in Redis."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from controlplane.store.api import KeyClaim

#: Keys that are over are thrown out when there are twice as many as were live, and this many.
_SWEEP_AT: Final = 256


@dataclass(slots=True)
class _Claim:
    digest: str
    #: When the key stands for nothing any more, seconds.
    expires_s: float
    #: Who runs its request; None when it is over.
    owner: str | None = None
    #: When the owner's claim ends, seconds.
    until_s: float = 0.0


class KeyClaims:
    """Which request an idempotency key stands for, and whether it runs."""

    def __init__(self, *, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._claims: dict[str, _Claim] = {}
        self._sweep_at = _SWEEP_AT

    def __repr__(self) -> str:
        return f"<KeyClaims {len(self._claims)} keys>"

    def claim(
        self, key: str, *, owner: str, digest: str, ttl_s: float, is_renewal: bool
    ) -> KeyClaim:
        """Claim a key, step by step as `claim_key.lua` does; see `StateStore.claim_key`."""
        now_s = self._clock()
        known = self._find(key)
        if known is not None and known.digest != digest:
            return "mismatch"
        is_ours = known is not None and known.owner == owner
        is_free = known is None or known.owner is None or known.until_s <= now_s
        if not is_ours and (is_renewal or not is_free):
            return "in_use"
        until_s = now_s + ttl_s
        expires_s = until_s if known is None else max(known.expires_s, until_s)
        self._claims[key] = _Claim(digest, expires_s, owner, until_s)
        self._sweep()
        return "granted"

    def release(self, key: str, *, owner: str, keep_s: float) -> None:
        """End a claim; the key stands for its request for `keep_s` seconds more."""
        known = self._find(key)
        if known is not None and known.owner == owner:
            self._claims[key] = _Claim(known.digest, self._clock() + keep_s)

    def _find(self, key: str) -> _Claim | None:
        claim = self._claims.get(key)
        if claim is not None and claim.expires_s <= self._clock():
            del self._claims[key]
            return None
        return claim

    def _sweep(self) -> None:
        if len(self._claims) < self._sweep_at:
            return
        now_s = self._clock()
        self._claims = {key: each for key, each in self._claims.items() if each.expires_s > now_s}
        self._sweep_at = max(_SWEEP_AT, 2 * len(self._claims))
