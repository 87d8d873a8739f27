"""Finds out whether a worker that broke off has died, and of which request."""

from __future__ import annotations

from controlplane.domain.cluster import WorkerView
from controlplane.router.services import Services


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
        #: The worker and its life that ended last, and the tokens of output then.
        self._last: tuple[str, str, int] | None = None

    async def examine(
        self, worker: WorkerView, *, was_there: bool, tokens: int, tokens_at_begin: int
    ) -> None:
        """
        A worker broke off.

        Args:
            worker: As it was chosen.
            was_there: It may have got the job; whoever comes after a death is not to blame.
            tokens: Tokens of output there are now.
            tokens_at_begin: And when its attempt began.
        """
        if not await self._services.workers.has_died(worker.url, worker.incarnation):
            return
        self._services.quarantine.died(worker.incarnation)
        if not was_there:
            return
        last, self._last = self._last, (worker.worker_id, worker.incarnation, tokens)
        is_the_same_token = last is not None and last[2] == tokens
        if last is not None and is_the_same_token:
            self._services.blame(self._digest, last[0], last[1])
        if is_the_same_token or tokens == tokens_at_begin:
            self._services.blame(self._digest, worker.worker_id, worker.incarnation)
