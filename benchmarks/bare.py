"""The floor: a pass-through on aiohttp and uvloop that parses nothing and decides nothing."""

from __future__ import annotations

import asyncio
import json
import sys

import aiohttp
import uvloop
from aiohttp import web


async def _forward(request: web.Request) -> web.StreamResponse:
    body = await request.read()
    target, session = request.app[_TARGET], request.app[_SESSION]
    headers = {"Content-Type": request.headers["Content-Type"]}
    async with session.post(target + request.path, data=body, headers=headers) as answer:
        said = {"Content-Type": answer.headers["Content-Type"]}
        if answer.content_length is not None:
            return web.Response(body=await answer.read(), status=answer.status, headers=said)
        response = web.StreamResponse(status=answer.status, headers=said)
        await response.prepare(request)
        async for piece in answer.content.iter_any():
            await response.write(piece)
        await response.write_eof()
        return response


_TARGET = web.AppKey("target", str)
_SESSION = web.AppKey("session", aiohttp.ClientSession)


async def _serve(target: str) -> None:
    """Listen, say where, and serve until standard input closes."""
    app = web.Application(client_max_size=1 << 20)
    app.router.add_post("/{path:.*}", _forward)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session:
        app[_TARGET], app[_SESSION] = target, session
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(sys.stdin.fileno(), ended.set)
        host, port = runner.addresses[0][:2]
        print(json.dumps({"url": f"http://{host}:{port}"}), flush=True)
        await ended.wait()
        await runner.cleanup()


if __name__ == "__main__":
    uvloop.run(_serve(*sys.argv[1:]))
