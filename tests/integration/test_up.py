"""`prfaas up` and the single commands: clear refusals, orderly ends, and nobody left behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from http.client import HTTPConnection, IncompleteRead
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from click.testing import CliRunner, Result
from fleets import (
    MODEL,
    Fleet,
    a_fleet,
    free_port,
    get,
    post,
    processes,
    running,
    to_toml,
    wait_for,
)

from controlplane.cli import main
from controlplane.config import DatacenterConfig, FleetConfig, ModelConfig
from controlplane.store.embedded import EmbeddedServer

SMALL = ModelConfig(layers=4, context_tokens_max=2048)

#: Marks the environment of everything that a test starts, however deep.
MARK = "PRFAAS_TEST_MARK"


def a_small_fleet(**overrides: Any) -> FleetConfig:
    """One prefill worker in east, one decode worker in west, and the smallest model."""
    values = {"east_prefill": 1, "west_prefill": 0, "west_decode": 1, "model": SMALL}
    return a_fleet(**(values | overrides))


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where everything that a test starts puts its files; its path is short, for sockets."""
    directory = Path(tempfile.mkdtemp(prefix="up-"))
    monkeypatch.setenv("TMPDIR", str(directory))
    monkeypatch.setenv(MARK, uuid4().hex)
    monkeypatch.delenv("REDIS_URL", raising=False)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


def left_behind(home: Path) -> list[str]:
    """Processes and directories of a test that are still there."""
    mark = f"{MARK}={os.environ[MARK]}".encode()
    found = [str(path) for path in home.glob("prfaas-*")]
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            environment = (entry / "environ").read_bytes().split(b"\0")
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if mark in environment and state != "Z" and int(entry.name) != os.getpid():
            found.append(command)
    return found


def is_gone(pid: int) -> bool:
    """Nobody has this process id, or only a zombie."""
    return all(found != pid or "<defunct>" in command for found, _, command in processes())


def said(fleet: Fleet, text: str) -> bool:
    """Whether the log has it."""
    return any(text in line for line in fleet.log)


# --- Refusals: nothing is started -------------------------------------------------------------


def invoke(*arguments: str, **environment: str | None) -> Result:
    """A command in this process."""
    return CliRunner().invoke(main, arguments, env={"REDIS_URL": None, **environment})


def a_file(directory: Path, text: str) -> str:
    """A fleet file."""
    path = directory / "fleet.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


GOOD = to_toml(a_small_fleet())


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        pytest.param(GOOD.replace("[router]", "[rooter]"), "router: Field required", id="missing"),
        pytest.param(
            GOOD.replace("drain_s =", "drain_seconds ="), "limits.drain_seconds: Extra", id="extra"
        ),
        pytest.param(
            re.sub(r"drain_s = \S+", 'drain_s = "soon"', GOOD), "limits.drain_s: ", id="type"
        ),
        pytest.param(
            re.sub(r"drain_s = \S+", "drain_s = -1", GOOD), "limits.drain_s: ", id="range"
        ),
        pytest.param(GOOD + "\n[oops", "is not valid TOML", id="no TOML"),
        pytest.param(
            GOOD.replace('policy = "prfaas"', 'policy = "nowhere"'),
            "router.policy: unknown policy 'nowhere'",
            id="unknown policy",
        ),
        pytest.param(
            GOOD.replace("threshold_tokens", "treshold_tokens"),
            "treshold_tokens",
            id="unknown parameter",
        ),
        pytest.param(
            re.sub(r"threshold_tokens = \d+", "threshold_tokens = -1", GOOD),
            "threshold_tokens",
            id="wrong parameter",
        ),
    ],
)
@pytest.mark.parametrize("command", ["up", "router"])
def test_a_broken_fleet_file_is_refused_with_file_and_field(
    tmp_path: Path, command: str, text: str, complaint: str
) -> None:
    """Exit status 2 before anything starts; one line that says what to change."""
    path = a_file(tmp_path, text)

    result = invoke(command, "--fleet", path, REDIS_URL="redis://127.0.0.1:1/0")

    assert result.exit_code == 2, result.output
    assert path in result.output
    assert complaint in result.output
    assert "Traceback" not in result.output


def test_a_fleet_file_that_is_not_there_is_named() -> None:
    """With the reason of the system."""
    result = invoke("up", "--fleet", "nowhere.toml")

    assert result.exit_code == 2
    assert "nowhere.toml" in result.output
    assert "No such file" in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ["router"],
        ["worker", "--datacenter", "west", "--role", "decode", "--name", "decode-0"],
    ],
    ids=["router", "worker"],
)
def test_a_single_process_without_redis_is_told_what_to_do(arguments: list[str]) -> None:
    """`prfaas up` starts its own, one process cannot."""
    result = invoke(*arguments)

    assert result.exit_code == 2
    assert "REDIS_URL is not set" in result.output
    assert "redis://" in result.output


