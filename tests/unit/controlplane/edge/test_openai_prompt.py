from __future__ import annotations

from typing import Any

import pytest

from controlplane.edge.openai_check import completion_request
from controlplane.errors import MalformedRequest, UnsupportedParameter

COMPLETION: dict[str, Any] = {"model": "m"}


def prompt_complaint(prompt: object) -> MalformedRequest:
    with pytest.raises(MalformedRequest) as caught:
        completion_request({**COMPLETION, "prompt": prompt})
    assert caught.value.param == "prompt"
    return caught.value


@pytest.mark.parametrize("prompt", ["hi", ["hi"]], ids=repr)
def test_a_batch_of_one_text_is_that_text(prompt: object) -> None:
    assert completion_request({**COMPLETION, "prompt": prompt}).prompt == "hi"


@pytest.mark.parametrize("prompt", [[1, 2], [[1, 2]]], ids=repr)
def test_a_batch_of_one_id_list_is_that_list(prompt: object) -> None:
    assert completion_request({**COMPLETION, "prompt": prompt}).prompt == [1, 2]


def test_token_ids_are_not_copied() -> None:
    ids = [1, 2, 3]

    assert completion_request({**COMPLETION, "prompt": ids}).prompt is ids


@pytest.mark.parametrize("prompt", [["a", "b"], [[1], [2]], ["a", 1]], ids=repr)
def test_more_than_one_prompt_is_not_supported(prompt: object) -> None:
    with pytest.raises(UnsupportedParameter) as caught:
        completion_request({**COMPLETION, "prompt": prompt})

    assert caught.value.param == "prompt"


@pytest.mark.parametrize("prompt", ["", [], [""], [[]]], ids=repr)
def test_an_empty_prompt_is_refused(prompt: object) -> None:
    assert prompt_complaint(prompt).message == "prompt: must not be empty"


@pytest.mark.parametrize("prompt", [5, 1.5, True, {"a": 1}], ids=repr)
def test_a_prompt_of_another_type_is_refused(prompt: object) -> None:
    assert "expected a string or an array of token ids" in prompt_complaint(prompt).message


@pytest.mark.parametrize("prompt", ["a\0", ["a\0"]], ids=repr)
def test_a_prompt_with_a_nul_is_refused(prompt: object) -> None:
    assert "U+0000" in prompt_complaint(prompt).message
