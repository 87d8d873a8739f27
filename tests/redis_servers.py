"""Real Redis servers for tests: one of a kind, a cluster, a master with its replica and sentinels."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from redis.connection import Connection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from controlplane.store import guard
from controlplane.store.embedded import find_server

HOST: Final = "127.0.0.1"
MASTER: Final = "mymaster"
_START_S: Final = 10.0
#: A node is given up, and its replica promoted, this many milliseconds after its last word.
_NODE_TIMEOUT_MS: Final = 400


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(is_so: Callable[[], bool], *, within_s: float = _START_S) -> None:
    """
    Ask until it is so.

    Raises:
        TimeoutError: It never was.
    """
    give_up = time.monotonic() + within_s
    while not is_so():
        if time.monotonic() > give_up:
            raise TimeoutError("it did not happen in time")
        time.sleep(0.01)


class Server:
    """One server or sentinel on a port of its own, under a guard: it outlives nobody."""

    def __init__(self, *lines: str, is_sentinel: bool = False) -> None:
        """
        Start it and wait until it answers.

        Args:
            lines: Of its configuration, beside those that all have.
            is_sentinel: A sentinel and no server of data.
        """
        self.port = free_port()
        self._directory = Path(tempfile.mkdtemp(prefix="prfaas-test-"))
        file = self._directory / "server.conf"
        data = () if is_sentinel else ('save ""', "appendonly no", "repl-diskless-sync-delay 0")
        common = (f"port {self.port}", f"bind {HOST}", f'dir "{self._directory}"', *data)
        file.write_text("\n".join([*common, *lines]) + "\n", encoding="utf-8")
        self._guard = subprocess.Popen(
            [
                *(sys.executable, "-P", guard.__file__, str(self._directory)),
                *(str(find_server()), str(file)),
                *(["--sentinel"] if is_sentinel else []),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._connection = Connection(host=HOST, port=self.port, socket_timeout=5.0, protocol=2)
        wait_until(self.is_up)
        self.pid = int(self.info("server")["process_id"])

    def __repr__(self) -> str:
        return f"<Server {self.address}>"

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    def do(self, *words: Any) -> Any:
        """What the server answers to one command, unconverted but for bytes that are text."""
        try:
            return self._do(words)
        except RedisConnectionError:
            # A server that changes its role closes all connections.
            return self._do(words)

    def _do(self, words: tuple[Any, ...]) -> Any:
        try:
            self._connection.send_command(*words)
            return _as_text(self._connection.read_response())
        except (RedisConnectionError, RedisTimeoutError):
            self._connection.disconnect()
            raise

    def info(self, section: str) -> dict[str, str]:
        return _pairs(self.do("INFO", section))

    def is_up(self) -> bool:
        try:
            return bool(self.do("PING") == "PONG")
        except (RedisError, OSError):
            return False

    def role(self) -> str:
        return self.info("replication")["role"]

    def kill(self) -> None:
        """SIGKILL, and wait for it."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self._guard.wait()

    def freeze(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGCONT)

    def stop(self) -> None:
        self.thaw()
        self._connection.disconnect()
        self._guard.communicate()
        shutil.rmtree(self._directory, ignore_errors=True)


@contextmanager
def running(*lines: str, is_sentinel: bool = False) -> Iterator[Server]:
    """A server for as long as the block runs."""
    server = Server(*lines, is_sentinel=is_sentinel)
    try:
        yield server
    finally:
        server.stop()


def is_replica_of(server: Server, master: Server) -> bool:
    """In step with its master, all of its data received."""
    seen = server.info("replication")
    return (
        seen.get("master_port") == str(master.port)
        and seen.get("master_link_status") == "up"
        and seen["slave_repl_offset"] >= master.info("replication")["master_repl_offset"]
    )


