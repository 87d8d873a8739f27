"""The oracle of end-to-end tests: what one engine alone makes of a prompt."""

from __future__ import annotations

from collections.abc import Sequence

from controlplane.domain.prefix import BlockHash
from controlplane.domain.tokens import TokenIds
from controlplane.wire import Sampling
from workers.engine import Engine, TokenOut


async def generate_alone(
    engine: Engine, tokens: TokenIds, hashes: Sequence[BlockHash], sampling: Sampling
) -> list[TokenOut]:
    """
    Prefill, import and decode in one engine, through its public interface.

    Args:
        engine: Any; its prefix cache takes part.
        tokens: The whole prompt, one token at least.
        hashes: Block hashes of the prompt; one of a block that ends with its last token is not
            used, because prefill leaves that token out.
        sampling: With temperature 0 or a seed, the output is a function of the arguments.
    """
    head = tokens.head(len(tokens) - 1)
    head_hashes = hashes[: len(head) // engine.spec.block_tokens]
    pieces = [piece async for piece in engine.prefill(head, head_hashes).pieces()]
    sequence = engine.begin_import(head, head_hashes)
    try:
        for piece in pieces:
            if piece.group == "state" or piece.token_start >= sequence.held_tokens:
                sequence.write(piece)
        return [out async for out in engine.decode(sequence, tokens, sampling)]
    finally:
        sequence.close()
