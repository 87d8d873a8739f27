from __future__ import annotations

import numpy as np
import pytest

from workers.engines.reference.dims import Dims
from workers.engines.reference.memory import AttentionMemory, StateMemory

DIMS = Dims(layers=8)


def filled_attention(tokens: int = 130) -> AttentionMemory:
    memory = AttentionMemory(DIMS, tokens)
    memory.arrays[...] = np.arange(memory.arrays.size).reshape(memory.arrays.shape)
    return memory


def filled_state() -> StateMemory:
    state = StateMemory(DIMS)
    state.recurrent[...] = np.arange(state.recurrent.size).reshape(state.recurrent.shape)
    state.conv[...] = -np.arange(state.conv.size).reshape(state.conv.shape)
    return state


@pytest.mark.parametrize(("start", "end"), [(0, 64), (64, 128), (128, 130)])
def test_attention_piece_comes_back_as_it_was(start: int, end: int) -> None:
    memory, copy = filled_attention(), AttentionMemory(DIMS, 130)

    copy.import_piece(memory.export_piece(start, end), start)

    np.testing.assert_array_equal(
        copy.arrays[:, :, :, start:end], memory.arrays[:, :, :, start:end]
    )
    assert not copy.arrays[:, :, :, end:].any()


def test_attention_piece_has_the_documented_layout() -> None:
    memory = filled_attention()

    data = memory.export_piece(64, 128)

    values = np.frombuffer(data, dtype="<f4").reshape(2, 2, 64, 2, 32)
    assert len(data) == 64 * DIMS.attention_bytes_per_token
    assert values[1, 0, 5, 1, 7] == memory.arrays[1, 0, 1, 69, 7]


def test_capacity_is_whole_blocks() -> None:
    assert AttentionMemory(DIMS, 65).arrays.shape[3] == 128
    assert AttentionMemory(DIMS, 0).arrays.shape[3] == 0


def test_state_piece_comes_back_as_it_was() -> None:
    state, copy = filled_state(), StateMemory(DIMS)

    copy.import_piece(state.export_piece())

    np.testing.assert_array_equal(copy.recurrent, state.recurrent)
    np.testing.assert_array_equal(copy.conv, state.conv)


def test_state_piece_has_recurrent_states_before_convolution_tails() -> None:
    data = filled_state().export_piece()

    values = np.frombuffer(data, dtype="<f4")
    assert len(data) == DIMS.state_bytes
    assert values[1] == 1
    assert values[6 * 4 * 32 * 32 + 1] == -1
