from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from engine_builders import a_prompt

from workers.engines.reference.dims import Floats, Ints
from workers.engines.reference.memory import AttentionMemory, StateMemory
from workers.engines.reference.model import Model


@dataclass
class Row:
    """A sequence in a decode batch."""

    token: int
    position: int
    attention: AttentionMemory
    state: StateMemory


def ids(length: int, salt: int = 0) -> Ints:
    return np.array(a_prompt(length, salt=salt).to_list(), dtype=np.int64)


def prefilled(model: Model, tokens: Ints, *, capacity: int = 512) -> Row:
    """A row that will compute the last of `tokens`."""
    row = Row(
        token=int(tokens[-1]),
        position=len(tokens) - 1,
        attention=AttentionMemory(model.dims, capacity),
        state=StateMemory(model.dims),
    )
    size = model.dims.block_tokens
    for start in range(0, row.position, size):
        end = min(start + size, row.position)
        model.prefill_block(tokens[start:end], start, row.attention, row.state)
    return row


def decoded(model: Model, rows: list[Row]) -> Floats:
    """Logits of one step; the rows' states move on."""
    recurrent = np.stack([row.state.recurrent for row in rows], axis=1)
    conv = np.stack([row.state.conv for row in rows], axis=1)
    logits = model.decode_step(rows, recurrent, conv)
    for index, row in enumerate(rows):
        row.state.recurrent[...] = recurrent[:, index]
        row.state.conv[...] = conv[:, index]
    return logits


def difference(first: Floats, second: Floats) -> float:
    """Of the logits of what may be put out, the largest."""
    allowed = np.isfinite(first)
    return float(np.abs(first[allowed] - second[allowed]).max())


@pytest.mark.parametrize("length", [2, 64, 65, 150, 300])
def test_prefill_in_blocks_equals_decode_token_by_token(model: Model, length: int) -> None:
    tokens = ids(length)
    stepwise = prefilled(model, tokens[:1])
    for position in range(length - 1):
        stepwise.token, stepwise.position = int(tokens[position]), position
        decoded(model, [stepwise])
    stepwise.token, stepwise.position = int(tokens[-1]), length - 1

    expected = decoded(model, [stepwise])
    found = decoded(model, [prefilled(model, tokens)])

    np.testing.assert_allclose(found, expected, atol=5e-3)


def test_what_follows_a_block_does_not_change_it_by_a_bit(model: Model) -> None:
    short = prefilled(model, ids(129), capacity=128)
    long = prefilled(model, ids(400), capacity=512)

    for start in (0, 64):
        piece = short.attention.export_piece(start, start + 64)
        assert piece == long.attention.export_piece(start, start + 64)


@pytest.mark.parametrize("others", [1, 2, 3, 7])
def test_a_row_does_not_depend_on_the_others_by_a_bit(model: Model, others: int) -> None:
    alone = decoded(model, [prefilled(model, ids(90))])
    company = [prefilled(model, ids(20 + 50 * salt, salt)) for salt in range(1, others + 1)]

    for place in range(others + 1):
        rows = [*company[:place], prefilled(model, ids(90)), *company[place:]]
        together = decoded(model, rows)

        np.testing.assert_array_equal(together[place], alone[0])


def test_a_distant_token_changes_what_comes_next(model: Model) -> None:
    tokens = ids(300)
    other = tokens.copy()
    other[3] = 48

    first, second = (decoded(model, [prefilled(model, these)]) for these in (tokens, other))

    assert difference(first, second) > 0.1


@pytest.mark.parametrize("full_layer_part", [0, 1], ids=["keys", "values"])
def test_wrong_attention_kv_changes_what_comes_next(model: Model, full_layer_part: int) -> None:
    expected = decoded(model, [prefilled(model, ids(300))])
    row = prefilled(model, ids(300))
    row.attention.arrays[0, full_layer_part, :, 64:128] *= -1

    found = decoded(model, [row])

    assert difference(found, expected) > 0.1


def test_wrong_state_changes_what_comes_next(model: Model) -> None:
    expected = decoded(model, [prefilled(model, ids(300))])
    row = prefilled(model, ids(300))
    row.state.recurrent[1] = 0

    found = decoded(model, [row])

    assert difference(found, expected) > 0.1
