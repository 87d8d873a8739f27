from __future__ import annotations

import pytest

from controlplane.domain.byte_tokenizer import (
    ASSISTANT,
    BEGIN,
    END_OF_TURN,
    ROLES,
    SYSTEM,
    USER,
    VOCABULARY_SIZE,
    WIDTH_BYTES,
    decode_bytes,
    encode_chat,
    encode_text,
)


def test_text_is_its_utf8_bytes() -> None:
    tokens = encode_text("aé€😀")

    assert tokens.to_list() == list("aé€😀".encode())
    assert tokens.width_bytes == WIDTH_BYTES


def test_empty_text_has_no_tokens() -> None:
    assert len(encode_text("")) == 0


def test_text_with_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(UnicodeEncodeError):
        encode_text("\ud800")


def test_a_chat_is_framed_by_control_tokens() -> None:
    tokens = encode_chat([("system", "be"), ("user", "a"), ("assistant", ""), ("user", "b")])

    assert tokens.to_list() == [
        BEGIN,
        *(SYSTEM, ord("b"), ord("e"), END_OF_TURN),
        *(USER, ord("a"), END_OF_TURN),
        *(ASSISTANT, END_OF_TURN),
        *(USER, ord("b"), END_OF_TURN),
        ASSISTANT,
    ]


def test_a_chat_without_messages_still_asks_for_an_answer() -> None:
    assert encode_chat([]).to_list() == [BEGIN, ASSISTANT]


def test_a_developer_speaks_as_the_system() -> None:
    assert encode_chat([("developer", "x")]) == encode_chat([("system", "x")])


def test_every_named_role_is_known() -> None:
    assert ROLES == ("system", "developer", "user", "assistant")
    for role in ROLES:
        encode_chat([(role, "x")])


def test_an_unknown_role_is_refused() -> None:
    with pytest.raises(KeyError, match="tool"):
        encode_chat([("tool", "x")])


def test_a_message_with_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(UnicodeEncodeError):
        encode_chat([("user", "\udfff")])


def test_control_tokens_are_no_bytes_and_fit_the_vocabulary() -> None:
    control = (BEGIN, END_OF_TURN, SYSTEM, USER, ASSISTANT)

    assert control == (256, 257, 258, 259, 260)  # hashes and weights depend on them
    assert VOCABULARY_SIZE == 272


def test_decoding_leaves_out_what_is_no_byte() -> None:
    ids = [BEGIN, USER, 0, 104, 105, 255, END_OF_TURN, ASSISTANT, VOCABULARY_SIZE - 1]

    assert decode_bytes(ids) == b"\x00hi\xff"
