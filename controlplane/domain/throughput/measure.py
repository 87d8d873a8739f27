"""What given bands, roles and links come to: Eqs. 3 to 6 over every pool and link. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from controlplane.domain.plan import ShadowPrices, SiteRoles
from controlplane.domain.throughput.bands import Band
from controlplane.domain.throughput.curves import expected
from controlplane.domain.throughput.equations import Form, exact_prefill_s
from controlplane.domain.throughput.layout import Layout, Level
from controlplane.domain.throughput.problem import DemandOptions, Row
from controlplane.domain.throughput.solution import GroupRoles, Solution, Takes, bits

#: For each serving datacenter.
AllBands = Sequence[tuple[Band, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Roles and links, with the rows that follow from them."""

    layout: Layout
    levels: tuple[Level, ...]
    rows: tuple[Row, ...]
    form: Form

    @property
    def decode_bound_per_s(self) -> float:
        """Requests per second that can be decoded: Eq. 5, for the datacenter that is full first."""
        return min(
            level.decode_per_s / served.share
            for served, level in zip(self.layout.served, self.levels, strict=True)
        )


def loads_of(case: Case, bands: AllBands) -> dict[int, float]:
    """By resource, seconds or bytes that one request per second of all demands uses of it."""
    used: dict[int, float] = {}
    kv = case.layout.kv_curve()
    for demand, own in zip(case.layout.demands(), bands, strict=True):
        for option, seconds in prefill_seconds(case, demand, own).items():
            pool, link = demand.options[option].pool, demand.options[option].link
            used[pool] = used.get(pool, 0.0) + demand.share * seconds
            if link is not None:
                sent = sum(
                    band.parts[option] * expected(kv, demand.lengths, band.above, band.up_to)
                    for band in own
                    if option in band.parts
                )
                used[link] = used.get(link, 0.0) + demand.share * sent
    return used


def prefill_seconds(case: Case, demand: DemandOptions, bands: Sequence[Band]) -> dict[int, float]:
    """By option, mean prefill time per request of a demand, in the case's form."""
    if case.form == "mean_length":
        return {
            option: part * _prefill_s(case, demand.options[option].pool, tokens)
            for option, (part, tokens) in mean_lengths(demand, bands).items()
        }
    found: dict[int, float] = {}
    for band in bands:
        for option, part in band.parts.items():
            prefill = case.layout.pools[demand.options[option].pool].workers.prefill
            assert prefill is not None
            seconds = exact_prefill_s(prefill, demand.lengths, band.above, band.up_to)
            found[option] = found.get(option, 0.0) + part * seconds
    return found


def mean_lengths(demand: DemandOptions, bands: Sequence[Band]) -> dict[int, tuple[float, float]]:
    """By option that gets any: its part of the requests, and their mean length."""
    sums: dict[int, tuple[float, float]] = {}
    for band in bands:
        share, tokens, _ = demand.lengths.moments(band.above, band.up_to)
        for option, part in band.parts.items():
            before = sums.get(option, (0.0, 0.0))
            sums[option] = (before[0] + part * share, before[1] + part * tokens)
    return {option: (p, tokens / p) for option, (p, tokens) in sums.items() if p > 0}


def _prefill_s(case: Case, pool: int, tokens: float) -> float:
    prefill = case.layout.pools[pool].workers.prefill
    assert prefill is not None
    return prefill.prefill_s(tokens)


def rate_of(case: Case, bands: AllBands) -> float:
    """`Lambda_max`, requests per second (Eq. 6)."""
    if not all(map(_serves_all, case.layout.demands(), bands)):
        return 0.0
    loads = loads_of(case, bands)
    present = {row.resource for row in case.rows}
    if any(load > 0 and number not in present for number, load in loads.items()):
        return 0.0
    rho = max((loads.get(row.resource, 0.0) + row.fixed) / row.capacity for row in case.rows)
    return min(1 / rho if rho > 0 else math.inf, case.decode_bound_per_s)


