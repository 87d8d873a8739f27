"""What this router has claimed of workers and links, until they count it themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from controlplane.router.known_links import KnownLinks
from controlplane.router.members import Members
from controlplane.wire import ReserveReply


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What one attempt of a request takes, as predicted when it was decided."""

    prefill_worker: str
    #: The life it was claimed of: a successor owes nothing for it.
    prefill_incarnation: str
    #: Uncached tokens.
    prefill_tokens: int
    decode_worker: str
    decode_incarnation: str
    #: None inside a datacenter.
    link: str | None = None
    link_bytes: int = 0
    #: The link that a cached prefix is copied over before the prefill; None without one.
    copy_link: str | None = None
    copy_bytes: int = 0
    #: Seconds of prefill that it is predicted to take.
    prefill_s: float = 0.0


class ClaimBook:
    """Adds claims to what workers and links have said of themselves, and takes them off again."""

    def __init__(
        self,
        members: Members,
        links: KnownLinks,
        clock: Callable[[], float],
        on_change: Callable[[], None],
    ) -> None:
        """
        Nothing is claimed.

        Args:
            members: Whose counts are added to.
            links: Whose bytes are added to.
            clock: Monotonic seconds.
            on_change: Told when the picture is another one.
        """
        self._members = members
        self._links = links
        self._clock = clock
        self._on_change = on_change

    def take(self, claim: Claim) -> None:
        """Count a claim."""
        self._add_prefill(claim, 1)
        self._add(claim.decode_worker, claim.decode_incarnation, 1)
        now_s = self._clock()
        for link, link_bytes in _moved(claim):
            self._links.tried(link, now_s)
            self._add_link(link, link_bytes)

    def correct(self, claim: Claim, reply: ReserveReply) -> None:
        """
        Take in what the store said of a reservation.

        Reservations of decode workers last as long as the requests, so their number is that of all
        routers' requests. Those of prefill workers outlive the prefill; they are believed only when
        they stood against this one.
        """
        self._correct(claim.decode_worker, claim.decode_incarnation, reply.decode_reserved_requests)
        if reply.refused_by == "prefill_full":
            self._correct(
                claim.prefill_worker, claim.prefill_incarnation, reply.prefill_reserved_requests
            )

    def end_prefill(self, claim: Claim) -> None:
        """The prefill part is over and its bytes have moved; decode goes on."""
        self._add_prefill(claim, -1)
        for link, link_bytes in _moved(claim):
            self._add_link(link, -link_bytes)

    def end_decode(self, claim: Claim) -> None:
        """The decode part is over."""
        self._add(claim.decode_worker, claim.decode_incarnation, -1)

    def _add_prefill(self, claim: Claim, sign: int) -> None:
        self._add(
            claim.prefill_worker,
            claim.prefill_incarnation,
            sign,
            sign * claim.prefill_tokens,
            sign * claim.prefill_s,
        )

    def _add(
        self,
        worker_id: str,
        incarnation: str,
        requests: int,
        tokens: int = 0,
        prefill_s: float = 0.0,
    ) -> None:
        known = self._members.living(worker_id, incarnation)
        if known is not None:
            known.delta_requests += requests
            known.delta_tokens += tokens
            known.delta_s += prefill_s
            self._members.touch(worker_id)
            self._on_change()

    def _correct(self, worker_id: str, incarnation: str, reserved_requests: int) -> None:
        known = self._members.living(worker_id, incarnation)
        if known is not None:
            known.reserved_requests = reserved_requests - known.delta_requests
            self._members.touch(worker_id)
            self._on_change()

    def _add_link(self, name: str | None, link_bytes: int) -> None:
        if self._links.add(name, link_bytes):
            self._on_change()


def _moved(claim: Claim) -> tuple[tuple[str | None, int], tuple[str | None, int]]:
    """Links that bytes of a claim go over, and how many."""
    return (claim.link, claim.link_bytes), (claim.copy_link, claim.copy_bytes)
