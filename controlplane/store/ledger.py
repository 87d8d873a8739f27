"""Reservations with expiry, as plain data: what `reserve.lua` keeps in sorted sets."""

from __future__ import annotations

from collections.abc import Callable

from controlplane.store.keys import Keys, amount_of
from controlplane.wire import Reservation


class Ledger:
    """Who has claimed how much where, and until when."""

    def __init__(self, *, clock: Callable[[], float], links_max: int) -> None:
        """
        Nothing is claimed.

        Args:
            clock: Monotonic seconds.
            links_max: Links that are listed.
        """
        self._clock = clock
        self._links_max = links_max
        #: Names of places and members as in Redis, so that both keep the same books.
        self._keys = Keys("memory")
        #: Expiry in seconds and amount by member, by place.
        self._places: dict[str, dict[str, tuple[float, int]]] = {}
        #: When the last claim on a link ends, by link.
        self._links: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"<Ledger {sum(map(len, self._places.values()))} claims>"

    def claim(self, reservation: Reservation) -> None:
        """Enter a reservation at all its places, or renew it there."""
        now_s = self._clock()
        decode = self._keys.reserved(reservation.decode_worker)
        for place, member in self._keys.claims(reservation):
            ttl_s = reservation.ttl_s if place == decode else reservation.prefill_ttl_s
            amount = amount_of(member.encode()) or 0
            self._places.setdefault(place, {})[member] = (now_s + ttl_s, amount)
        if reservation.link is not None:
            until_s = now_s + reservation.prefill_ttl_s
            self._links[reservation.link] = max(self._links.get(reservation.link, 0.0), until_s)
            if len(self._links) > self._links_max:
                del self._links[min(self._links, key=lambda link: (self._links[link], link))]

    def release(self, reservation: Reservation) -> list[bool]:
        """
        Strike a reservation out; twice does nothing.

        Returns:
            For the prefill worker, the decode worker and, if there is one, the link: whether it
            was there and not expired.
        """
        now_s = self._clock()
        return [
            self._places.get(place, {}).pop(member, (now_s, 0))[0] > now_s
            for place, member in self._keys.claims(reservation)
        ]

    def forget_worker(self, worker_id: str) -> None:
        """Strike out everything at a worker."""
        self._places.pop(self._keys.reserved(worker_id), None)

    def at_worker(self, worker_id: str) -> list[int]:
        """Tokens of each live reservation at a worker."""
        return self._amounts(self._keys.reserved(worker_id))

    def at_link(self, link_id: str) -> list[int]:
        """Bytes of each live reservation on a link."""
        return self._amounts(self._keys.link(link_id))

    def by_link(self) -> dict[str, int]:
        """Reserved bytes of each link that has a live reservation."""
        self._links = {link: until for link, until in self._links.items() if self.at_link(link)}
        return {link: sum(self.at_link(link)) for link in sorted(self._links)}

    def _amounts(self, place: str) -> list[int]:
        members = self._places.get(place, {})
        now_s = self._clock()
        for member in [name for name, (until_s, _) in members.items() if until_s <= now_s]:
            del members[member]
        return [amount for _, amount in members.values()]
