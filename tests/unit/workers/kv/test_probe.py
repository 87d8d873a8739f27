"""A decode worker finds out whether the way to another worker's KV is open in both directions."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator

import pytest
from kv_builders import HOST, Run, an_owner

from controlplane.wire import KvAddress
from workers.kv import owner as owner_module
from workers.kv.probe import probe_owner

#: What ends by its timeout waits for all of it.
SHORT_S = 0.1


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A port whose kernel takes connections, and whose process says nothing."""
    with socket.create_server((HOST, 0)) as listener:
        yield listener


def address(listener: socket.socket) -> KvAddress:
    return KvAddress(host=HOST, port=listener.getsockname()[1])


def test_an_owner_answers_though_it_has_no_such_segment(run: Run) -> None:
    async def main() -> None:
        async with an_owner() as owner:
            reply = await probe_owner(KvAddress(host=HOST, port=owner.server.port), timeout_s=5.0)

        assert reply.sign == "answered"
        assert reply.rtt_s > 0

    run(main())


def test_an_owner_with_too_many_readers_is_not_taken_for_a_cut(run: Run) -> None:
    async def main() -> None:
        async with an_owner(connections_max=0) as owner:
            reply = await probe_owner(KvAddress(host=HOST, port=owner.server.port), timeout_s=5.0)

        assert reply.sign != "silent"

    run(main())


def test_a_connection_that_is_taken_and_not_answered_is_silence(
    run: Run, listener: socket.socket
) -> None:
    """A link that is cut one way, or a process that stands still."""

    async def main() -> None:
        reply = await probe_owner(address(listener), timeout_s=SHORT_S)

        assert (reply.sign, reply.rtt_s) == ("silent", 0.0)

    run(main())


def test_a_port_where_nobody_listens_tells_nothing_of_the_way(
    run: Run, listener: socket.socket
) -> None:
    target = address(listener)
    listener.close()

    async def main() -> None:
        assert (await probe_owner(target, timeout_s=5.0)).sign == "refused"

    run(main())


@pytest.mark.parametrize(
    ("number", "sign"),
    [
        pytest.param(errno.EHOSTUNREACH, "silent", id="no way there"),
        pytest.param(errno.ENETUNREACH, "silent", id="no network"),
        pytest.param(errno.EMFILE, "refused", id="this process has no files left"),
    ],
)
def test_what_a_system_call_says_is_of_the_way_or_of_a_process(
    run: Run, monkeypatch: pytest.MonkeyPatch, number: int, sign: str
) -> None:
    async def connect(host: str, port: int) -> socket.socket:
        raise OSError(number, host, port)

    monkeypatch.setattr(owner_module, "connect", connect)

    async def main() -> None:
        assert (await probe_owner(KvAddress(host=HOST, port=9), timeout_s=5.0)).sign == sign

    run(main())
