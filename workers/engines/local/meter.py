"""What the engine measured and counted about itself."""

from __future__ import annotations

from time import perf_counter
from typing import Final

import numpy as np

from controlplane.wire import Profile
from workers.engine import EngineCounters
from workers.engines.local.model import LocalModel, Sizes
from workers.engines.local.row import Row

#: Weight of the newest measurement in a running mean: about the last ten count.
_NEWEST_SHARE: Final = 0.2
#: Runs of the calibration; the fastest counts, since the first ones load code and weights.
_CALIBRATION_RUNS: Final = 4


class Meter:
    """Running means of times, and totals. Used on the event loop's thread alone."""

    def __init__(self, model: LocalModel) -> None:
        self._sizes = Sizes.of(model.spec)
        block_s, step_s = _calibrate(model)
        self._prefill_s_per_token = block_s / model.spec.block_tokens
        # A prompt ends anywhere in its last block, which is computed as a whole.
        self._prefill_fixed_s = block_s / 2
        self._decode_step_s = step_s
        self._prefill_tokens = 0
        self._decode_prompt_tokens = 0
        self._output_tokens = 0
        self._units = 0

    def add_unit(self) -> None:
        """A unit of work has ended, well or not."""
        self._units += 1

    def add_block(self, tokens: int) -> None:
        """A block of so many prompt tokens was computed."""
        self._prefill_tokens += tokens

    def add_prefill(self, *, total_s: float, blocks_s: float, blocks: int, tokens: int) -> None:
        """
        A prefill has ended.

        Args:
            total_s: Seconds of compute, setting up included.
            blocks_s: The part of it in which blocks were computed.
            blocks: How many.
            tokens: Prompt tokens in them; the last block may have fewer than its size.
        """
        fixed_s = total_s
        if blocks:
            per_token_s = blocks_s / (blocks * self._sizes.block_tokens)
            self._prefill_s_per_token = _mean(self._prefill_s_per_token, per_token_s)
            fixed_s -= per_token_s * tokens
        self._prefill_fixed_s = _mean(self._prefill_fixed_s, fixed_s)

    def add_step(self, *, step_s: float, first_tokens: int) -> None:
        """A decode step took so long; it computed the last prompt token of so many sequences."""
        self._decode_step_s = _mean(self._decode_step_s, step_s)
        self._decode_prompt_tokens += first_tokens

    def add_output(self) -> None:
        """A token was put out."""
        self._output_tokens += 1

    def profile(self) -> Profile:
        """Times and sizes for the control plane."""
        return Profile(
            prefill_s_per_token=self._prefill_s_per_token,
            prefill_fixed_s=self._prefill_fixed_s,
            decode_step_s=self._decode_step_s,
            kv_bytes_per_token=self._sizes.attention_bytes_per_token,
            kv_state_bytes=self._sizes.state_bytes,
        )

    def counters(self) -> EngineCounters:
        """Totals since the start."""
        return EngineCounters(
            prefill_tokens_total=self._prefill_tokens,
            decode_prompt_tokens_total=self._decode_prompt_tokens,
            output_tokens_total=self._output_tokens,
            units_total=self._units,
        )


def _mean(old: float, new: float) -> float:
    return old + _NEWEST_SHARE * (new - old)


def _calibrate(model: LocalModel) -> tuple[float, float]:
    """Seconds of one prefill block and of one decode step, before there is any work."""
    tokens = np.zeros(model.spec.block_tokens, dtype=np.int64)
    blocks_s: list[float] = []
    steps_s: list[float] = []
    batch = model.batch()
    row = Row.of_calibration(steps=_CALIBRATION_RUNS, state=model.initial_state())
    for _ in range(_CALIBRATION_RUNS):
        memory = model.memory(len(tokens), (), None)
        start_s = perf_counter()
        memory.compute(tokens, 0)
        blocks_s.append(perf_counter() - start_s)
        steps_s.append(batch.step([row]).step_s)
    return min(blocks_s), min(steps_s)
