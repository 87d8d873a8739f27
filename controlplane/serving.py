"""What every process of the fleet does the same way: listen, and run tasks beside its listener."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

from aiohttp import hdrs, web

from controlplane.errors import ConfigError

#: Header lines of one request; the parser's own default, said aloud.
_HEADER_LINE_BYTES_MAX: Final = 8190

#: An idle connection is kept this long for its next request.
_KEEPALIVE_S: Final = 75.0

#: After draining, handlers that are still running get this long, and once more when cancelled.
_SHUTDOWN_S: Final = 1.0

#: Connections waiting to be accepted.
_BACKLOG: Final = 1024


def runner_options(keepalive_s: float = _KEEPALIVE_S) -> dict[str, Any]:
    """
    How aiohttp's runner serves in every process.

    A handler is cancelled when its client leaves: aiohttp's runner does not do this by default,
    its test server does, so it is said here and tested with this runner.

    Args:
        keepalive_s: An idle connection is kept this long for its next request.
    """
    return {
        "handler_cancellation": True,
        "access_log": None,
        "keepalive_timeout": keepalive_s,
        "shutdown_timeout": _SHUTDOWN_S,
        "max_line_size": _HEADER_LINE_BYTES_MAX,
        "max_field_size": _HEADER_LINE_BYTES_MAX,
    }


async def listen(stack: AsyncExitStack, app: web.Application, host: str, port: int) -> str:
    """
    Serve an application to processes that are trusted, until the stack unwinds.

    Returns:
        The base URL; with port 0 it has the port that was found.

    Raises:
        ConfigError: The address cannot be listened on.
    """
    return await start_site(stack, app, web.AppRunner(app, **runner_options()), host, port)


async def start_site(
    stack: AsyncExitStack, app: web.Application, runner: web.AppRunner, host: str, port: int
) -> str:
    """
    Listen with a runner until the stack unwinds; as `listen`.

    The address is reused, so a replacement can listen as soon as its predecessor has closed it.
    Two processes never share a port: the one that leaves would still be given half of the
    connections, and a port that is taken by mistake would not be noticed.
    """
    app.on_response_prepare.append(_sign)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    site = web.TCPSite(runner, host, port, backlog=_BACKLOG, reuse_address=True)
    try:
        await site.start()
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
    bound_host, bound_port = runner.addresses[0][:2]
    return f"http://{bound_host}:{bound_port}"


async def _sign(_: web.Request, response: web.StreamResponse) -> None:
    """Say who answers, and not with which versions of what."""
    response.headers[hdrs.SERVER] = "prfaas"


@asynccontextmanager
async def background(**jobs: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """
    Run jobs while the block runs; cancel them when it ends.

    A job that fails cancels the block and the other jobs: a process whose view or heartbeat has
    died must not go on as if nothing had happened.
    """
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(job, name=name) for name, job in jobs.items()]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