def _serves_all(demand: DemandOptions, bands: Sequence[Band]) -> bool:
    """Whether every band with requests in it has somebody to take them."""
    return all(
        band.parts or demand.lengths.moments(band.above, band.up_to)[0] <= 0 for band in bands
    )


def report(
    case: Case, bands: AllBands, *, bound_per_s: float, prices: Mapping[int, float]
) -> Solution:
    """
    Bands in words, with all they come to.

    Args:
        case: Roles and links.
        bands: For each serving datacenter.
        bound_per_s: What no bands could exceed.
        prices: Of resources, requests per unit; ignored where decode is what limits.
    """
    layout = case.layout
    rate = rate_of(case, bands)
    loads = loads_of(case, bands)
    is_decode = rate >= case.decode_bound_per_s * (1 - 1e-9)
    groups = _groups(case, rate, loads)
    number_of = {link.link_id: layout.link_number(n) for n, link in enumerate(layout.links)}
    return Solution(
        form=case.form,
        throughput_per_s=rate,
        bound_per_s=max(rate, min(bound_per_s, case.decode_bound_per_s)),
        threshold_tokens=_thresholds(layout, bands),
        roles=_roles(layout, groups),
        groups=groups,
        bands={
            served.site: tuple(_takes(layout, number, band) for band in own)
            for number, (served, own) in enumerate(zip(layout.served, bands, strict=True))
        },
        offloaded_share={
            served.site: _offloaded(demand, own)
            for served, demand, own in zip(layout.served, layout.demands(), bands, strict=True)
        },
        utilisation=_utilisation(case, rate, loads),
        egress_bps={
            name: bits(rate * loads.get(number, 0.0)) for name, number in number_of.items()
        },
        capacity_bps={link.link_id: link.capacity_bps for link in layout.links},
        prices=_decode_prices(case) if is_decode else _prices(case, prices),
    )


def _groups(case: Case, rate: float, loads: Mapping[int, float]) -> tuple[GroupRoles, ...]:
    """What each group does at saturation."""
    layout = case.layout
    level_of = {s.site: level for s, level in zip(layout.served, case.levels, strict=True)}
    pool_of = {(pool.site, pool.group): number for number, pool in enumerate(layout.pools)}
    found = []
    for site in layout.fleet.sites:
        level = level_of.get(site.name)
        for position, group in enumerate(site.groups):
            decoding = level.decode_workers.get(position, 0) if level else 0
            number = pool_of.get((site.name, position))
            whole = group.workers - decoding if number is not None else 0
            used = rate * loads.get(number, 0.0) if number is not None else 0.0
            lends = level is not None and level.marginal == position and used > whole
            found.append(
                GroupRoles(
                    site=site.name,
                    hardware=group.hardware,
                    prefill_workers=whole,
                    decode_workers=decoding,
                    lent_workers=used - whole if lends and used - whole > _LENT_MIN else 0.0,
                )
            )
    return tuple(found)


#: Less time than this is rounding, not a loan; in workers.
_LENT_MIN = 1e-6


def _roles(layout: Layout, groups: Sequence[GroupRoles]) -> dict[str, SiteRoles]:
    """Targets of datacenters with convertible workers: those workers together."""
    found: dict[str, SiteRoles] = {}
    kinds = [group for site in layout.fleet.sites for group in site.groups]
    for kind, group in zip(kinds, groups, strict=True):
        if kind.is_convertible:
            before = found.get(group.site, SiteRoles(prefill_workers=0, decode_workers=0))
            found[group.site] = SiteRoles(
                prefill_workers=before.prefill_workers + group.prefill_workers,
                decode_workers=before.decode_workers + group.decode_workers,
                lent_workers=before.lent_workers + group.lent_workers,
            )
    return found


