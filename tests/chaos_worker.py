"""
`prfaas` with an engine that dies or hangs on a marker in a prompt: for tests of real processes.

Started from the tests folder, or with it on the path, instead of `python -m controlplane.cli`:

    python -m chaos_worker worker --fleet FILE --datacenter east --role prefill --name prefill-0

Put a marker anywhere in a prompt but at its very end, whose last token a prefill does not see.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Sequence
from typing import Final

from controlplane.cli import main
from controlplane.config import FleetConfig
from controlplane.domain.byte_tokenizer import encode_text
from controlplane.domain.prefix import BlockHash
from controlplane.domain.tokens import TokenIds
from controlplane.wire import Sampling
from workers import app
from workers.engine import Engine, JobContext, KvImport, TokenOut
from workers.engines.local.prefill import LocalPrefill
from workers.engines.local.stream import Stream
from workers.engines.reference.engine import ReferenceEngine

#: The process is gone at once, as after a fault in native code.
DIES_IN_PREFILL: Final = "#dies-in-prefill#"
DIES_IN_DECODE: Final = "#dies-in-decode#"
#: The compute thread never comes back; the process lives, listens and beats.
HANGS_IN_PREFILL: Final = "#hangs-in-prefill#"
HANGS_IN_DECODE: Final = "#hangs-in-decode#"

EXIT_STATUS: Final = 9


def has(tokens: TokenIds, marker: str) -> bool:
    """Whether a prompt holds a marker."""
    wanted = encode_text(marker).data
    at = tokens.data.find(wanted)
    while at >= 0 and at % tokens.width_bytes:
        at = tokens.data.find(wanted, at + 1)
    return at >= 0


class ChaosEngine(ReferenceEngine):
    """The reference engine, but for prompts with a marker."""

    def prefill(
        self, tokens: TokenIds, hashes: Sequence[BlockHash], context: JobContext | None = None
    ) -> LocalPrefill:
        """As the engine, or the end."""
        self._meet(tokens, dies=DIES_IN_PREFILL, hangs=HANGS_IN_PREFILL)
        return super().prefill(tokens, hashes, context)

    def decode(self, sequence: KvImport, tokens: TokenIds, sampling: Sampling) -> Stream[TokenOut]:
        """As the engine, or the end."""
        self._meet(tokens, dies=DIES_IN_DECODE, hangs=HANGS_IN_DECODE)
        return super().decode(sequence, tokens, sampling)

    def _meet(self, tokens: TokenIds, *, dies: str, hangs: str) -> None:
        if has(tokens, dies):
            os._exit(EXIT_STATUS)
        if has(tokens, hangs):
            self._scheduler._executor.submit(threading.Event().wait)


async def build_engine(fleet: FleetConfig) -> Engine:
    """What a worker computes with here."""
    return await asyncio.to_thread(ChaosEngine, fleet.model)


if __name__ == "__main__":
    app._build_engine = build_engine
    main()
