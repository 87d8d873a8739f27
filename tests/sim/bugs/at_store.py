"""Bugs of the store and of how it is asked."""

from __future__ import annotations

from typing import Any

from sim.bugs.plant import Patch, bug

from controlplane.store.breaker import Breaker
from controlplane.store.ledger import Ledger
from controlplane.store.roster import Roster


@bug("a claim is granted at a worker's earlier life", "kill")
def reserve_ignores_incarnation(patch: Patch) -> None:
    patch.set(Roster, "is_live", lambda self, name, incarnation: self.find(name) is not None)


@bug("an older heartbeat replaces a newer one", "delay")
def old_beat_wins(patch: Patch) -> None:
    def change(real: Any) -> Any:
        def report(self: Roster, beat: Any, *, ttl_s: float) -> Any:
            known = self.find(beat.worker_id)
            if known is not None and beat.sequence < known.beat.sequence:
                known.beat = known.beat.model_copy(update={"sequence": beat.sequence - 1})
            return real(self, beat, ttl_s=ttl_s)

        return report

    patch.wrap(Roster, "report", change)


@bug("the inventory of a life survives its restart", "kill")
def stale_inventory(patch: Patch) -> None:
    def change(real: Any) -> Any:
        def report(self: Roster, beat: Any, *, ttl_s: float) -> Any:
            known = self.find(beat.worker_id)
            stored = dict(known.stored) if known is not None else {}
            reported = real(self, beat, ttl_s=ttl_s)
            if known is not None and known.beat.incarnation != beat.incarnation:
                now = self._workers[beat.worker_id]
                now.stored = {**stored, **now.stored}
                full = beat.inventory.model_copy(update={"stored": now.stored})
                news = beat.model_copy(update={"inventory": full})
                return type(reported)(
                    wants_full_inventory=False, news=news, is_replaced=reported.is_replaced
                )
            return reported

        return report

    patch.wrap(Roster, "report", change)


@bug("the breaker never closes again", "store_kill")
def breaker_stays_open(patch: Patch) -> None:
    def change(real: Any) -> Any:
        def succeeded(self: Breaker) -> None:
            if not self.is_open:
                real(self)

        return succeeded

    patch.wrap(Breaker, "succeeded", change)

    def allows(self: Breaker) -> bool:
        return not self.is_open

    patch.set(Breaker, "allows", allows)


@bug("claims never end by themselves")
def claims_never_expire(patch: Patch) -> None:
    def change(real: Any) -> Any:
        def claim(self: Ledger, reservation: Any) -> None:
            real(
                self,
                reservation.model_copy(update={"ttl_s": 3600.0, "prefill_ttl_s": 3600.0}),
            )

        return claim

    patch.wrap(Ledger, "claim", change)
