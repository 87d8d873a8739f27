"""Finds out whether a worker that broke off has died, and of which request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from controlplane.domain.cluster import WorkerView
from controlplane.router.services import Services

#: Neighbours of a silent worker that are asked whether anybody can be reached there.
_NEIGHBOURS_MAX: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """An attempt that ended with its worker."""

    #: The worker has said itself that its engine hangs; otherwise its process is looked for.
    is_certain: bool
    #: It may have got the job; whoever comes after a death is not to blame.
    was_there: bool
    #: Tokens of output now, and when the attempt began.
    tokens: int
    tokens_at_begin: int
    #: How long the attempt lasted.
    exposure_s: float


class Autopsy:
    """
    The worker lives that ended during one request.

    A link that breaks kills nobody, so a death counts only when the process is certainly gone.
    And a request is blamed only when it stood still: its attempt made no token, or ended at the
    very token at which the one before it had ended. One that had made progress was a bystander.
    """

    def __init__(self, services: Services, digest: str) -> None:
        self._services = services
        self._digest = digest
        #: The worker that ended last, its life, and what there was to see then.
        self._last: tuple[str, str, Case] | None = None

    async def examine(self, worker: WorkerView, case: Case) -> None:
        """A worker broke off, or said that its engine hangs: note it, and who is to blame."""
        if not case.is_certain and not await self._services.workers.has_died(
            worker.url, worker.incarnation, neighbours=self._neighbours(worker)
        ):
            return
        self._services.quarantine.died(worker.incarnation)
        if not case.was_there:
            return
        last, self._last = self._last, (worker.worker_id, worker.incarnation, case)
        is_the_same_token = last is not None and last[2].tokens == case.tokens
        if last is not None and is_the_same_token:
            self._blame(*last)
        if is_the_same_token or case.tokens == case.tokens_at_begin:
            self._blame(worker.worker_id, worker.incarnation, case)

    def _neighbours(self, worker: WorkerView) -> list[str]:
        """Where to ask whether the way to a worker's datacenter is open: of its others, the best."""
        others = [
            other
            for other in self._services.tracker.view().workers
            if other.datacenter == worker.datacenter and other.url != worker.url
        ]
        others.sort(key=lambda other: (other.is_suspect, other.is_ejected))
        return [other.url for other in others[:_NEIGHBOURS_MAX]]

    def _blame(self, worker_id: str, incarnation: str, case: Case) -> None:
        self._services.blame(self._digest, worker_id, incarnation, exposure_s=case.exposure_s)
