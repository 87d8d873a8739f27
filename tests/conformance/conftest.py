from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.vllm import said_after

from conformance.router import Router, a_router
from conformance.servers import Servers, some_servers
from conformance.vocabulary import words, write_tokenizer
from controlplane.tokenizing import Tokenizer
from controlplane.tokenizing.by_files import load_tokenizer


@pytest.fixture(scope="package")
def tokenizer_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(directory)
    return directory


@pytest.fixture(scope="package")
def tokenizer(tokenizer_directory: Path) -> Tokenizer:
    return load_tokenizer(tokenizer_directory)


@pytest.fixture(scope="package")
def _servers(tokenizer: Tokenizer) -> Iterator[Servers]:
    with some_servers(tokenizer, prefill=2, decode=2) as servers:
        yield servers


@pytest.fixture(scope="package")
def _router(
    _servers: Servers, tokenizer_directory: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Router]:
    with a_router(_servers, tokenizer_directory, tmp_path_factory.mktemp("router")) as router:
        yield router


@pytest.fixture
def router(_router: Router, _servers: Servers) -> Router:
    """Before two prefill and two decode servers without any fault."""
    _servers.restore()
    return _router


@pytest.fixture
def servers(router: Router, _servers: Servers) -> Iterator[Servers]:
    """Those servers; no test may leave them with a request that the protocol forbids."""
    del router
    yield _servers
    assert not _servers.violations()


@pytest.fixture(scope="package")
def answer_to(tokenizer: Tokenizer) -> Answers:
    return Answers(tokenizer)


class Answers:
    """What the model says, worked out without any server."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def text(self, prompt: str, count: int = 8) -> str:
        """To a text."""
        return words(said_after(self._tokenizer.encode_text(prompt).to_list(), count))

    def chat(self, text: str, count: int = 8) -> str:
        """To a chat of one message."""
        tokens = self._tokenizer.encode_chat([("user", text)])
        return words(said_after(tokens.to_list(), count))
