"""What a model of this world must say, by prompt and scope alone: the oracle of all texts."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal

from controlplane.domain.byte_tokenizer import BEGIN, END_OF_TURN
from controlplane.domain.prefix import block_hashes as _block_hashes
from controlplane.domain.tokens import TokenIds

#: Tokens of a block, bytes of attention for a token, bytes of state.
BLOCK = 16
TOKEN_BYTES = 2
STATE_BYTES = 16

#: The first byte of a character of two bytes.
_LEAD = 0xC3


def hashes_of(scope: str, tokens: TokenIds) -> tuple[bytes, ...]:
    """Block hashes of all tokens; bound at import, so that a planted bug elsewhere is not here."""
    return _block_hashes(tokens, block_tokens=BLOCK, scope=scope)


class Chain:
    """
    The KV of a context, token by token: attention bytes and the state behind the last token.

    The first block's KV is a function of its hash, which names scope and tokens; each later token
    adds to it. So any other scope, tokens, order or length has other bytes.
    """

    __slots__ = ("attention", "last", "state")

    def __init__(self, attention: bytearray, state: bytes, last: int) -> None:
        self.attention = attention
        self.state = state
        self.last = last

    @classmethod
    def begin(cls, first_hash: bytes, last: int) -> Chain:
        """The KV of the first block."""
        whole = blake2b(first_hash, digest_size=BLOCK * TOKEN_BYTES).digest()
        return cls(bytearray(whole), first_hash, last)

    def add(self, token: int) -> None:
        """One more token."""
        self.state = blake2b(
            self.state + token.to_bytes(4, "little"), digest_size=STATE_BYTES
        ).digest()
        self.attention += self.state[:TOKEN_BYTES]
        self.last = token

    def next_token(self) -> int:
        """The output token that follows: a function of every byte of KV."""
        drawn = blake2b(self.state + self.attention, digest_size=8).digest()
        if self.last == _LEAD:
            return 0x80 + drawn[0] % 64
        if drawn[1] < 24:
            return _LEAD
        return END_OF_TURN if drawn[2] < 5 else 97 + drawn[0] % 26


def kv_of(first_hash: bytes, tokens: list[int]) -> Chain:
    """The KV of at least one block of tokens."""
    chain = Chain.begin(first_hash, tokens[BLOCK - 1])
    for token in tokens[BLOCK:]:
        chain.add(token)
    return chain


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client must get."""

    text: str
    finish_reason: Literal["stop", "length"]
    #: All output tokens, the end token left out.
    tokens: tuple[int, ...]


def expected(
    scope: str, prompt: TokenIds, *, output_tokens_max: int, stop: tuple[str, ...]
) -> Answer:
    """The answer to a prompt of more than one block."""
    chain = kv_of(hashes_of(scope, prompt)[0], prompt.to_list())
    tokens: list[int] = []
    reason: Literal["stop", "length"] = "length"
    while len(tokens) < output_tokens_max:
        token = chain.next_token()
        if token == END_OF_TURN:
            reason = "stop"
            break
        tokens.append(token)
        chain.add(token)
    text = bytes(token for token in tokens if token < BEGIN).decode(errors="replace")
    found = [at for at in map(text.find, stop) if at >= 0]
    if found:
        return Answer(text[: min(found)], "stop", tuple(tokens))
    return Answer(text, reason, tuple(tokens))
