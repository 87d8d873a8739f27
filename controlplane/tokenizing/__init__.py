"""Text to tokens and back, by the tokenizer that the fleet's model has."""

from __future__ import annotations

from pathlib import Path

from controlplane.config_model import ModelConfig
from controlplane.errors import ConfigError
from controlplane.tokenizing.by_bytes import ByteTokenizer
from controlplane.tokenizing.contract import Detokenizer, TemplateRefused, Tokenizer

__all__ = ["ByteTokenizer", "Detokenizer", "TemplateRefused", "Tokenizer", "tokenizer_for"]


def tokenizer_for(model: ModelConfig) -> Tokenizer:
    """
    The tokenizer of a fleet's model.

    Raises:
        ConfigError: Its files cannot be used; says which and why.
    """
    if model.tokenizer is None:
        return ByteTokenizer()
    try:
        # Imported here: only fleets with files of their own need the libraries.
        from controlplane.tokenizing.by_files import load_tokenizer  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ConfigError(
            f'model.tokenizer needs the package {error.name!r}: pip install "prfaas[engines]"'
        ) from error
    return load_tokenizer(Path(model.tokenizer))
