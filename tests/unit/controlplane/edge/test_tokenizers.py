from __future__ import annotations

import pytest

from controlplane.domain import byte_tokenizer
from controlplane.edge.tokenizers import ByteTokenizer, tokenizer_for
from controlplane.errors import ConfigError


def test_the_reference_engine_has_the_byte_tokenizer() -> None:
    assert tokenizer_for("reference") == ByteTokenizer()


def test_an_engine_without_a_tokenizer_is_refused_with_those_that_have_one() -> None:
    with pytest.raises(ConfigError, match="no tokenizer for engine 'abacus'; known: reference"):
        tokenizer_for("abacus")


def test_the_byte_tokenizer_is_that_of_the_domain() -> None:
    tokenizer = ByteTokenizer()

    assert tokenizer.width_bytes == byte_tokenizer.WIDTH_BYTES
    assert tokenizer.vocabulary_size == byte_tokenizer.VOCABULARY_SIZE
    assert tokenizer.encode_text("é") == byte_tokenizer.encode_text("é")
    assert tokenizer.encode_chat([("user", "a")]) == byte_tokenizer.encode_chat([("user", "a")])
