#!/usr/bin/env python3
"""A page in a real headless Chromium submits, reads an error and watches across a kill of the server, over gRPC-Web.

usage: browser.py BINARY
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import threading
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from jobwire import Client
from jobwire.v1 import JobSpec, SubmitRequest
from server import CLIENTS, PATIENCE, Process, Server

# Nothing beyond this machine is asked.
_CHROMIUM = [
    "chromium",
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


class Site(SimpleHTTPRequestHandler):
    """The page, the library's files, and what the page says."""

    def __init__(self, hear: Callable[[dict[str, Any]], None], *arguments: Any) -> None:
        self._hear = hear
        super().__init__(*arguments, directory=str(CLIENTS / "typescript"))

    def translate_path(self, path: str) -> str:
        if path.startswith("/page.html"):
            return str(Path(__file__).with_name("page.html"))
        return super().translate_path(path)

    def do_POST(self) -> None:
        self._hear(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


async def main(binary: Path) -> None:
    said: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    site = ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Site, lambda line: loop.call_soon_threadsafe(said.put_nowait, line))
    )
    threading.Thread(target=site.serve_forever, daemon=True).start()
    origin = f"http://127.0.0.1:{site.server_port}"

    async def next(kind: str) -> Any:
        async with asyncio.timeout(PATIENCE):
            while kind not in (line := await said.get()):
                assert "error" not in line, line
        return line[kind]

    server = Server(binary, JOBWIRE_WEB__ALLOWED_ORIGINS=origin)
    await server.start()
    with tempfile.TemporaryDirectory(prefix="jobwire-chromium-", ignore_cleanup_errors=True) as profile:
        page = f"{origin}/page.html?server=http://{server.address}"
        chromium = await Process.start([*_CHROMIUM, f"--user-data-dir={profile}", page])
        try:
            output = await next("output")
            assert output == {"hello": "world"}, output
            reason = await next("reason")
            assert reason == "JOB_NOT_FOUND", reason
            await next("checkpoint")
            for kills in (1, 0):
                async with Client(server.address) as client:
                    spec = JobSpec(kind="echo", queue="browser")
                    job = (await client.submit(SubmitRequest(spec=spec))).job
                finished = await next("finished")
                assert finished == job.job_id, finished
                if kills:
                    await server.kill()
                    await server.start()
        finally:
            await chromium.terminate()
            await server.close()
            site.shutdown()
    print("browser: submitted, read an error, and watched across a kill of the server")


asyncio.run(main(Path(sys.argv[1])))
