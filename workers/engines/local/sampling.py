"""How an output token is chosen: a pure function of logits, seed and output position."""

from __future__ import annotations

import os
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from controlplane.wire import Sampling

Floats: TypeAlias = npt.NDArray[np.float32]

#: Philox takes keys of so many bits here; a seed may be any integer and is cut to them.
_KEY_BITS: Final = 64


class Sampler:
    """
    Draws the tokens of one sequence.

    The random number of an output position comes from a counter, not from a generator that moves
    on: any worker that knows seed and position draws the same.
    """

    def __init__(self, sampling: Sampling) -> None:
        self._temperature = sampling.temperature
        self._top_p = sampling.top_p
        seed = sampling.seed
        if seed is None:
            seed = int.from_bytes(os.urandom(_KEY_BITS // 8), "little")
        self._key = seed % (1 << _KEY_BITS)

    def draw(self, logits: Floats, position: int) -> int:
        """
        Choose a token.

        Args:
            logits: (vocabulary,); -inf for what must not be chosen.
            position: 0 for the first output token.
        """
        if self._temperature == 0:
            return int(np.argmax(logits))  # the first, that is the lowest id, of equal ones
        with np.errstate(over="ignore"):  # a temperature near 0 sends all but the best to -inf
            scaled = (logits - logits.max()).astype(np.float64) / self._temperature
        weights = np.exp(scaled)
        order = np.argsort(-weights, kind="stable")
        heap = np.cumsum(weights[order])
        # The last of the smallest set of most likely tokens that has `top_p` of the weight.
        last = min(int(np.searchsorted(heap, self._top_p * heap[-1])), len(heap) - 1)
        threshold = self._uniform(position) * heap[last]
        return int(order[min(int(np.searchsorted(heap, threshold, side="right")), last)])

    def _uniform(self, position: int) -> float:
        """A number in [0, 1) that depends on seed and position alone."""
        bits = np.random.Philox(key=self._key, counter=position).random_raw()
        return (int(bits) >> 11) * 2.0**-53