@pytest.mark.parametrize("url", ["127.0.0.1:6379", "http://127.0.0.1:6379", "redis://:::"])
def test_a_redis_url_that_is_none_is_refused(url: str) -> None:
    """With an example of one."""
    result = invoke("router", REDIS_URL=url)

    assert result.exit_code == 2
    assert "redis://" in result.output or "REDIS_URL" in result.output


def test_a_worker_of_an_unknown_datacenter_is_refused() -> None:
    """With the names there are."""
    result = invoke(
        *["worker", "--datacenter", "north", "--role", "decode", "--name", "decode-0"],
        REDIS_URL="redis://127.0.0.1:1/0",
    )

    assert result.exit_code == 2
    assert "east, west" in result.output


@pytest.mark.parametrize("field", ["port", "admin_port"])
def test_a_port_in_use_is_said_before_anything_starts(home: Path, field: str) -> None:
    """Exit status 2, which port and which field, and no process was started."""
    config = a_small_fleet()
    port = getattr(config.router, field)
    path = a_file(home, to_toml(config))
    with socket.create_server(("127.0.0.1", port)):
        done = subprocess.run(
            [sys.executable, "-m", "controlplane.cli", "up", "--fleet", path],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    assert done.returncode == 2
    assert f"127.0.0.1:{port} (router.{field}) is already in use" in done.stderr
    assert left_behind(home) == []


@pytest.mark.parametrize("field", ["port", "admin_port"])
def test_up_needs_ports_that_people_know(tmp_path: Path, field: str) -> None:
    """Port 0 finds any, and nobody could tell which."""
    config = a_small_fleet()
    router = config.router.model_copy(update={field: 0})
    path = a_file(tmp_path, to_toml(config.model_copy(update={"router": router})))

    result = invoke("up", "--fleet", path)

    assert result.exit_code == 2
    assert f"router.{field}" in result.output


def test_up_needs_two_different_ports(tmp_path: Path) -> None:
    """Two listeners cannot share one."""
    config = a_small_fleet()
    router = config.router.model_copy(update={"admin_port": config.router.port})
    path = a_file(tmp_path, to_toml(config.model_copy(update={"router": router})))

    result = invoke("up", "--fleet", path)

    assert result.exit_code == 2
    assert "router.admin_port" in result.output


@pytest.mark.parametrize("command", [[], ["up"], ["router"], ["worker"], ["explain"]])
def test_each_command_has_help(command: list[str]) -> None:
    """Hidden options stay hidden."""
    result = invoke(*command, "--help")

    assert result.exit_code == 0
    assert "Usage: " in result.output
    assert "--supervised" not in result.output


def test_the_version_is_that_of_the_distribution() -> None:
    """Also when run as a module, as `prfaas up` runs its processes."""
    done = subprocess.run(
        [sys.executable, "-m", "controlplane.cli", "--version"],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )

    assert done.stdout.strip() == f"prfaas, version {version('prfaas')}"


# --- Ends -------------------------------------------------------------------------------------


@contextmanager
def a_stream(fleet: Fleet, max_tokens: int) -> Iterator[Any]:
    """An answer that has begun."""
    body = {
        "model": MODEL,
        "prompt": "once upon a time",
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
    }
    connection = HTTPConnection("127.0.0.1", fleet.config.router.port, timeout=30)
    headers = {"content-type": "application/json"}
    connection.request("POST", "/v1/completions", json.dumps(body), headers)
    with closing(connection), connection.getresponse() as answer:
        assert answer.readline().startswith(b"data: ")
        yield answer


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_everything_in_order(
    home: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """A stream in flight is served to its end; then no process and no file is left."""
    with running(a_small_fleet(), tmp_path) as fleet, a_stream(fleet, 60) as answer:
        assert list(home.glob("prfaas-*"))
        fleet.process.send_signal(number)
        rest = answer.read()

        status = fleet.stop()

    assert status == 0, fleet.log
    assert rest.endswith(b"data: [DONE]\n\n")
    assert left_behind(home) == []


def test_a_second_signal_ends_everything_at_once(home: Path, tmp_path: Path) -> None:
    """Whatever is in flight; it was asked for twice."""
    with running(a_small_fleet(), tmp_path) as fleet, a_stream(fleet, 1900) as answer:
        fleet.process.send_signal(signal.SIGINT)
        wait_for(lambda: get(fleet.url + "/ready").status == 503, 15)
        began_s = time.monotonic()
        fleet.process.send_signal(signal.SIGINT)

        status = fleet.stop()
        took_s = time.monotonic() - began_s
        with pytest.raises((IncompleteRead, ConnectionError)):
            answer.read()

    assert status == 0, fleet.log
    # The stream alone would take longer.
    assert took_s < 15
    assert left_behind(home) == []


def test_a_signal_while_it_starts_is_an_end_like_any_other(home: Path, tmp_path: Path) -> None:
    """Somebody changed his mind: nothing is left, and nothing has failed."""
    fleet = Fleet(a_small_fleet(), tmp_path)
    wait_for(lambda: "router" in fleet.pids(), 20)

    status = fleet.stop(signal.SIGINT)

    assert status == 0, fleet.log
    assert not said(fleet, "prfaas is up")
    assert left_behind(home) == []


def test_a_supervisor_that_is_killed_leaves_no_orphan(home: Path, tmp_path: Path) -> None:
    """Nobody can clean up after SIGKILL but those who notice that their pipe has closed."""
    with running(a_small_fleet(), tmp_path) as fleet:
        pids = fleet.pids()
        assert {"router", "redis", "east/prefill-0", "west/decode-0"} <= pids.keys()

        fleet.process.kill()
        fleet.process.wait(10)
        wait_for(lambda: all(is_gone(pid) for pid in pids.values()), 10)
        wait_for(lambda: not left_behind(home), 10)


def test_a_worker_that_is_killed_is_reported_and_requests_go_on(home: Path, tmp_path: Path) -> None:
    """The supervisor names it; the router finds another one."""
    with running(a_small_fleet(west_decode=2), tmp_path) as fleet:
        fleet.kill("west/decode-0")
        wait_for(lambda: said(fleet, "west/decode-0 ended (killed by SIGKILL)"), 10)

        answers = [fleet.complete(f"who is there, number {n}?") for n in range(4)]

    assert [answer.status for answer in answers] == [200] * 4
    assert {answer.headers["x-prfaas-decode"] for answer in answers} == {"west/decode-1"}
    assert said(fleet, "requests go on without it")
    assert fleet.process.returncode == 0
    assert left_behind(home) == []


def test_without_its_router_a_fleet_ends(home: Path, tmp_path: Path) -> None:
    """Exit status 1: nobody could ask it anything any more."""
    with running(a_small_fleet(), tmp_path) as fleet:
        fleet.kill("router")

        status = fleet.process.wait(20)

    assert status == 1
    assert said(fleet, "router ended (killed by SIGKILL)")
    assert left_behind(home) == []


def test_a_worker_that_dies_is_started_again(home: Path, tmp_path: Path) -> None:
    """After a second, as another life of the same worker; requests need it, and get it."""
    with running(a_small_fleet(), tmp_path, is_restarting=True) as fleet:
        first = fleet.pids()["west/decode-0"]

        fleet.kill("west/decode-0")
        wait_for(lambda: fleet.pids().get("west/decode-0", first) != first, 10)
        wait_for(lambda: fleet.complete("are you back?").status == 200, 20)

        assert said(fleet, "west/decode-0 ended (killed by SIGKILL); started again in 1 s")
    assert fleet.process.returncode == 0
    assert left_behind(home) == []


def test_a_worker_that_dies_again_and_again_is_given_up_loudly(home: Path, tmp_path: Path) -> None:
    """After five deaths within a minute; the fleet goes on with the others."""
    with running(a_small_fleet(west_decode=2), tmp_path, is_restarting=True) as fleet:
        for _ in range(5):
            pid = wait_for(lambda: fleet.pids().get("west/decode-0"), 20)
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda pid=pid: is_gone(pid), 20)
        wait_for(lambda: said(fleet, "west/decode-0 ended (killed by SIGKILL, 5 times"), 20)

        answer = fleet.complete("who is there?")

        assert answer.headers["x-prfaas-decode"] == "west/decode-1"
        assert said(fleet, "it is given up")
        assert said(fleet, "started again in 8 s")
    assert left_behind(home) == []


def test_several_routers_serve_one_fleet_and_a_dead_one_comes_back(
    home: Path, tmp_path: Path
) -> None:
    """On ports next to each other; the others serve meanwhile."""
    config = a_small_fleet()
    port = two_free_ports()
    ports = {"port": port, "admin_port": two_free_ports(), "replicas": 2}
    router = config.router.model_copy(update=ports)
    config = config.model_copy(update={"router": router})
    with running(config, tmp_path, is_restarting=True) as fleet:
        assert {"router-0", "router-1"} <= fleet.pids().keys()
        urls = [f"http://127.0.0.1:{port + number}" for number in range(2)]
        assert all(is_ready(url) for url in urls)

        fleet.kill("router-0")
        body = json.dumps({"model": MODEL, "prompt": "hi", "max_tokens": 2}).encode()
        answers = [post(f"{urls[1]}/v1/completions", body) for _ in range(4)]
        wait_for(lambda: is_ready(urls[0]), 20)
        answers.append(post(f"{urls[0]}/v1/completions", body))

        assert [answer.status for answer in answers] == [200] * 5
    assert fleet.process.returncode == 0
    assert left_behind(home) == []


def two_free_ports() -> int:
    """The first of two ports next to each other that were free a moment ago."""
    while True:
        port = free_port()
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port + 1))
            return port


