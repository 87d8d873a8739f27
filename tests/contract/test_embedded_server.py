"""A server of one's own: private, empty at the start, and never left behind."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from store_builders import is_running, pid_of_server, process_state

from controlplane.config import StoreConfig
from controlplane.errors import ConfigError
from controlplane.store import embedded
from controlplane.store.embedded import EmbeddedServer, find_server
from controlplane.store.redis_store import RedisStore

#: Starts a server, tells its directory, and does nothing more.
OWNER = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
from controlplane.store.embedded import EmbeddedServer
server = EmbeddedServer()
server.start()
print(server.directory, flush=True)
time.sleep(60)
"""


def until(is_so: Callable[[], bool], *, within_s: float = 2.0) -> bool:
    """Whether it came about in time."""
    give_up = time.monotonic() + within_s
    while not is_so():
        if time.monotonic() > give_up:
            return False
        time.sleep(0.01)
    return True


def start_owner() -> tuple[subprocess.Popen[str], Path]:
    """A process that owns a server, in a group of its own as at a terminal."""
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True, process_group=0
    )
    assert owner.stdout is not None
    return owner, Path(owner.stdout.readline().strip())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_server_goes_with_its_owner_however_that_ends(number: signal.Signals) -> None:
    owner, directory = start_owner()
    server = pid_of_server(directory)

    os.killpg(owner.pid, number)
    owner.communicate()

    assert until(lambda: not is_running(server))
    assert until(lambda: not directory.exists())


def test_a_frozen_server_goes_too() -> None:
    owner, directory = start_owner()
    server = pid_of_server(directory)
    os.kill(server, signal.SIGSTOP)

    owner.kill()
    owner.communicate()

    assert until(lambda: not is_running(server))
    assert until(lambda: not directory.exists())


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's part is Linux only")
def test_the_server_goes_with_its_guard(own_server: EmbeddedServer) -> None:
    server = pid_of_server(own_server.directory)
    assert own_server._guard is not None

    own_server._guard.kill()

    assert until(lambda: not is_running(server))


def test_what_does_not_end_the_server_does_not_end_its_guard(own_server: EmbeddedServer) -> None:
    server = pid_of_server(own_server.directory)
    assert own_server._guard is not None

    own_server._guard.send_signal(signal.SIGINT)
    os.kill(server, signal.SIGSTOP)
    assert until(lambda: process_state(server) == "T")
    os.kill(server, signal.SIGCONT)

    with pytest.raises(subprocess.TimeoutExpired):
        own_server._guard.wait(timeout=0.2)
    assert pid_of_server(own_server.directory) == server


def test_a_server_that_dies_by_itself_leaves_no_directory(own_server: EmbeddedServer) -> None:
    directory = own_server.directory
    os.kill(pid_of_server(directory), signal.SIGKILL)

    assert until(lambda: not directory.exists())
    assert own_server._guard is not None
    assert own_server._guard.wait(timeout=2) == 1


def test_a_guard_that_is_told_to_end_ends_its_server(own_server: EmbeddedServer) -> None:
    directory = own_server.directory
    server = pid_of_server(directory)
    assert own_server._guard is not None

    own_server._guard.terminate()

    assert own_server._guard.wait(timeout=2) == 0
    assert not is_running(server)
    assert not directory.exists()


def test_its_directory_is_private_and_gone_after_stop() -> None:
    server = EmbeddedServer()
    server.start()
    directory = server.directory
    mode = directory.stat().st_mode & 0o777

    server.stop()
    server.stop()

    assert mode == 0o700
    assert not directory.exists()


def test_before_start_and_after_stop_it_has_no_url() -> None:
    server = EmbeddedServer()

    with pytest.raises(RuntimeError, match="not been started"):
        _ = server.url
    with pytest.raises(RuntimeError, match="not been started"):
        _ = server.directory
    assert repr(server) == "<EmbeddedServer not started>"


def test_it_starts_once(own_server: EmbeddedServer) -> None:
    with pytest.raises(RuntimeError, match="started already"):
        own_server.start()


async def test_it_serves_within_async_with() -> None:
    async with EmbeddedServer() as server:
        store = await RedisStore.connect(server.url, fleet="x", config=StoreConfig())
        await store.close()
        directory = server.directory

    assert not directory.exists()


async def test_where_the_path_is_too_long_for_a_socket_it_listens_on_a_port_with_password(
    tmp_path: Path,
) -> None:
    parent = tmp_path / ("long" * 25)
    parent.mkdir()
    async with EmbeddedServer(parent_directory=parent) as server:
        store = await RedisStore.connect(server.url, fleet="x", config=StoreConfig())
        host, _, port = server.url.rpartition("@")[2].removesuffix("/0").partition(":")
        with socket.create_connection((host, int(port))) as stranger:
            stranger.sendall(b"PING\r\n")
            answer = stranger.recv(100)
        await store.close()

    assert host == "127.0.0.1"
    assert answer.startswith(b"-NOAUTH")


def test_a_server_that_does_not_start_is_a_configuration_error_with_its_reason(
    tmp_path: Path,
) -> None:
    broken = tmp_path / "server"
    broken.write_text(
        '#!/bin/sh\necho "no room today" >> "$(dirname "$1")/server.log"\nexit 1\n',
        encoding="utf-8",
    )
    broken.chmod(0o755)

    with pytest.raises(ConfigError, match="no room today"):
        EmbeddedServer(server=broken, parent_directory=tmp_path).start()

    assert list(tmp_path.iterdir()) == [broken]


def test_a_server_that_is_none_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="it wrote no log"):
        EmbeddedServer(server=tmp_path / "absent", parent_directory=tmp_path).start()


def test_without_the_package_a_server_on_the_path_is_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(embedded, "find_spec", lambda _name: None)
    monkeypatch.setattr(
        shutil, "which", lambda name: str(tmp_path / name) if name == "redis-server" else None
    )

    assert find_server() == tmp_path / "redis-server"


def test_without_any_server_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "find_spec", lambda _name: None)
    monkeypatch.setattr(shutil, "which", lambda _name: None)

    with pytest.raises(ConfigError, match="REDIS_URL"):
        find_server()
