"""The links of a router: what it promised on them, what receivers measured, and whether they hold."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from controlplane.config import LinkConfig
from controlplane.domain import holddown
from controlplane.domain.cluster import LinkView
from controlplane.domain.scarcity import ScarcityRules
from controlplane.router.known import KnownLink
from controlplane.wire import WorkerBeat

#: What others have promised is shown anew when it has drained for so long.
_DRAIN_LOOK_S: Final = 1.0

#: A link that was used within this is probed like those into the router's own datacenter.
_IN_USE_S: Final = 60.0


class KnownLinks:
    """Configured links by id; what workers say cannot make a link."""

    def __init__(
        self,
        links: Sequence[LinkConfig],
        *,
        rules: holddown.HoldDownRules,
        measured_within_s: float,
        scarcity: ScarcityRules | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._rules = rules
        self._measured_within_s = measured_within_s
        self._scarcity = scarcity or ScarcityRules()
        self._wall_clock = wall_clock
        self._links = {
            link.link_id: KnownLink(link) for link in sorted(links, key=lambda one: one.link_id)
        }

    def __repr__(self) -> str:
        return f"<KnownLinks {sorted(self._links)}>"

    def items(self) -> list[tuple[str, KnownLink]]:
        """All links by id, sorted."""
        return list(self._links.items())

    def report(self, beat: WorkerBeat, now_s: float) -> None:
        """Take what a receiver measured."""
        for report in beat.links:
            link = self._links.get(f"{report.from_datacenter}>{report.to_datacenter}")
            if link is not None:
                link.report(beat.worker_id, report, now_s, age_s=beat.age_s)

    def forget(self, worker_id: str) -> None:
        """A receiver has gone."""
        for link in self._links.values():
            link.forget(worker_id)

    def seed(self, reserved_bytes: Mapping[str, int], now_s: float) -> None:
        """
        Take what all routers have promised, from a snapshot: what is not our own is others'.

        Reservations outlive their transfers, so others' bytes are taken to move meanwhile.
        """
        for name, link in self._links.items():
            link.foreign_bytes = max(0, reserved_bytes.get(name, 0) - link.reserved_bytes)
            link.foreign_s = now_s
            link.view = None

    def add(self, name: str | None, link_bytes: int) -> bool:
        """Count bytes that have to move, or have moved; false when there is no such link."""
        link = self._links.get(name) if name else None
        if link is None:
            return False
        link.reserved_bytes = max(0, link.reserved_bytes + link_bytes)
        link.view = None
        return True

    def tried(self, name: str | None, now_s: float) -> None:
        """A request goes over a link: the first one after a hold is a trial."""
        link = self._links.get(name) if name else None
        if link is not None:
            link.health = holddown.tried(link.health, now_s, self._rules)
            link.used_s = now_s

    def is_in_use(self, name: str, now_s: float) -> bool:
        """A request was sent over a link lately."""
        link = self._links.get(name)
        return link is not None and now_s - link.used_s <= _IN_USE_S

    def probed(self, name: str, now_s: float, *, is_answered: bool, asked_s: float) -> bool:
        """Take in what probes found; whether that changes what policies see."""
        link = self._links.get(name)
        if link is None:
            return False
        was_down = link.is_down(now_s)
        link.health = holddown.probed(
            link.health, is_answered=is_answered, asked_s=asked_s, now_s=now_s, rules=self._rules
        )
        return self._has_turned(link, now_s, was_down=was_down)

    def judge(self, name: str, source: str, now_s: float, *, is_ok: bool) -> bool:
        """Take in how a transfer from a worker ended; whether that changes what policies see."""
        link = self._links.get(name)
        if link is None:
            return False
        was_down = link.is_down(now_s)
        link.health = (
            holddown.succeeded(link.health, now_s)
            if is_ok
            else holddown.failed(link.health, source, now_s, self._rules)
        )
        return self._has_turned(link, now_s, was_down=was_down)

    def _has_turned(self, link: KnownLink, now_s: float, *, was_down: bool) -> bool:
        if link.is_down(now_s) == was_down:
            return False
        link.view = None
        return True

    def tick(self, now_s: float) -> bool:
        """Whether time alone has changed a link."""
        is_changed = False
        unix_s = self._wall_clock()
        for link in self._links.values():
            is_other_rate = link.estimate(now_s)
            seen = link.view
            if seen is not None and (
                is_other_rate
                or seen.is_down != link.is_down(now_s)
                or seen.is_measured != link.is_measured(now_s, self._measured_within_s)
                or (link.foreign_bytes and now_s - link.looked_s >= _DRAIN_LOOK_S)
                or seen.is_scarce != link.judged(seen, now_s, self._scarcity).is_scarce
                or seen.egress_price_per_gb != link.config.tariff.price_at(unix_s)
            ):
                link.view = None
                is_changed = True
        return is_changed

    def views(self, now_s: float) -> tuple[LinkView, ...]:
        """As policies see them, sorted by id."""
        within_s = self._measured_within_s
        stale = any(link.view is None for link in self._links.values())
        unix_s = self._wall_clock() if stale else 0.0
        return tuple(
            [
                link.view or link.look(now_s, within_s, self._scarcity, unix_s)
                for link in self._links.values()
            ]
        )

    def bytes_total(self) -> dict[str, int]:
        """Bytes received over each since the live receivers started."""
        return {name: sum(link.bytes_total.values()) for name, link in self._links.items()}