def test_a_worker_that_cannot_start_ends_the_start(home: Path, tmp_path: Path) -> None:
    """At once and by name, and not after a minute of waiting for it."""
    config = a_small_fleet()
    east = DatacenterConfig(name="east", prefill_workers=1, host="192.0.2.1")
    config = config.model_copy(update={"datacenters": (east, config.datacenters[1])})
    fleet = Fleet(config, tmp_path)

    status = fleet.process.wait(30)
    fleet.stop()

    assert status == 1
    assert said(fleet, "cannot listen on 192.0.2.1")
    assert said(fleet, "east/prefill-0 ended")
    assert left_behind(home) == []


# --- Single processes -------------------------------------------------------------------------


@contextmanager
def a_process(redis_url: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """One `prfaas` command for the length of a block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "controlplane.cli", *arguments],
        env={**os.environ, "REDIS_URL": redis_url},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait(10)


def test_single_processes_form_a_fleet(home: Path) -> None:
    """They meet in Redis; one that is stopped says goodbye, and is gone within seconds."""
    config = a_small_fleet()
    path = a_file(home, to_toml(config))
    url = f"http://127.0.0.1:{config.router.port}"
    server = EmbeddedServer()
    server.start()
    with ExitStack() as stack:
        stack.callback(server.stop)
        start = lambda *arguments: stack.enter_context(  # noqa: E731 - a name for three calls
            a_process(server.url, *arguments, "--fleet", path)
        )
        router = start("router")
        prefill = start(
            *["worker", "--datacenter", "east", "--role", "prefill", "--name", "prefill-0"]
        )
        decode = start(
            *["worker", "--datacenter", "west", "--role", "decode", "--name", "decode-0"]
        )
        wait_for(lambda: is_ready(url), 30)
        body = {"model": MODEL, "prompt": "hello", "max_tokens": 4}
        answer = post(f"{url}/v1/completions", json.dumps(body).encode())

        prefill.terminate()
        prefill_status = prefill.wait(30)
        wait_for(lambda: get(f"{url}/ready").json()["prefill_workers"] == 0, 10)
        decode.send_signal(signal.SIGINT)
        decode_status = decode.wait(30)
        router.terminate()
        router_status = router.wait(30)

    assert answer.status == 200
    assert answer.headers["x-prfaas-prefill"] == "east/prefill-0"
    assert (prefill_status, decode_status, router_status) == (0, 0, 0)
    assert left_behind(home) == []


def is_ready(url: str) -> bool:
    """Whether a router listens and sees a worker of each role."""
    try:
        return get(f"{url}/ready").status == 200
    except OSError:
        return False


def test_a_process_whose_port_is_taken_says_so(home: Path) -> None:
    """Exit status 2 and the address, for each listener there is."""
    config = a_small_fleet()
    path = a_file(home, to_toml(config))
    worker = ["worker", "--datacenter", "east", "--role", "prefill", "--name", "prefill-0"]
    taken = config.router.port
    with socket.create_server(("127.0.0.1", taken)):
        for arguments in (
            ["router"],
            [*worker, "--port", str(taken)],
            [*worker, "--kv-port", str(taken)],
        ):
            done = subprocess.run(
                [sys.executable, "-m", "controlplane.cli", *arguments, "--fleet", path],
                env={**os.environ, "REDIS_URL": "redis://127.0.0.1:1/0"},
                capture_output=True,
                text=True,
                timeout=30,
                check=False,
            )

            assert done.returncode == 2, done.stderr
            assert f"cannot listen on 127.0.0.1:{taken}" in done.stderr
            assert "Traceback" not in done.stderr
