"""
Hits of one prompt at very many workers, without a value for each of them.

A prefix that a whole fleet holds, as of a common system prompt, hits thousands of workers alike. They
are kept as bits of a number: what holds of a whole class costs one operation, and a single worker is
found by its bit. To whoever looks, it is the mapping from worker to hit that a few hits are.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import chain, islice
from typing import Final, TypeAlias, TypeVar, overload

from controlplane.domain.prefix import NO_HIT, PrefixHit

#: What workers hold of one prompt; a worker that is not here holds nothing.
Hits: TypeAlias = Mapping[str, PrefixHit]

_BYTE: Final = 8

_Other = TypeVar("_Other")


def rank_of(hit: PrefixHit) -> tuple[int, int]:
    """What orders hits by their use to a prefill, then to a decode."""
    return hit.resumable_tokens, hit.attention_tokens


class Numbers:
    """Each worker's own bit. A number is never given to another worker, so sets of bits stay true."""

    __slots__ = ("_by_name", "_by_site", "_names", "get")

    def __init__(self) -> None:
        self._names: list[str] = []
        self._by_name: dict[str, int] = {}
        #: The number of a worker; None when it has none.
        self.get: Callable[[str], int | None] = self._by_name.get
        #: All workers of a datacenter as bits.
        self._by_site: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"<Numbers of {len(self._names)} workers in {len(self._by_site)} datacenters>"

    def __len__(self) -> int:
        return len(self._names)

    def of(self, name: str) -> int:
        """The number of a worker, a new one if need be."""
        number = self._by_name.get(name)
        if number is None:
            number = self._by_name[name] = len(self._names)
            self._names.append(name)
            site = name.partition("/")[0]
            self._by_site[site] = self._by_site.get(site, 0) | 1 << number
        return number

    def site(self, datacenter: str) -> int:
        """All workers of a datacenter, as bits."""
        return self._by_site.get(datacenter, 0)

    def sites(self) -> list[str]:
        """All datacenters, sorted."""
        return sorted(self._by_site)

    def names(self, bits: int) -> Iterator[str]:
        """The workers of a set, in order of their numbers."""
        # Those of one datacenter have mostly come together, and behind many others.
        first = ((bits & -bits).bit_length() - 1) // _BYTE if bits else 0
        bits >>= first * _BYTE
        data = bits.to_bytes((bits.bit_length() + _BYTE - 1) // _BYTE, "little")
        for at, byte in enumerate(data, first):
            left = byte
            while left:
                lowest = left & -left
                yield self._names[at * _BYTE + lowest.bit_length() - 1]
                left ^= lowest


class SharedHits(Mapping[str, PrefixHit]):
    """Hits of a prompt that too many workers hold to tell them one by one. Immutable."""

    __slots__ = ("_classes", "_data", "_find_number", "_longest", "_numbers", "_own")

    def __init__(
        self,
        numbers: Numbers,
        classes: Collection[tuple[int, PrefixHit]],
        own: Mapping[str, PrefixHit],
    ) -> None:
        """
        Take what was matched.

        Args:
            numbers: That the bits are of.
            classes: Workers of equal hits as bits, no worker twice.
            own: Hits of single workers, none of which is in a class.
        """
        self._numbers = numbers
        alike: dict[PrefixHit, int] = {}
        for bits, hit in classes:
            if bits:
                alike[hit] = alike.get(hit, 0) | bits
        #: The longest hits first.
        self._classes = [(alike[hit], hit) for hit in sorted(alike, key=rank_of, reverse=True)]
        self._own = own
        self._find_number = numbers.get
        self._longest: tuple[tuple[int, int], tuple[list[str], PrefixHit | None]] | None = None
        #: The bits in a form that a single one is read from at once.
        self._data: list[tuple[bytes, PrefixHit]] | None = None

    def __repr__(self) -> str:
        return f"<SharedHits of {len(self)} workers in {len(self._classes)} classes>"

    def __len__(self) -> int:
        return len(self._own) + sum([bits.bit_count() for bits, _ in self._classes])

    def __iter__(self) -> Iterator[str]:
        yield from self._own
        for bits, _ in self._classes:
            yield from self._numbers.names(bits)

    def __getitem__(self, name: str) -> PrefixHit:
        hit = self.get(name)
        if hit is None:
            raise KeyError(name)
        return hit

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.get(name) is not None

    @overload
    def get(self, name: str) -> PrefixHit | None: ...

    @overload
    def get(self, name: str, default: PrefixHit) -> PrefixHit: ...

    @overload
    def get(self, name: str, default: _Other) -> PrefixHit | _Other: ...

    def get(self, name: str, default: object = None) -> object:
        """The hit of a worker; asked of many workers in each decision."""
        own = self._own.get(name)
        if own is not None:
            return own
        number = self._find_number(name)
        if number is None:
            return default
        data = self._data
        if data is None:
            width = (len(self._numbers) + _BYTE - 1) // _BYTE
            data = [(bits.to_bytes(width, "little"), hit) for bits, hit in self._classes]
            self._data = data
        at, bit = number // _BYTE, 1 << number % _BYTE
        for bits_in_bytes, hit in data:
            # A worker that has got its number since is behind the end.
            if at < len(bits_in_bytes) and bits_in_bytes[at] & bit:
                return hit
        return default

    def discounted(self, trust: float) -> SharedHits:
        """The same with a part of each hit, 0 to 1; tokens are rounded down."""
        return SharedHits(
            self._numbers,
            [(bits, _part_of(hit, trust)) for bits, hit in self._classes],
            {name: _part_of(hit, trust) for name, hit in self._own.items()},
        )

    def with_hit(self, name: str, hit: PrefixHit) -> SharedHits:
        """The same with another hit of one worker."""
        number = self._numbers.get(name)
        others = -1 if number is None else ~(1 << number)
        return SharedHits(
            self._numbers,
            [(bits & others, one) for bits, one in self._classes],
            {**self._own, name: hit},
        )

    def longest(self, count: int, *, crowd_min: int) -> tuple[list[str], PrefixHit | None]:
        """
        Workers with the longest hits, at most `count`; and the hit of the crowd that was left out.

        Of equal ones that are too many those known first. A class of `crowd_min` or more that does not
        fit is left out, with all shorter hits: one in some workers anywhere is of it, so whoever needs
        a few of them can choose them for a better reason.
        """
        key = (count, crowd_min)
        if self._longest is None or self._longest[0] != key:
            # A decision asks for them twice: for holders, and for copies.
            self._longest = key, self._find_longest(count, crowd_min)
        return self._longest[1]

    def _find_longest(self, count: int, crowd_min: int) -> tuple[list[str], PrefixHit | None]:
        alike: dict[PrefixHit, list[str]] = {}
        for name, hit in self._own.items():
            alike.setdefault(hit, []).append(name)
        shared = {hit: bits for bits, hit in self._classes}
        found: list[str] = []
        for hit in sorted({*alike, *shared}, key=rank_of, reverse=True):
            own, bits = alike.get(hit, []), shared.get(hit, 0)
            room, size = count - len(found), len(own) + bits.bit_count()
            if size > room and size >= crowd_min:
                return found, hit
            found += islice(chain(own, self._numbers.names(bits)), room)
            if size >= room:
                break
        return found, None

    def longest_first(self, datacenter: str) -> Iterator[tuple[str, PrefixHit]]:
        """The workers of a datacenter, those with the longest hits first; lazily."""
        mine = sorted(
            ((hit, name) for name, hit in self._own.items() if _site(name) == datacenter),
            key=lambda one: rank_of(one[0]),
        )
        of_site = self._numbers.site(datacenter)
        for bits, hit in self._classes:
            while mine and rank_of(mine[-1][0]) >= rank_of(hit):
                own_hit, own_name = mine.pop()
                yield own_name, own_hit
            if bits & of_site:
                yield from ((name, hit) for name in self._numbers.names(bits & of_site))
        yield from ((name, hit) for hit, name in reversed(mine))

    def datacenters(self) -> list[str]:
        """Where any of them is, sorted."""
        found = {_site(name) for name in self._own}
        for site in self._numbers.sites():
            of_site = self._numbers.site(site)
            if site not in found and any(bits & of_site for bits, _ in self._classes):
                found.add(site)
        return sorted(found)

    def resumable_tokens_max(self) -> int:
        """The longest prefix that any prefill could resume from."""
        classes = [hit.resumable_tokens for _, hit in self._classes[:1]]
        return max([*classes, *(hit.resumable_tokens for hit in self._own.values())], default=0)


def discounted(hits: Hits, trust: float) -> Hits:
    """A part of each hit, `trust` from 0 to 1; tokens are rounded down."""
    if isinstance(hits, SharedHits):
        return hits.discounted(trust)
    return {name: _part_of(hit, trust) for name, hit in hits.items()}


def with_hit(hits: Hits, name: str, hit: PrefixHit) -> Hits:
    """Hits with another one of one worker."""
    return hits.with_hit(name, hit) if isinstance(hits, SharedHits) else {**hits, name: hit}


def longest_first(hits: Hits, datacenter: str) -> Iterator[tuple[str, PrefixHit]]:
    """The workers of a datacenter with any hit, those with the longest ones first."""
    if isinstance(hits, SharedHits):
        return hits.longest_first(datacenter)
    mine = [(name, hit) for name, hit in hits.items() if _site(name) == datacenter]
    return iter(sorted(mine, key=lambda one: rank_of(one[1]), reverse=True))


def resumable_tokens_max(hits: Hits) -> int:
    """The longest prefix that any prefill could resume from, tokens; 0 without hits."""
    if isinstance(hits, SharedHits):
        return hits.resumable_tokens_max()
    return max((hit.resumable_tokens for hit in hits.values()), default=0)


def kept_for(hits: Hits, names: Collection[str]) -> Hits:
    """Hits as a record keeps them: of very many, those of the workers that it names."""
    if not isinstance(hits, SharedHits):
        return hits
    return {name: hits[name] for name in names if name in hits}


def _part_of(hit: PrefixHit, trust: float) -> PrefixHit:
    if hit is NO_HIT:
        return hit
    return PrefixHit(int(hit.attention_tokens * trust), int(hit.resumable_tokens * trust))


def _site(name: str) -> str:
    return name.partition("/")[0]
