"""The oracle is one: different prompts have different answers, and every part of a prompt counts."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from chaos.plant import Topology
from chaos.pool import answer_all, make_pool, make_prompts

MODEL = Topology().fleet().model


def test_prompts_differ_and_depend_on_the_seed_alone() -> None:
    pool = make_pool(50, 10, seed=1)

    assert len({item.prompt for item in pool}) == 60
    assert pool == make_pool(50, 10, seed=1)
    assert pool != make_pool(50, 10, seed=2)


def test_answers_differ() -> None:
    answers = answer_all(make_prompts(20, seed=3), MODEL)

    assert len({item.text for item in answers}) == 20
    assert all(item.output_tokens for item in answers)


@pytest.mark.parametrize("start", [0, 64, 128])
def test_a_change_of_any_block_changes_most_answers(start: int) -> None:
    """So that KV of another prompt, or of another place, shows."""
    random = Random(4)
    items = make_prompts(12, seed=5, lengths=(250, 300))
    others = [
        replace(
            item,
            prompt=item.prompt[:start]
            + "".join(random.choices("abcdefgh", k=64))
            + item.prompt[start + 64 :],
        )
        for item in items
    ]

    right, changed = answer_all(items, MODEL), answer_all(others, MODEL)

    assert sum(a.text != b.text for a, b in zip(right, changed, strict=True)) >= 10
