"""What a router remembers of each worker and each link, and how policies see it."""

from __future__ import annotations

from dataclasses import dataclass, field

from controlplane.config import LinkConfig
from controlplane.domain.cluster import LinkView, WorkerView
from controlplane.wire import WorkerBeat


@dataclass(slots=True)
class KnownWorker:
    """A worker: its last beat, and own claims and releases since that beat arrived."""

    beat: WorkerBeat
    seen_s: float
    suspect_until_s: float = 0.0
    delta_requests: int = 0
    delta_tokens: int = 0
    #: As policies see it; None when something has changed.
    view: WorkerView | None = None

    def look(self, now_s: float) -> WorkerView:
        """Make the view anew."""
        beat = self.beat
        self.view = WorkerView(
            worker_id=beat.worker_id,
            datacenter=beat.datacenter,
            role=beat.role,
            incarnation=beat.incarnation,
            url=beat.url,
            model=beat.model,
            fingerprint=beat.fingerprint,
            block_tokens=beat.block_tokens,
            context_tokens_max=beat.context_tokens_max,
            slots=beat.slots,
            requests_max=beat.requests_max,
            is_draining=beat.is_draining,
            is_suspect=now_s < self.suspect_until_s,
            pending_requests=max(0, beat.load.queue_requests + self.delta_requests),
            pending_tokens=max(0, beat.load.queue_tokens + self.delta_tokens),
            prefill_s_per_token=beat.profile.prefill_s_per_token,
            prefill_fixed_s=beat.profile.prefill_fixed_s,
            decode_step_s=beat.profile.decode_step_s,
            kv_bytes_per_token=beat.profile.kv_bytes_per_token,
            kv_state_bytes=beat.profile.kv_state_bytes,
        )
        return self.view


@dataclass(slots=True)
class KnownLink:
    """A link: what this router promised on it, and what receivers measured, by worker."""

    config: LinkConfig
    reserved_bytes: int = 0
    goodput_bps: dict[str, float] = field(default_factory=dict)
    rtt_s: dict[str, float] = field(default_factory=dict)
    bytes_total: dict[str, int] = field(default_factory=dict)
    #: As policies see it; None when something has changed.
    view: LinkView | None = None

    def look(self) -> LinkView:
        """Make the view anew."""
        self.view = LinkView(
            from_datacenter=self.config.from_datacenter,
            to_datacenter=self.config.to_datacenter,
            capacity_bps=self.config.capacity_bps,
            goodput_bps=max(self.goodput_bps.values(), default=0.0),
            rtt_s=max(self.rtt_s.values(), default=0.0) or self.config.emulated_delay_ms / 1000,
            reserved_bytes=self.reserved_bytes,
        )
        return self.view
