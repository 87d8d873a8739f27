"""
Whether a recorded history of concurrent calls could have happened one call at a time.

The search of Wing and Gong with Lowe's memory of what was tried: small histories only. A call that
failed may have taken effect at any later time, or never: it has no end and no answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

State: TypeAlias = Hashable
#: What an operation does to the state, and its answer.
Step: TypeAlias = Callable[[Any, Any], tuple[State, Any]]


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a history."""

    operation: Any
    begun_s: float
    #: Infinite if it failed.
    ended_s: float = math.inf
    #: Of no account if it failed.
    answer: Any = None

    @property
    def has_failed(self) -> bool:
        return math.isinf(self.ended_s)


def is_linearizable(calls: Sequence[Call], initial: State, step: Step) -> bool:
    """
    Whether some order of the calls, each between its beginning and its end, gives all answers.

    Args:
        calls: In any order.
        initial: State before the first of them.
        step: The object's rules, for one call at a time. Pure.
    """
    answered = frozenset(index for index, call in enumerate(calls) if not call.has_failed)
    nothing: frozenset[int] = frozenset()
    to_try = [(nothing, initial)]
    tried = {(nothing, initial)}
    while to_try:
        done, state = to_try.pop()
        if answered <= done:
            return True
        first_end_s = min(calls[index].ended_s for index in answered - done)
        for index, call in enumerate(calls):
            # What begins after another one has ended cannot come before it.
            if index in done or call.begun_s > first_end_s:
                continue
            after, answer = step(state, call.operation)
            if not call.has_failed and answer != call.answer:
                continue
            following = (done | {index}, after)
            if following not in tried:
                tried.add(following)
                to_try.append(following)
    return False
