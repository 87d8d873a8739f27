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
        #: As policies saw them last, by place; and those that have to be looked at anew.
        self._seen: list[LinkView | None] = [None] * len(self._links)
        self._row: tuple[LinkView, ...] = ()
        self._at = {name: at for at, name in enumerate(self._links)}
        self._stale: dict[str, None] = dict.fromkeys(self._links)
        #: Where in the views a link is, by its ends; sites that many have a link for each pair.
        self.places = {
            (link.config.from_datacenter, link.config.to_datacenter): at
            for at, link in enumerate(self._links.values())
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
                self._stale[link.config.link_id] = None

    def forget(self, worker_id: str) -> None:
        """A receiver has gone."""
        for name, link in self._links.items():
            link.forget(worker_id)
            if link.view is None:
                self._stale[name] = None

    def seed(self, reserved_bytes: Mapping[str, int], now_s: float) -> None:
        """
        Take what all routers have promised, from a snapshot: what is not our own is others'.

        Reservations outlive their transfers, so others' bytes are taken to move meanwhile.
        """
        for name, link in self._links.items():
            link.foreign_bytes = max(0, reserved_bytes.get(name, 0) - link.reserved_bytes)
            link.foreign_s = now_s
            self._look_again(name, link)

    def add(self, name: str | None, link_bytes: int) -> bool:
        """Count bytes that have to move, or have moved; false when there is no such link."""
        link = self._links.get(name) if name else None
        if link is None:
            return False
        link.reserved_bytes = max(0, link.reserved_bytes + link_bytes)
        self._look_again(link.config.link_id, link)
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
        self._look_again(link.config.link_id, link)
        return True

    def tick(self, now_s: float) -> bool:
        """Whether time alone has changed a link."""
        is_changed = False
        unix_s = self._wall_clock()
        for name, link in self._links.items():
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
                self._look_again(name, link)
                is_changed = True
        return is_changed

    def views(self, now_s: float) -> tuple[LinkView, ...]:
        """As policies see them, sorted by id."""
        if self._stale:
            unix_s = self._wall_clock()
            for name in self._stale:
                link = self._links[name]
                self._seen[self._at[name]] = link.view or link.look(
                    now_s, self._measured_within_s, self._scarcity, unix_s
                )
            self._stale.clear()
            self._row = tuple([seen for seen in self._seen if seen is not None])
        return self._row

    def _look_again(self, name: str, link: KnownLink) -> None:
        link.view = None
        self._stale[name] = None

    def bytes_total(self) -> dict[str, int]:
        """Bytes received over each since the live receivers started."""
        return {name: sum(link.bytes_total.values()) for name, link in self._links.items()}
