"""A clock that is wrong: on the path of a process, it moves `time.time` by CHAOS_CLOCK_OFFSET_S."""

from __future__ import annotations

import os
import time

_OFFSET_S = float(os.environ.get("CHAOS_CLOCK_OFFSET_S", "0"))
_time = time.time
_time_ns = time.time_ns


def _wrong() -> float:
    return _time() + _OFFSET_S


def _wrong_ns() -> int:
    return _time_ns() + round(_OFFSET_S * 1e9)


time.time = _wrong
time.time_ns = _wrong_ns
