"""Hands out cached prefixes: other workers copy them instead of computing them again."""

from __future__ import annotations

from collections.abc import Callable

from controlplane.domain.prefix import block_hashes
from controlplane.domain.tokens import TokenIds
from controlplane.errors import Draining, WorkerRefused
from controlplane.wire import KvLocation, KvManifest, PrefillReport, PrefixAsk
from workers.engine import Engine
from workers.identity import Identity
from workers.kv.segment import Segment
from workers.kv.segments import SegmentStore

#: Nobody computed anything for a copy.
_NOTHING = PrefillReport(queue_s=0.0, compute_s=0.0, cached_tokens=0, computed_tokens=0)


class PrefixExporter:
    """
    Makes leased segments of what the engine's prefix cache holds.

    The bytes are the cache's own, so an export copies none; they count as bytes held for readers
    until it is read, released, or its lease is over.
    """

    def __init__(
        self,
        engine: Engine,
        segments: SegmentStore,
        identity: Identity,
        *,
        locate: Callable[[Segment], KvLocation],
    ) -> None:
        """
        Args:
            engine: Whose cache it is.
            segments: Where exports are kept.
            identity: Of the life that exports.
            locate: Says where a segment is read.
        """
        self._engine = engine
        self._segments = segments
        self._identity = identity
        self._locate = locate
        self.is_draining = False
        #: Since the start of this life.
        self.exported_total = 0

    def __repr__(self) -> str:
        return f"<PrefixExporter {self.exported_total} exported>"

    def export(self, ask: PrefixAsk, tokens: TokenIds) -> KvLocation | None:
        """
        The longest part of a prefix that is held here, attention and exact state.

        Args:
            ask: Who asks for what.
            tokens: Leading tokens of a prompt; what stands behind the last full block is not used.

        Returns:
            None when there is none.

        Raises:
            WorkerRefused: Another incarnation or fingerprint, or no room for another segment.
            Draining: This worker is leaving.
        """
        spec = self._engine.spec
        if self.is_draining:
            raise Draining("this worker is leaving and exports nothing more")
        if ask.incarnation != self._identity.incarnation:
            raise WorkerRefused("the prefix is asked of another life of this worker; look again")
        if ask.fingerprint != spec.fingerprint:
            raise WorkerRefused("the prefix is asked for another fingerprint than this worker's")
        if len(tokens) >= spec.context_tokens_max:
            return None
        hashes = block_hashes(tokens, block_tokens=spec.block_tokens, scope=ask.scope)
        pieces = self._engine.export_prefix(tokens, hashes)
        if not pieces:
            return None
        manifest = KvManifest(
            fingerprint=spec.fingerprint,
            scope=ask.scope,
            token_count=pieces[-1].token_end,
            block_tokens=spec.block_tokens,
            groups=spec.groups,
        )
        segment = self._segments.open(manifest, is_copy=True)
        for piece in pieces:
            segment.fill(piece)
        segment.complete(_NOTHING)
        self.exported_total += 1
        return self._locate(segment)
