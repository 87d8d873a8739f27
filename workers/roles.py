"""The lives of one worker process: which role it has, what it lends, and how it changes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

from controlplane.errors import RoleRefused
from controlplane.observe.logs import get_logger
from controlplane.wire import LENT_SUFFIX, Role, RoleChange, RoleReply
from workers.agent import Abilities
from workers.identity import Identity
from workers.kv.timing import Clock
from workers.life import Life, Process
from workers.links import LinkMeters
from workers.role_rules import Duties, Refusal, RoleState, duties_of, step_of

_log = get_logger()


class RoleKeeper:
    """
    Keeps one life of the worker at any time, and one more while it lends a share of its time.

    Another role is another life: the old one drains, hands over what does not end, and says goodbye
    before the new one registers, under another incarnation and the same worker id and URL. The
    engine stays, and so does its prefix cache: what it holds is a function of tokens and weights,
    which both roles share, and the new life tells of all of it with its first heartbeat.
    """

    def __init__(
        self,
        process: Process,
        identity: Identity,
        roles: tuple[Role, ...],
        *,
        lent_path: str,
        clock: Clock = time.monotonic,
    ) -> None:
        """
        Begin the first life; it listens for KV, and is not registered before `start`.

        Args:
            process: What all lives share.
            identity: Of the first life.
            roles: It can have; empty to keep that of the first life.
            lent_path: Where a registration of lent time is asked for work, behind the process's URL.
            clock: Monotonic seconds; dwell times are measured by it.

        Raises:
            ConfigError: The KV port cannot be listened on.
        """
        self._process = process
        self._roles = roles
        self._lent_path = lent_path
        self._clock = clock
        self._links = LinkMeters(identity.datacenter, process.fleet.links)
        self._duties = Duties(role=identity.role)
        self._share = 0.0
        self._url = ""
        self._tasks: asyncio.TaskGroup | None = None
        self._change: asyncio.Task[None] | None = None
        self._is_leaving = False
        self._stays_until_s = clock()
        self.main = self._make(identity)
        self.lent: Life | None = None

    def __repr__(self) -> str:
        return f"<RoleKeeper {self.main!r} {self._duties}>"

    @property
    def lives(self) -> tuple[Life, ...]:
        """Those that serve now."""
        return (self.main,) if self.lent is None else (self.main, self.lent)

    def start(self, url: str, tasks: asyncio.TaskGroup) -> None:
        """
        Register the first life.

        Args:
            url: Of the process.
            tasks: Of the process: what fails there ends it.
        """
        self._url, self._tasks = url, tasks
        self.main.start(url, tasks)

    def change(self, change: RoleChange) -> RoleReply:
        """
        Do what a planner asks, behind this call; asking again does no more.

        Raises:
            RoleRefused: Not now, or never; the reason says which.
        """
        identity, wanted = self.main.identity, duties_of(change)
        step = step_of(self._state(), change)
        if isinstance(step, Refusal):
            _log.info("role.refused", worker=identity.worker_id, reason=step.code)
            raise RoleRefused(step.message, reason=step.code)
        if step == "role":
            self._stays_until_s = self._clock() + change.dwell_s
            self._begin(wanted, self._change_role(wanted))
        elif step == "lending":
            self._begin(wanted, self._change_lending(wanted.lend_share))
        return RoleReply(
            worker_id=identity.worker_id,
            incarnation=identity.incarnation,
            role=wanted.role,
            lend_share=wanted.lend_share,
            is_draining=self._is_changing and wanted.role != self.main.role,
        )

    async def leave(self) -> None:
        """End all lives: each drains, hands over, says goodbye. Cuts a change that is under way."""
        self._is_leaving = True
        if self._change is not None and not self._change.done():
            self._change.cancel()
            await asyncio.wait([self._change])
        async with asyncio.TaskGroup() as leaving:
            for life in self.lives:
                leaving.create_task(life.drain())

    async def close(self) -> None:
        """Stop whatever still runs. Idempotent."""
        for life in self.lives:
            await life.close()

    # --- Inside -------------------------------------------------------------------------------

    @property
    def _is_changing(self) -> bool:
        return self._change is not None and not self._change.done()

    def _state(self) -> RoleState:
        return RoleState(
            incarnation=self.main.identity.incarnation,
            roles=self._roles,
            can_lend=self._process.address.advertised_kv is None,
            duties=self._duties,
            is_busy=self._is_leaving or self._is_changing,
            dwell_left_s=self._stays_until_s - self._clock(),
        )

    def _begin(self, wanted: Duties, work: Coroutine[Any, Any, None]) -> None:
        assert self._tasks is not None, "started"
        self._duties = wanted
        self._change = self._tasks.create_task(work, name="role change")

    async def _change_role(self, wanted: Duties) -> None:
        old = self.main
        _log.info("role.changing", worker=old.identity.worker_id, role=wanted.role)
        # Both at once: what is lent is drained while the role is.
        async with asyncio.TaskGroup() as draining:
            draining.create_task(old.drain())
            draining.create_task(self._end_lending())
        await old.close()
        assert self._tasks is not None, "started"
        self.main = self._make(old.identity.reborn(wanted.role))
        self.main.start(self._url, self._tasks)
        _log.info("role.changed", worker=old.identity.worker_id, role=wanted.role)
        self._lend(wanted.lend_share)

    async def _change_lending(self, share: float) -> None:
        if not share:
            await self._end_lending()
        else:
            self._lend(share)
        _log.info("lending.changed", worker=self.main.identity.worker_id, count=share)

    def _lend(self, share: float) -> None:
        """Lend so much from now on, and register what is lent if it was not."""
        if not share:
            return
        assert self._tasks is not None, "started"
        self._share = share
        self._process.engine.limit_prefill(share)
        if self.lent is None:
            self.lent = self._make_lent(self.main.identity)
            self.lent.start(self._url + self._lent_path, self._tasks)

    async def _end_lending(self) -> None:
        if self.lent is None:
            return
        await self.lent.drain()
        await self.lent.close()
        self.lent = None
        self._share = 0.0
        self._process.engine.limit_prefill(None)

    def _make(self, identity: Identity) -> Life:
        """A life of the worker itself."""
        return Life(
            self._process,
            identity,
            Abilities(
                roles=self._roles,
                can_export_prefix=self._process.engine.spec.can_move_prefixes,
                lend_share=self._shared,
            ),
            links=self._links,
            kv_port=self._process.address.kv_port,
        )

    def _make_lent(self, lender: Identity) -> Life:
        """A life of what the worker lends."""
        identity = Identity.new(
            datacenter=lender.datacenter,
            name=lender.name + LENT_SUFFIX,
            role="prefill",
        )
        abilities = Abilities(
            can_export_prefix=False, lent_by=lender.worker_id, lend_share=self._shared
        )
        links = LinkMeters(lender.datacenter, self._process.fleet.links)
        return Life(self._process, identity, abilities, links=links, kv_port=0)

    def _shared(self) -> float:
        return self._share
