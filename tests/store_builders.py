"""Messages to the store with sensible values; a test names only what it is about."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from controlplane.wire import Inventory, KvGroup, KvLocation, KvManifest, Reservation, WorkerBeat

T = TypeVar("T")
#: Lets time pass for the store under test.
Advance: TypeAlias = Callable[[float], Awaitable[None]]

TTL_S = 600.0


def a_beat(worker_id: str = "p1", **changes: Any) -> WorkerBeat:
    """A report of a prefill worker (names in p) or decode worker (names in d)."""
    values: dict[str, Any] = {
        "worker_id": worker_id,
        "datacenter": "east",
        "role": "prefill" if worker_id.startswith("p") else "decode",
        "incarnation": "one",
        "sequence": 1,
        "url": "http://127.0.0.1:9000",
        "model": "m",
        "fingerprint": "f",
        "vocabulary_size": 256,
        "block_tokens": 64,
        "context_tokens_max": 4096,
        "requests_max": 8,
        "slots": 4,
    }
    return WorkerBeat.model_validate(values | changes)


def full(**stored: str) -> Inventory:
    """A full inventory."""
    return Inventory.model_validate({"is_full": True, "stored": stored})


def delta(*removed: str, **stored: str) -> Inventory:
    """A change of an inventory."""
    return Inventory.model_validate({"stored": stored, "removed": removed})


def a_reservation(reservation_id: str = "r1", **changes: Any) -> Reservation:
    """A claim of 100 tokens at p1 and a place at d1, without a link."""
    values: dict[str, Any] = {
        "reservation_id": reservation_id,
        "owner": "router",
        "ttl_s": TTL_S,
        "prefill_ttl_s": TTL_S,
        "prefill_worker": "p1",
        "prefill_incarnation": "one",
        "prefill_tokens": 100,
        "prefill_requests_max": 8,
        "decode_worker": "d1",
        "decode_incarnation": "one",
        "decode_requests_max": 8,
    }
    return Reservation.model_validate(values | changes)


def a_location(segment_id: str = "s1", **changes: Any) -> KvLocation:
    """Where a segment of 100 tokens is."""
    values: dict[str, Any] = {
        "worker_id": "p1",
        "datacenter": "east",
        "incarnation": "one",
        "segment_id": segment_id,
        "generation": 1,
        "host": "127.0.0.1",
        "port": 9001,
        "lease_s": TTL_S,
        "manifest": KvManifest(
            fingerprint="f",
            scope="s",
            token_count=100,
            block_tokens=64,
            groups=(KvGroup(name="attention", bytes_per_token=16, fixed_bytes=0),),
        ),
    }
    return KvLocation.model_validate(values | changes)


async def eventually(
    ask: Callable[[], Awaitable[T]], is_enough: Callable[[T], bool], *, within_s: float = 5.0
) -> T:
    """
    Ask until the answer is enough.

    Raises:
        TimeoutError: It never was.
    """
    async with asyncio.timeout(within_s):
        while True:
            answer = await ask()
            if is_enough(answer):
                return answer
            await asyncio.sleep(0.005)


def process_state(pid: int) -> str:
    """First letter of a process's state as ps shows it, T if it is stopped; empty if it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        if Path("/proc").exists():
            return ""
        shown = subprocess.run(
            ["ps", "-o", "state=", "-p", str(pid)], capture_output=True, text=True, check=False
        )
        return shown.stdout.strip()[:1]
    return stat.rpartition(")")[2].split()[0]


def is_running(pid: int) -> bool:
    """Alive, and not a zombie that nobody has reaped."""
    return process_state(pid) not in {"", "Z"}


def pid_of_server(directory: Path) -> int:
    """The process of an embedded server, as it says itself."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(directory / "redis.sock"))
        connection.sendall(b"INFO server\r\n")
        answer = connection.recv(65536).decode()
    line = next(line for line in answer.splitlines() if line.startswith("process_id:"))
    return int(line.partition(":")[2])
