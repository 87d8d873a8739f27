"""The step before a prefill whose placement copies a cached prefix: ask its holder where to read it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from controlplane.domain.cluster import ClusterView, WorkerView, link_id
from controlplane.domain.decision import Decision
from controlplane.domain.tokens import TokenIds
from controlplane.errors import PeerError
from controlplane.router.incoming import Incoming
from controlplane.router.workers import WorkerClient
from controlplane.wire import KvLocation, PrefixAsk


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyStep:
    """What was asked of the holder of a prefix, for the record; what moved is in the report."""

    from_worker: str
    from_datacenter: str
    to_datacenter: str
    #: Leading tokens of the prompt that were asked for, and those that it could give.
    asked_tokens: int
    exported_tokens: int = 0
    #: Code of what went wrong; empty when it gave something.
    failure: str = ""

    @property
    def link(self) -> str | None:
        """The link that the copy crosses; None inside a datacenter."""
        if self.from_datacenter == self.to_datacenter:
            return None
        return link_id(self.from_datacenter, self.to_datacenter)


@dataclass(frozen=True, slots=True)
class FoundPrefix:
    """A step, and where the prefix can be read."""

    step: CopyStep
    location: KvLocation | None = None


async def find_prefix(
    workers: WorkerClient,
    incoming: Incoming,
    decision: Decision,
    view: ClusterView,
    *,
    job_id: str,
    tokens: TokenIds,
) -> FoundPrefix | None:
    """
    Where the prefix of a placement can be copied from. Best effort: what fails is computed.

    Args:
        workers: Asks the holder, within `prefix_ask_timeout_s`.
        incoming: Whose prompt it is.
        decision: Its placement names the holder, if any.
        view: That was decided on; a holder that is not there, or cannot export, is not asked.
        job_id: Of the prefill.
        tokens: Prompt, and output behind it.

    Returns:
        None when the placement copies nothing.
    """
    placement = decision.placement
    if placement is None:
        return None
    name = placement.copy_from_worker
    count = min(placement.copy_tokens, len(tokens) - 1)
    if name is None or count < 1 or name == placement.prefill_worker:
        return None
    holder = view.worker(name)
    step = CopyStep(
        from_worker=name,
        from_datacenter=holder.datacenter if holder is not None else "",
        to_datacenter=placement.prefill_datacenter,
        asked_tokens=count,
        failure="cannot_export",
    )
    if holder is None or not holder.can_export_prefix:
        return FoundPrefix(step)
    return await _ask(
        workers, _ask_of(holder, incoming, job_id, tokens), holder, tokens.head(count), step
    )


def _ask_of(holder: WorkerView, incoming: Incoming, job_id: str, tokens: TokenIds) -> PrefixAsk:
    return PrefixAsk(
        request_id=job_id,
        incarnation=holder.incarnation,
        fingerprint=holder.fingerprint,
        scope=incoming.scope,
        token_width_bytes=tokens.width_bytes,
    )


async def _ask(
    workers: WorkerClient, ask: PrefixAsk, holder: WorkerView, tokens: TokenIds, step: CopyStep
) -> FoundPrefix:
    try:
        location = await workers.export_prefix(holder.url, ask, tokens)
    except PeerError as error:
        return FoundPrefix(replace(step, failure=error.code))
    if location is None:
        return FoundPrefix(replace(step, failure="prefix_gone"))
    count = location.manifest.token_count
    return FoundPrefix(replace(step, exported_tokens=count, failure=""), location)
