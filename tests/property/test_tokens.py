from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from strategies import prompts

from controlplane.domain.byte_tokenizer import (
    ASSISTANT,
    BEGIN,
    END_OF_TURN,
    ROLES,
    SYSTEM,
    USER,
    decode_bytes,
    encode_chat,
    encode_text,
)
from controlplane.domain.tokens import TokenIds

texts = st.text(st.characters(codec="utf-8"), max_size=40)
chats = st.lists(st.tuples(st.sampled_from(ROLES), texts), max_size=6)


@given(prompts)
def test_tokens_are_what_they_were_made_of(tokens: TokenIds) -> None:
    assert TokenIds.from_ints(tokens.to_list(), tokens.width_bytes) == tokens
    assert len(tokens.to_list()) == len(tokens)


@given(prompts, st.integers(0, 80))
def test_head_is_a_slice(tokens: TokenIds, count: int) -> None:
    assert tokens.head(count).to_list() == tokens.to_list()[:count]


@given(texts)
def test_text_comes_back_from_its_tokens(text: str) -> None:
    assert decode_bytes(encode_text(text).to_list()).decode() == text


@given(chats)
def test_no_text_can_forge_a_control_token(messages: list[tuple[str, str]]) -> None:
    ids = encode_chat(messages).to_list()

    control = [token for token in ids if token >= BEGIN]
    roles = {"system": SYSTEM, "developer": SYSTEM, "user": USER, "assistant": ASSISTANT}
    turns = [token for role, _ in messages for token in (roles[role], END_OF_TURN)]
    assert control == [BEGIN, *turns, ASSISTANT]


@given(chats)
def test_a_chat_holds_every_text_whole(messages: list[tuple[str, str]]) -> None:
    ids = encode_chat(messages).to_list()

    assert decode_bytes(ids).decode() == "".join(text for _, text in messages)
