"""
Workers in order, of which one at a time changes: a picture of them costs what changed, not what is there.

A tuple of five hundred workers touches each of them whenever it is made or dropped, most of them in no
cache of the processor. A row is made of short parts, and shares those that have not changed with the
row before.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Final, Generic, TypeVar, overload

if TYPE_CHECKING:
    from controlplane.domain.cluster import WorkerView

#: Workers of a part at most: near the square root of those of a large pool, where a change costs least.
_PART_MAX: Final = 32

_Key = TypeVar("_Key", str, tuple[bool, float, str])


class Row(Sequence["WorkerView"]):
    """Workers in order; immutable."""

    __slots__ = ("_parts", "_size")

    def __init__(self, parts: tuple[tuple[WorkerView, ...], ...]) -> None:
        """Of parts in order; none is empty."""
        self._parts = parts
        self._size = sum([len(part) for part in parts])

    def __repr__(self) -> str:
        return f"<Row of {self._size} workers>"

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[WorkerView]:
        return chain.from_iterable(self._parts)

    @overload
    def __getitem__(self, at: int) -> WorkerView: ...

    @overload
    def __getitem__(self, at: slice) -> tuple[WorkerView, ...]: ...

    def __getitem__(self, at: int | slice) -> WorkerView | tuple[WorkerView, ...]:
        if at == 0 and self._parts:
            return self._parts[0][0]
        if isinstance(at, slice):
            start, stop, step = at.indices(self._size)
            return self._span(start, stop) if step == 1 else tuple(self)[at]
        left = at if at >= 0 else at + self._size
        if left >= 0:
            for part in self._parts:
                if left < len(part):
                    return part[left]
                left -= len(part)
        raise IndexError(at)

    def _span(self, start: int, stop: int) -> tuple[WorkerView, ...]:
        found: tuple[WorkerView, ...] = ()
        for part in self._parts:
            if stop <= 0:
                break
            if start < len(part):
                span = part[max(0, start) : stop]
                found = found + span if found else span
            start -= len(part)
            stop -= len(part)
        return found

    def up_to(self, key: _Key, by: Callable[[WorkerView], _Key]) -> int:
        """How many of the first are not behind a key; workers are in order of `by`."""
        count = 0
        for part in self._parts:
            if key < by(part[-1]):
                return count + bisect_right(part, key, key=by)
            count += len(part)
        return count

    def __eq__(self, other: object) -> bool:
        """Equal workers in equal order, whatever the parts; also to a tuple of them."""
        if isinstance(other, Row):
            return self is other or (len(self) == len(other) and tuple(self) == tuple(other))
        return tuple(self) == other if isinstance(other, tuple) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self))


def _changed(
    workers: tuple[WorkerView, ...], start: int, stop: int, *others: WorkerView
) -> tuple[WorkerView, ...]:
    """Workers with others in place of those from `start` to before `stop`."""
    return (*workers[:start], *others, *workers[stop:])


class _Part(Generic[_Key]):
    """Workers that are next to each other, with their keys."""

    __slots__ = ("keys", "workers")

    def __init__(self, keys: list[_Key], workers: tuple[WorkerView, ...]) -> None:
        self.keys: list[_Key] = keys
        #: Shared with rows.
        self.workers = workers


class Roll(Generic[_Key]):
    """Workers in order of a key that each has alone; what is drawn up of it is a `Row`."""

    __slots__ = ("_lasts", "_parts")

    def __init__(self) -> None:
        self._parts: list[_Part[_Key]] = []
        #: The last key of each part.
        self._lasts: list[_Key] = []

    def __repr__(self) -> str:
        return f"<Roll of {sum(len(part.keys) for part in self._parts)} workers>"

    @property
    def is_empty(self) -> bool:
        """Nobody is there."""
        return not self._parts

    def row(self) -> Row:
        """All workers as they are now."""
        return Row(tuple([part.workers for part in self._parts]))

    def put(self, key: _Key, worker: WorkerView) -> None:
        """Take a worker whose key is not there."""
        if not self._parts:
            self._parts.append(_Part([key], (worker,)))
            self._lasts.append(key)
            return
        number = min(bisect_left(self._lasts, key), len(self._parts) - 1)
        part = self._parts[number]
        at = bisect_left(part.keys, key)
        part.keys.insert(at, key)
        part.workers = _changed(part.workers, at, at, worker)
        self._lasts[number] = part.keys[-1]
        if len(part.keys) > _PART_MAX:
            self._split(number)

    def swap(self, key: _Key, worker: WorkerView) -> None:
        """Take a worker in place of the one with this key."""
        part = self._parts[bisect_left(self._lasts, key)]
        at = bisect_left(part.keys, key)
        # The new key, too: equal ones may be made of other objects, and those of the old worker go.
        part.keys[at] = key
        part.workers = _changed(part.workers, at, at + 1, worker)

    def drop(self, key: _Key) -> None:
        """Forget the worker with this key."""
        number = bisect_left(self._lasts, key)
        part = self._parts[number]
        at = bisect_left(part.keys, key)
        del part.keys[at]
        part.workers = _changed(part.workers, at, at + 1)
        if not part.keys:
            del self._parts[number], self._lasts[number]
            return
        self._lasts[number] = part.keys[-1]
        if len(part.keys) < _PART_MAX // 4:
            self._join(number)

    def _split(self, number: int) -> None:
        part, half = self._parts[number], _PART_MAX // 2
        behind = _Part(part.keys[half:], part.workers[half:])
        part.keys, part.workers = part.keys[:half], part.workers[:half]
        self._parts.insert(number + 1, behind)
        self._lasts[number : number + 1] = [part.keys[-1], behind.keys[-1]]

    def _join(self, number: int) -> None:
        """Put a short part together with the one before or behind it, where that is short as well."""
        for first in (number - 1, number):
            if not 0 <= first < len(self._parts) - 1:
                continue
            one, behind = self._parts[first], self._parts[first + 1]
            if len(one.keys) + len(behind.keys) <= _PART_MAX // 2:
                one.keys += behind.keys
                one.workers += behind.workers
                del self._parts[first + 1], self._lasts[first]
                return
