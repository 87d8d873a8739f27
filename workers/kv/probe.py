"""Whether the way to another worker's KV port is open in both directions."""

from __future__ import annotations

import asyncio
import errno
import time
from typing import Final

from controlplane.config import KvConfig
from controlplane.errors import LinkDown, LinkStalled, TransferError
from controlplane.wire import KvAddress, KvLocation, KvManifest, LinkProbeReply, LinkSign
from workers.kv.frames import WireError
from workers.kv.owner import Owner
from workers.kv.timing import Clock

#: A segment that no owner has: whatever it answers has crossed the link twice.
_NOBODYS: Final = KvManifest(
    fingerprint="probe", scope="probe", token_count=0, block_tokens=1, groups=()
)
#: What a system call says when no way leads to that machine.
_NO_WAY: Final = frozenset({
    errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH,
})  # fmt: skip


async def probe_owner(
    target: KvAddress, *, timeout_s: float, clock: Clock = time.monotonic
) -> LinkProbeReply:
    """
    Dial a KV port, ask for what is not there, and wait for the answer.

    Any owner of this protocol answers, of whatever version: it needs no request of its own.

    Args:
        target: Where.
        timeout_s: For all of it; seconds > 0.
        clock: Monotonic seconds.

    Returns:
        "silent" when nothing came back in time or there is no way to that machine, "refused" when
        somebody said no: that tells of the worker and nothing of the way.
    """
    config = KvConfig(connect_timeout_s=timeout_s, stall_timeout_s=timeout_s)
    location = KvLocation(
        worker_id="probe",
        datacenter="probe",
        incarnation="probe",
        segment_id="probe",
        generation=0,
        host=target.host,
        port=target.port,
        lease_s=0.0,
        manifest=_NOBODYS,
    )
    try:
        async with asyncio.timeout(timeout_s):
            owner = await Owner.connect(location, config)
            try:
                asked_s = clock()
                await owner.renew(wants_answer=True)
                await owner.heard()
                return LinkProbeReply(sign="answered", rtt_s=max(0.0, clock() - asked_s))
            finally:
                owner.close()
    except (TransferError, WireError, TimeoutError) as error:
        return LinkProbeReply(sign=_sign_of(error))


def _sign_of(error: Exception) -> LinkSign:
    cause = error.__cause__ if isinstance(error, LinkDown) else error
    if isinstance(cause, TimeoutError | LinkStalled):
        return "silent"
    # Whatever else a system call says is of the peer or of this process, and not of the way.
    is_cut = isinstance(cause, OSError) and cause.errno in _NO_WAY
    return "silent" if is_cut else "refused"
