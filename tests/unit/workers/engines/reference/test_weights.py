from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from controlplane.domain.byte_tokenizer import END_OF_TURN
from workers.engines.reference.dims import Dims
from workers.engines.reference.weights import fingerprint_of, make_weights

SMALL = Dims(layers=4)


def fingerprint(dims: Dims = SMALL, *, name: str = "m", seed: int = 0) -> str:
    return fingerprint_of(dims, make_weights(dims, seed), name=name, seed=seed)


def test_one_seed_draws_one_model() -> None:
    first, second = make_weights(SMALL, 3), make_weights(SMALL, 3)

    np.testing.assert_array_equal(first.head, second.head)
    assert fingerprint(seed=3) == fingerprint(seed=3)


def test_the_default_model_is_the_recorded_one() -> None:
    dims = Dims()

    found = fingerprint_of(dims, make_weights(dims, 0), name="prfaas-reference", seed=0)

    assert found == "9cac7712f05c16d2ce33b86effd4d9fa"


@pytest.mark.parametrize(
    "change",
    [
        {"name": "n"},
        {"seed": 1},
        {"dims": Dims(layers=8)},
        {"dims": replace(SMALL, block_tokens=32)},
        {"dims": replace(SMALL, rotary_base=10_000)},
    ],
    ids=["name", "seed", "layers", "block", "rotary"],
)
def test_fingerprint_differs_with_what_kv_depends_on(change: dict[str, Any]) -> None:
    assert fingerprint(**change) != fingerprint()


def test_fingerprint_differs_with_one_bit_of_the_weights() -> None:
    weights = make_weights(SMALL, 0)
    before = fingerprint_of(SMALL, weights, name="m", seed=0)

    weights.embedding[3, 4] = np.nextafter(weights.embedding[3, 4], np.float32(9))

    assert fingerprint_of(SMALL, weights, name="m", seed=0) != before


def test_only_readable_text_and_the_end_can_be_put_out() -> None:
    bias = make_weights(SMALL, 0).head_bias

    allowed = set(np.flatnonzero(np.isfinite(bias)).tolist())

    assert allowed == {*range(0x20, 0x7F), ord("\n"), END_OF_TURN}


def test_three_linear_layers_stand_before_each_full_one() -> None:
    kinds = [Dims(layers=8).is_full(layer) for layer in range(8)]

    assert kinds == [False, False, False, True] * 2


def test_kv_sizes_follow_from_the_layers() -> None:
    dims = Dims(layers=8)

    assert dims.attention_bytes_per_token == 2 * 2 * 2 * 32 * 4
    assert dims.state_bytes == 6 * (4 * 32 * 32 + 3 * 384) * 4
