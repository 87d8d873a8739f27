"""Text as bytes: what fleets have whose model names no tokenizer files."""

from __future__ import annotations

from controlplane.config_model import ModelConfig
from controlplane.domain import byte_tokenizer
from controlplane.tokenizing import ByteTokenizer, tokenizer_for


def test_a_model_without_tokenizer_files_reads_bytes() -> None:
    assert tokenizer_for(ModelConfig()) == ByteTokenizer()


def test_the_byte_tokenizer_is_that_of_the_domain() -> None:
    tokenizer = ByteTokenizer()

    assert tokenizer.width_bytes == byte_tokenizer.WIDTH_BYTES
    assert tokenizer.vocabulary_size == byte_tokenizer.VOCABULARY_SIZE
    assert tokenizer.encode_text("é") == byte_tokenizer.encode_text("é")
    assert tokenizer.encode_chat([("user", "a")]) == byte_tokenizer.encode_chat([("user", "a")])