@dataclass
class Cluster:
    """Masters with a third of the slots each, and replicas of the first of them."""

    masters: list[Server]
    replicas: list[Server]

    @property
    def nodes(self) -> list[Server]:
        return [*self.masters, *self.replicas]

    def url(self, nodes: Sequence[Server] | None = None) -> str:
        """With some nodes as seeds; all masters by default."""
        return f"redis://{','.join(node.address for node in nodes or self.masters)}/0"

    def slot_of(self, fleet: str) -> int:
        slot: int = self.any_up().do("CLUSTER", "KEYSLOT", f"prfaas:{{{fleet}}}:")
        return slot

    def any_up(self) -> Server:
        return next(node for node in self.nodes if node.is_up())

    def owner_of(self, fleet: str) -> Server:
        """The node that serves a fleet."""
        slot = self.slot_of(fleet)
        for first, last, (_, port, *_), *_ in self.any_up().do("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return next(node for node in self.nodes if node.port == port)
        raise AssertionError(f"nobody serves slot {slot}")

    def fleet_at(self, node: Server, name: str) -> str:
        """A fleet that this node serves."""
        names = (f"{name}-{number}" for number in range(1000))
        return next(fleet for fleet in names if self.owner_of(fleet) is node)

    def begin_move(self, slot: int, source: Server, target: Server) -> None:
        """A slot is on its way: its keys may be at both."""
        target.do("CLUSTER", "SETSLOT", slot, "IMPORTING", source.do("CLUSTER", "MYID"))
        source.do("CLUSTER", "SETSLOT", slot, "MIGRATING", target.do("CLUSTER", "MYID"))

    def move_keys(self, slot: int, source: Server, target: Server) -> None:
        """Take a slot's keys over."""
        while keys := source.do("CLUSTER", "GETKEYSINSLOT", slot, 100):
            source.do("MIGRATE", HOST, target.port, "", 0, 5000, "KEYS", *keys)

    def end_move(self, slot: int, target: Server) -> None:
        """All masters know where the slot is now."""
        name = target.do("CLUSTER", "MYID")
        for node in [target, *(node for node in self.masters if node is not target)]:
            node.do("CLUSTER", "SETSLOT", slot, "NODE", name)


@contextmanager
def a_cluster(*, replicas: int = 0) -> Iterator[Cluster]:
    """Three masters, and replicas of the first."""
    with ExitStack() as stack:
        nodes = [
            stack.enter_context(
                running(
                    "cluster-enabled yes",
                    f"cluster-port {free_port()}",
                    f"cluster-node-timeout {_NODE_TIMEOUT_MS}",
                    "cluster-replica-validity-factor 0",
                )
            )
            for _ in range(3 + replicas)
        ]
        spans = ((0, 5460), (5461, 10922), (10923, 16383))
        for number, (node, span) in enumerate(zip(nodes, spans, strict=False), start=1):
            node.do("CLUSTER", "SET-CONFIG-EPOCH", number)
            node.do("CLUSTER", "ADDSLOTSRANGE", *span)
        for node in nodes[1:]:
            _, bus_port = node.do("CONFIG", "GET", "cluster-port")
            nodes[0].do("CLUSTER", "MEET", HOST, node.port, bus_port)
        for node in nodes:
            wait_until(lambda node=node: _is_formed(node, len(nodes)))  # type: ignore[misc]
        first = nodes[0].do("CLUSTER", "MYID")
        for node in nodes[3:]:
            node.do("CLUSTER", "REPLICATE", first)
        for node in nodes[3:]:
            wait_until(lambda node=node: is_replica_of(node, nodes[0]))  # type: ignore[misc]
        yield Cluster(nodes[:3], nodes[3:])


def _is_formed(node: Server, size: int) -> bool:
    seen = _pairs(node.do("CLUSTER", "INFO"))
    return seen["cluster_state"] == "ok" and seen["cluster_known_nodes"] == str(size)


@dataclass
class Guarded:
    """A master, its replica, and three sentinels that watch them."""

    master: Server
    replica: Server
    sentinels: list[Server]

    @property
    def url(self) -> str:
        return f"redis+sentinel://{','.join(each.address for each in self.sentinels)}/{MASTER}/0"

    def cut_replication(self) -> None:
        """The replica learns nothing more; it goes on trying with a password that is none."""
        self.replica.do("CONFIG", "SET", "masterauth", "wrong")
        self.master.do("CLIENT", "KILL", "TYPE", "replica")
        wait_until(lambda: self.replica.info("replication")["master_link_status"] == "down")

    def promote(self) -> None:
        """Let the sentinels put the replica into the master's place."""
        self.sentinels[0].do("SENTINEL", "FAILOVER", MASTER)
        wait_until(lambda: self.replica.role() == "master")


@contextmanager
def a_guarded_master() -> Iterator[Guarded]:
    """A master with a replica in step and sentinels that know both and each other."""
    with ExitStack() as stack:
        master = stack.enter_context(running())
        replica = stack.enter_context(running(f"replicaof {HOST} {master.port}"))
        wait_until(lambda: is_replica_of(replica, master))
        sentinels = [
            stack.enter_context(
                running(
                    f"sentinel monitor {MASTER} {HOST} {master.port} 2",
                    f"sentinel down-after-milliseconds {MASTER} 300",
                    f"sentinel failover-timeout {MASTER} 2000",
                    is_sentinel=True,
                )
            )
            for _ in range(3)
        ]
        wait_until(lambda: all(map(_knows_all, sentinels)))
        yield Guarded(master, replica, sentinels)


def _knows_all(sentinel: Server) -> bool:
    flat = sentinel.do("SENTINEL", "MASTER", MASTER)
    seen = dict(zip(flat[::2], flat[1::2], strict=True))
    return (seen["num-slaves"], seen["num-other-sentinels"]) == ("1", "2")


def _pairs(lines: str) -> dict[str, str]:
    """What INFO shows."""
    pairs = (line.partition(":") for line in lines.splitlines() if ":" in line)
    return {name: value for name, _, value in pairs}


def _as_text(reply: Any) -> Any:
    if isinstance(reply, list):
        return [_as_text(item) for item in reply]
    return reply.decode(errors="surrogateescape") if isinstance(reply, bytes) else reply