def _thresholds(layout: Layout, bands: AllBands) -> dict[str, float]:
    """By link id: where the first band begins that its datacenter has a part of."""
    found = {
        link.link_id: math.inf
        for link in layout.links
        if any(pool.site == link.from_site for pool in layout.pools)
        and any(served.site == link.to_site for served in layout.served)
    }
    for served, own in zip(layout.served, bands, strict=True):
        reach = layout.reach(served.site)
        for band in own:
            mixed = any(reach[option][1] is None for option in band.parts)
            for option in band.parts:
                pool, link = reach[option]
                if link is not None:
                    name = f"{layout.pools[pool].site}>{served.site}"
                    # A length that is shared with the band below is where that band ends.
                    begins = band.up_to if mixed else max(band.above, 0.0)
                    found[name] = min(found[name], begins)
    return found


def _takes(layout: Layout, number: int, band: Band) -> Takes:
    reach = layout.reach(layout.served[number].site)
    parts: dict[str, float] = {}
    for option, part in band.parts.items():
        site = layout.pools[reach[option][0]].site
        parts[site] = parts.get(site, 0.0) + part
    return Takes(above=band.above, up_to=band.up_to, parts=parts)


def _offloaded(demand: DemandOptions, bands: Sequence[Band]) -> float:
    return sum(
        part
        for option, (part, _) in mean_lengths(demand, bands).items()
        if demand.options[option].link is not None
    )


def _utilisation(case: Case, rate: float, loads: Mapping[int, float]) -> dict[str, float]:
    """By name, at saturation; a pool that lends is as full as its fullest limit."""
    layout = case.layout
    found: dict[str, float] = {}
    for row in case.rows:
        used = rate * (loads.get(row.resource, 0.0) + row.fixed) / row.capacity
        if row.resource < len(layout.pools):
            name = f"prefill {layout.pools[row.resource].name}"
        else:
            name = f"link {layout.links[row.resource - len(layout.pools)].link_id}"
        found[name] = max(found.get(name, 0.0), used)
    for served, level in zip(layout.served, case.levels, strict=True):
        found[f"decode {served.site}"] = rate * served.share / level.decode_per_s
    return found


def _decode_prices(case: Case) -> ShadowPrices:
    """Where decode limits, a slot brings requests and nothing else does."""
    bound = case.decode_bound_per_s
    full = [
        (served, level)
        for served, level in zip(case.layout.served, case.levels, strict=True)
        if level.decode_per_s / served.share <= bound * (1 + 1e-9)
    ]
    return ShadowPrices(
        decode_slot_per_s={
            served.site: bound / (_slots(case.layout, served.site, level) * len(full))
            for served, level in full
        }
    )


def _slots(layout: Layout, site: str, level: Level) -> float:
    """Decode slots of a datacenter at a level."""
    found = layout.fleet.site(site)
    assert found is not None
    return sum(
        workers * decode.slots
        for position, workers in level.decode_workers.items()
        if (decode := found.groups[position].decode) is not None
    )


def _prices(case: Case, prices: Mapping[int, float]) -> ShadowPrices:
    """Duals of the linear program, by datacenter and link; of several groups their mean by workers."""
    layout = case.layout
    sums: dict[str, list[float]] = {}
    slots: dict[str, float] = {}
    for number, pool in enumerate(layout.pools):
        total = sums.setdefault(pool.site, [0.0, 0.0])
        total[0] += prices.get(number, 0.0) * pool.workers.workers
        total[1] += pool.workers.workers
    for number, served in enumerate(layout.served):
        level = case.levels[number]
        for position, pool in enumerate(layout.pools):
            lends = any(row.resource == position and row.fixed for row in case.rows)
            decode = pool.workers.decode
            if lends and pool.site == served.site and level.marginal == pool.group and decode:
                # Decode takes from the same workers' time.
                slots[served.site] = prices.get(position, 0.0) / decode.slots
    return ShadowPrices(
        prefill_per_s={site: total / count for site, (total, count) in sums.items() if total > 0},
        decode_slot_per_s=slots,
        link_per_byte={
            link.link_id: price
            for number, link in enumerate(layout.links)
            if (price := prices.get(layout.link_number(number), 0.0)) > 0
        },
    )
