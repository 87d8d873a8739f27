"""An emulated worker: takes the time and holds the bytes that its hardware's profile says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Final

from controlplane.domain.cluster import Role
from controlplane.domain.prefix import BlockHash
from controlplane.domain.throughput.profile import QuadraticPrefill
from controlplane.errors import WorkerRefused
from controlplane.replay.cache import BlockCache
from controlplane.replay.decoding import DecodeEngine, DecodeRun
from controlplane.replay.flows import Receiver, SharedLink
from controlplane.replay.prefilling import PrefillEngine, PrefillRun
from controlplane.replay.spec import Hardware, WorkerSpec, WorldSpec
from controlplane.wire import LENT_SUFFIX, KvLocation, KvManifest, Load, Profile, WorkerBeat
from workers.links import LinkMeters

#: Lengths where the curve that a worker tells of meets its profile.
_FITTED_TOKENS: Final = (0, 16_384, 65_536)

MODEL = "replay"
FINGERPRINT = "replay-1"

#: The link between two datacenters; None inside one.
LinkTo = Callable[[str, str], SharedLink | None]


class EmulatedWorker:
    """One process: an engine for each role, one cache, and the lives it is registered with."""

    def __init__(
        self, spec: WorkerSpec, world: WorldSpec, loop: asyncio.AbstractEventLoop, link_to: LinkTo
    ) -> None:
        """
        A worker in its first life.

        Args:
            spec: Where and what it is.
            world: For block size, context and bounds.
            loop: Its time and timers.
            link_to: The link between two datacenters.
        """
        self.spec = spec
        self.world = world
        self.loop = loop
        self.is_alive = True
        #: Part of its time that a decode worker lends to prefill.
        self.lend_share = 0.0
        #: Lives so far, for incarnations.
        self.lives_total = 0
        self.url = f"http://{spec.worker_id.replace('/', '.')}"
        #: What all registrations of this hardware tell.
        self.told = _told(spec.hardware)
        self.links = LinkMeters(spec.datacenter)
        self._receivers: dict[str, Receiver] = {}
        self._link_to = link_to
        hardware, block = spec.hardware, world.block_tokens
        self.cache = BlockCache(hardware.cache_blocks, snapshot_blocks=hardware.snapshot_blocks)
        self.prefilling = PrefillEngine(hardware, self.cache, loop, block=block)
        #: Computes in the time that decode lends.
        self.borrowing = PrefillEngine(hardware, self.cache, loop, block=block)
        self.decoding = DecodeEngine(
            hardware.decode, self.cache, loop, block=block, forget=self._forget
        )
        self._segments: dict[PrefillRun, PrefillEngine] = {}
        #: Seconds that it had each role, up to `_role_since_s`.
        self._role_s: dict[Role, float] = {"prefill": 0.0, "decode": 0.0}
        self._role_since_s = 0.0
        self.main = Life(self, spec.role, born_s=-_OLD_S)
        self.lent: Life | None = None

    def __repr__(self) -> str:
        return f"<EmulatedWorker {self.spec.worker_id} {self.main.role}>"

    @property
    def datacenter(self) -> str:
        """Where it is."""
        return self.spec.datacenter

    @property
    def lives(self) -> tuple[Life, ...]:
        """What it is registered as."""
        return (self.main,) if self.lent is None else (self.main, self.lent)

    @property
    def requests(self) -> int:
        """Requests that it has, in any role."""
        return self.prefilling.requests + self.borrowing.requests + self.decoding.requests

    def role_s(self, role: Role) -> float:
        """Seconds that it has had a role."""
        current = self.loop.time() - self._role_since_s if self.main.role == role else 0.0
        return self._role_s[role] + current

    # --- KV -----------------------------------------------------------------------------------

    def fetch(self, stream: DecodeRun, run: PrefillRun, source: Life) -> None:
        """Let a decode have the KV of a prefill."""
        site = source.worker.datacenter
        link = self._link_to(site, self.datacenter)
        stream.source = run
        stream.held_tokens = min(run.tokens, self.decoding.held_tokens(stream.hashes))
        self.decoding.take(stream)
        self._segments[run] = source.prefilling
        run.fetch(
            stream.held_tokens,
            link,
            self._receiver(site) if link is not None else None,
            now_s=self.loop.time(),
            arrived=partial(self._arrived, site, link, run, stream),
            lost=partial(self._lost, stream),
        )
        if run.is_over:
            self._lost(stream, False)

    def catch_up(self) -> None:
        """Count what has come over links so far."""
        for site in self._receivers:
            link = self._link_to(site, self.datacenter)
            if link is not None:
                link.catch_up()

    def _receiver(self, site: str) -> Receiver:
        found = self._receivers.get(site)
        if found is None:
            traffic = self.links.traffic(site)
            assert traffic is not None, "another datacenter"
            found = self._receivers[site] = Receiver(traffic)
        return found

    def _arrived(
        self, site: str, link: SharedLink | None, run: PrefillRun, stream: DecodeRun
    ) -> None:
        """All KV is here, but for the round trip of asking for the last of it."""
        flow = run.flow
        if link is None or flow is None:
            self.decoding.arrived(stream)
            return
        self.links.add(
            site,
            moved_bytes=run.transfer_bytes,
            goodput_bps=flow.moved_bytes * 8 / flow.moving_s if flow.moving_s > 0 else 0.0,
            rtt_s=link.rtt_s,
        )
        if link.rtt_s:
            self.loop.call_later(link.rtt_s, self.decoding.arrived, stream)
        else:
            self.decoding.arrived(stream)

    def _lost(self, stream: DecodeRun, is_stalled: bool) -> None:  # noqa: FBT001 - a callback
        if stream.source is not None:
            self._forget(stream.source)
        self.decoding.lost(stream, is_stalled=is_stalled)

    def _forget(self, run: PrefillRun) -> None:
        source = self._segments.pop(run, None)
        if source is not None:
            source.forget(run.job_id)

    # --- Lives --------------------------------------------------------------------------------

    def die(self) -> None:
        """The process ends without a word."""
        self.is_alive = False
        for engine in (self.prefilling, self.borrowing):
            engine.lose_all()
        self.decoding.lose_all()
        self._segments.clear()
        self.cache.clear()

    def rise(self) -> None:
        """A new process takes its place, in the role that it had."""
        self.is_alive = True
        self.links, self._receivers = LinkMeters(self.datacenter), {}
        self.lend(0.0)
        self.main = Life(self, self.main.role, born_s=self.loop.time())

    def reborn(self, role: Role) -> None:
        """It has another role from now on; its cache stays."""
        now_s = self.loop.time()
        self._role_s[self.main.role] += now_s - self._role_since_s
        self._role_since_s = now_s
        self.cache.forget(self.main.inventory)
        self.main = Life(self, role, born_s=now_s)

    def lend(self, share: float) -> None:
        """Lend so much from now on; what is under way goes on as it began."""
        self.lend_share, self.decoding.share = share, 1.0 - share
        if share:
            self.borrowing.share = share
            if self.lent is None:
                self.lent = Life(self, "prefill", born_s=self.loop.time(), is_lent=True)
        elif self.lent is not None:
            self.cache.forget(self.lent.inventory)
            self.lent = None


class Life:
    """One registration of a worker: a role, an incarnation, and what it says of itself."""

    def __init__(
        self, worker: EmulatedWorker, role: Role, *, born_s: float, is_lent: bool = False
    ) -> None:
        """
        Args:
            worker: Whose.
            role: For good.
            born_s: Since when it can take work.
            is_lent: It is the prefill that a decode worker lends its time to.
        """
        worker.lives_total += 1
        self.worker = worker
        self.role = role
        self.is_lent = is_lent
        self.is_draining = False
        self.worker_id = worker.spec.worker_id + (LENT_SUFFIX if is_lent else "")
        self.url = worker.url + ("/lent" if is_lent else "")
        self.incarnation = f"life-{worker.lives_total}"
        self.prefilling = worker.borrowing if is_lent else worker.prefilling
        self.inventory = worker.cache.listen()
        self.wants_full_inventory = True
        self._born_s = born_s
        self._sequence = 0

    def __repr__(self) -> str:
        return f"<Life {self.worker_id} {self.incarnation}>"

    # --- Jobs ---------------------------------------------------------------------------------

    def prefill(
        self, job_id: str, incarnation: str, tokens: int, hashes: Sequence[BlockHash]
    ) -> PrefillRun:
        """
        Accept a prefill.

        Raises:
            WorkerRefused: Full, draining, or not who was meant.
        """
        self._check(incarnation, "prefill", self.prefilling.requests)
        return self.prefilling.accept(job_id, tokens, hashes)

    def decode(
        self,
        incarnation: str,
        *,
        hashes: Sequence[BlockHash],
        output_tokens: int,
        resumed_tokens: int,
    ) -> DecodeRun:
        """
        Accept a decode.

        Raises:
            WorkerRefused: Full, draining, or not who was meant.
        """
        engine = self.worker.decoding
        self._check(incarnation, "decode", engine.requests)
        return DecodeRun(
            engine,
            hashes=hashes,
            output_tokens=output_tokens,
            resumed_tokens=resumed_tokens,
            now_s=self.worker.loop.time(),
        )

    def _check(self, incarnation: str, role: Role, has: int) -> None:
        if incarnation != self.incarnation or role != self.role:
            raise WorkerRefused("another process life was meant")
        if self.is_draining:
            raise WorkerRefused("draining")
        if has >= self._requests_max:
            raise WorkerRefused(f"it has {has} requests")

    @cached_property
    def location(self) -> KvLocation:
        """
        Where the KV of its prefills is, in a form that routers can carry.

        One for all of them: emulated workers find a segment by the id of its job, and nobody connects
        to the address.
        """
        return KvLocation.model_construct(
            worker_id=self.worker_id,
            datacenter=self.worker.datacenter,
            incarnation=self.incarnation,
            segment_id=self.incarnation,
            generation=1,
            host="127.0.0.1",
            port=1,
            lease_s=30.0,
            manifest=KvManifest(
                fingerprint=FINGERPRINT, scope=MODEL, token_count=0, block_tokens=1, groups=()
            ),
        )

    # --- Heartbeats ---------------------------------------------------------------------------

    @property
    def _slots(self) -> int:
        return self.worker.decoding.slots if self.role == "decode" else 1

    @property
    def _requests_max(self) -> int:
        return self._slots + self.worker.world.queue_requests

    def beat(self) -> WorkerBeat:
        """The next heartbeat."""
        worker = self.worker
        self._sequence += 1
        is_full, self.wants_full_inventory = self.wants_full_inventory, False
        now_s = worker.loop.time()
        is_decode = self.role == "decode"
        if is_decode:
            worker.catch_up()
        # Made of checked parts: checking it again would take longer than all the rest of it.
        return self._first_beat.model_copy(
            update={
                "sequence": self._sequence,
                "is_draining": self.is_draining,
                "age_s": now_s - self._born_s,
                "profile": self._profile(),
                "load": self._load(now_s),
                "lend_share": worker.lend_share if is_decode or self.is_lent else 0.0,
                "inventory": worker.cache.take_inventory(self.inventory, is_full=is_full),
                "links": worker.links.reports() if is_decode else (),
            }
        )

    @cached_property
    def _first_beat(self) -> WorkerBeat:
        """What all heartbeats of this life have in common."""
        spec, world = self.worker.spec, self.worker.world
        return WorkerBeat.model_construct(
            worker_id=self.worker_id,
            datacenter=spec.datacenter,
            role=self.role,
            incarnation=self.incarnation,
            sequence=1,
            url=self.url,
            model=MODEL,
            fingerprint=FINGERPRINT,
            vocabulary_size=1 << 17,
            block_tokens=world.block_tokens,
            context_tokens_max=world.context_tokens_max,
            requests_max=self._requests_max,
            slots=self._slots,
            can_resume=self.role == "decode",
            roles=() if self.is_lent else spec.hardware.roles,
            lent_by=spec.worker_id if self.is_lent else None,
        )

    def _profile(self) -> Profile:
        told, worker = self.worker.told, self.worker
        if self.is_lent:
            slower = 1.0 / self.prefilling.share
            return told.model_copy(
                update={
                    "prefill_fixed_s": told.prefill_fixed_s * slower,
                    "prefill_s_per_token": told.prefill_s_per_token * slower,
                    "prefill_s_per_token_squared": told.prefill_s_per_token_squared * slower,
                }
            )
        if worker.decoding.share < 1:
            return told.model_copy(update={"decode_step_s": worker.decoding.step_s})
        return told

    def _load(self, now_s: float) -> Load:
        if self.role == "decode":
            engine = self.worker.decoding
            return _IDLE.model_copy(
                update={"queue_requests": engine.requests, "running": engine.running}
            )
        prefilling = self.prefilling
        return _IDLE.model_copy(
            update={
                "queue_requests": prefilling.requests,
                "queue_tokens": prefilling.queue_tokens(now_s),
                "queue_s": prefilling.queue_s(now_s),
                "running": prefilling.running,
            }
        )


_IDLE: Final = Load(queue_requests=0, queue_tokens=0, queue_s=0.0, running=0, kv_bytes=0)

#: Age of workers that were there before the replay began: none of them warms up.
_OLD_S: Final = 3600.0


def _told(hardware: Hardware) -> Profile:
    """What a worker of such hardware says of its times."""
    fixed_s = per_token = per_token_squared = 0.0
    if isinstance(hardware.prefill, QuadraticPrefill):
        prefill = hardware.prefill
        fixed_s, per_token = prefill.fixed_s, prefill.s_per_token
        per_token_squared = prefill.s_per_token_squared
    elif hardware.prefill is not None:
        # A curve through three lengths of any other profile; heartbeats have no room for a table.
        low, middle, high = (hardware.prefill.prefill_s(tokens) for tokens in _FITTED_TOKENS)
        near, far = _FITTED_TOKENS[1], _FITTED_TOKENS[2]
        slope_near, slope_far = (middle - low) / near, (high - low) / far
        per_token_squared = max(0.0, (slope_far - slope_near) / (far - near))
        fixed_s, per_token = low, max(0.0, slope_near - per_token_squared * near)
    return Profile(
        prefill_s_per_token=per_token,
        prefill_fixed_s=fixed_s,
        prefill_s_per_token_squared=per_token_squared,
        decode_step_s=hardware.decode.step_s if hardware.decode is not None else 0.0,
        kv_bytes_per_token=round(hardware.kv.bytes_per_token),
        kv_state_bytes=round(hardware.kv.state_bytes),
    )
