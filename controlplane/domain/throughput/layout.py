"""
A fleet and its traffic with everything numbered, and what keeps them from being served. Pure.

Pools of prefill workers and links are the resources; each serving datacenter has levels of decode
capacity, from as few decode workers as there can be to all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from controlplane.domain.throughput.curves import Curve
from controlplane.domain.throughput.fleet import (
    BITS_PER_BYTE,
    FleetModel,
    Group,
    Link,
    TrafficModel,
)
from controlplane.domain.throughput.lengths import LengthDistribution, mean
from controlplane.domain.throughput.problem import DemandOptions, Option, Row
from controlplane.domain.throughput.profile import KvSize, Piece


class InfeasibleError(ValueError):
    """No traffic at all can be served; the message says what is missing, and where."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Workers of one group, as far as they can prefill."""

    site: str
    #: Position in the datacenter's groups.
    group: int
    workers: Group

    @property
    def name(self) -> str:
        """For people: `east/H200`."""
        return f"{self.site}/{self.workers.hardware}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """A datacenter with so many decode workers."""

    #: Requests per second.
    decode_per_s: float
    #: By position of the group: workers that decode.
    decode_workers: Mapping[int, int]
    #: The convertible group whose last worker may be needed in part only; None without.
    marginal: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A serving datacenter."""

    site: str
    #: Of all requests, 0 to 1; those of all serving datacenters sum to 1.
    share: float
    lengths: LengthDistribution
    levels: tuple[Level, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Everything numbered: pools first, links behind them."""

    fleet: FleetModel
    pools: tuple[Pool, ...]
    links: tuple[Link, ...]
    served: tuple[Served, ...]
    kv: KvSize
    #: Mean of a request, > 0.
    output_tokens: float

    def link_number(self, link: int) -> int:
        """Number among all resources of a link, by its position."""
        return len(self.pools) + link

    def demands(
        self, curves: Mapping[tuple[int, int], Curve] | None = None
    ) -> tuple[DemandOptions, ...]:
        """
        Where each serving datacenter's requests can be prefilled.

        Args:
            curves: By positions of demand and option, another prefill time than the profile's.
        """
        other = curves or {}
        return tuple(
            DemandOptions(
                share=served.share,
                lengths=served.lengths,
                options=tuple(
                    Option(
                        pool=pool,
                        link=link,
                        time=other.get((number, position)) or self.time_of(pool),
                    )
                    for position, (pool, link) in enumerate(self.reach(served.site))
                ),
            )
            for number, served in enumerate(self.served)
        )

    def reach(self, site: str) -> list[tuple[int, int | None]]:
        """Numbers of the pools and links that a datacenter's requests can be prefilled by."""
        into = {
            link.from_site: self.link_number(position)
            for position, link in enumerate(self.links)
            if link.to_site == site
        }
        return [
            (number, into.get(pool.site))
            for number, pool in enumerate(self.pools)
            if pool.site == site or pool.site in into
        ]

    def time_of(self, pool: int) -> Curve:
        """Prefill time by length of a pool's workers."""
        prefill = self.pools[pool].workers.prefill
        assert prefill is not None
        return prefill.pieces()

    def kv_curve(self) -> Curve:
        """Bytes of KV by length."""
        return (Piece(from_tokens=0.0, c0=self.kv.state_bytes, c1=self.kv.bytes_per_token),)

    def decode_per_s(self, group: Group) -> float:
        """Requests per second that one worker of a group decodes; 0 for one that cannot."""
        return group.decode.requests_per_s(self.output_tokens) if group.decode else 0.0

    def rows(self, levels: Sequence[Level], lend: Mapping[str, float]) -> tuple[Row, ...]:
        """
        What each resource can do when serving datacenters have these levels.

        A marginal decode worker that is not needed whole lends the rest of its time to prefill: the
        pool may then use what decode leaves, and at most so large a part of each decode worker as `lend` says for its datacenter.
        """
        at = {
            served.site: (served, level) for served, level in zip(self.served, levels, strict=True)
        }
        found = []
        for number, pool in enumerate(self.pools):
            here = at.get(pool.site)
            decoding = here[1].decode_workers.get(pool.group, 0) if here else 0
            whole = float(pool.workers.workers - decoding)
            lend_max = lend.get(pool.site, 0.0)
            if here and lend_max > 0 and here[1].marginal == pool.group and decoding:
                served, level = here
                per_s = self.decode_per_s(pool.workers)
                others = level.decode_per_s - per_s * decoding
                found.append(
                    Row(
                        resource=number,
                        capacity=whole + decoding + others / per_s,
                        fixed=served.share / per_s,
                    )
                )
                found.append(Row(resource=number, capacity=whole + lend_max * decoding))
            elif whole > 0:
                found.append(Row(resource=number, capacity=whole))
        found += [
            Row(resource=self.link_number(position), capacity=link.capacity_bps / BITS_PER_BYTE)
            for position, link in enumerate(self.links)
        ]
        return tuple(found)


def lay_out(fleet: FleetModel, traffic: TrafficModel) -> Layout:
    """
    Number everything.

    Raises:
        InfeasibleError: Nothing could decode or prefill, or a serving datacenter could not; says
            what is missing where.
        ValueError: A number that has no meaning, such as no output at all.
    """
    _check(fleet, traffic)
    pools = tuple(
        Pool(site=site.name, group=position, workers=group)
        for site in fleet.sites
        for position, group in enumerate(site.groups)
        if group.prefill is not None and group.workers > 0
    )
    links = tuple(link for link in fleet.links if link.capacity_bps > 0)
    shares = _shares(fleet, traffic)
    layout = Layout(
        fleet=fleet,
        pools=pools,
        links=links,
        served=tuple(
            Served(
                site=site,
                share=share,
                lengths=lengths,
                levels=_levels(fleet, site, lengths, traffic.output_tokens),
            )
            for site, (share, lengths) in shares.items()
        ),
        kv=traffic.kv,
        output_tokens=traffic.output_tokens,
    )
    _check_reach(layout)
    return layout


def _check(fleet: FleetModel, traffic: TrafficModel) -> None:
    """Refuse what has no meaning, and a fleet that lacks a phase."""
    if not traffic.output_tokens > 0:
        raise ValueError(f"output_tokens = {traffic.output_tokens:g} must be above 0")
    groups = [group for site in fleet.sites for group in site.groups if group.workers > 0]
    if not any(group.decode for group in groups):
        raise InfeasibleError("no datacenter has a worker that can decode: nothing could answer")
    if not any(group.prefill for group in groups):
        raise InfeasibleError("no datacenter has a worker that can prefill: nothing could start")


def _shares(
    fleet: FleetModel, traffic: TrafficModel
) -> dict[str, tuple[float, LengthDistribution]]:
    """By serving datacenter its part of the requests, which sum to 1, and their lengths."""
    can = {
        site.name: sum(
            group.workers * group.decode.requests_per_s(traffic.output_tokens)
            for group in site.groups
            if group.decode is not None
        )
        for site in fleet.sites
    }
    if traffic.demands:
        wanted = {each.site: each for each in traffic.demands if each.share > 0}
        lacking = [name for name in wanted if not can.get(name)]
        if lacking or not wanted:
            raise InfeasibleError(
                f"{', '.join(lacking)}: requests are to be answered there, but no worker can decode"
                if lacking
                else "no datacenter has a share of the traffic"
            )
        total = sum(each.share for each in wanted.values())
        return {
            name: (each.share / total, each.lengths or traffic.lengths)
            for name, each in wanted.items()
        }
    total = sum(can.values())
    return {name: (rate / total, traffic.lengths) for name, rate in can.items() if rate > 0}


def _levels(
    fleet: FleetModel, name: str, lengths: LengthDistribution, output_tokens: float
) -> tuple[Level, ...]:
    """
    Decode capacities of a datacenter, by how many of its convertible workers decode.

    Of several convertible kinds those decode first that are better at it, compared with how they
    prefill a prompt of mean length.
    """
    site = fleet.site(name)
    assert site is not None
    rates = {
        position: group.decode.requests_per_s(output_tokens)
        for position, group in enumerate(site.groups)
        if group.decode is not None and group.workers > 0
    }
    typical = mean(lengths)

    def advantage(position: int) -> float:
        prefill = site.groups[position].prefill
        return rates[position] * prefill.prefill_s(typical) if prefill else 0.0

    at = {n: site.groups[n].workers for n in rates if not site.groups[n].is_convertible}
    per_s = sum(rates[n] * workers for n, workers in at.items())
    found = [Level(decode_per_s=per_s, decode_workers=dict(at))]
    for position in sorted(
        (n for n in rates if site.groups[n].is_convertible), key=advantage, reverse=True
    ):
        for _ in range(site.groups[position].workers):
            at[position] = at.get(position, 0) + 1
            per_s += rates[position]
            found.append(Level(decode_per_s=per_s, decode_workers=dict(at), marginal=position))
    return tuple(found)


def _check_reach(layout: Layout) -> None:
    """Every serving datacenter needs prefill: its own, or behind a link."""
    for served in layout.served:
        if not layout.reach(served.site):
            elsewhere = sorted({pool.site for pool in layout.pools})
            raise InfeasibleError(
                f"{served.site}: no worker there can prefill, and no link of any capacity leads "
                f"there from {' or '.join(elsewhere)}, which could"
            )
