"""nginx with grpc_pass, between a library and the server."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from pathlib import Path

from server import Process, Server, connects, free_port

# Shorter than the watch is idle in the scenario, longer than its heartbeat.
READ_TIMEOUT = 3

_CONFIGURATION = """
daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 64; }}
http {{
    access_log {folder}/access.log;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    server {{
        listen {address} http2;
        location / {{ grpc_pass grpc://{server}; grpc_read_timeout {timeout}s; grpc_send_timeout {timeout}s; }}
    }}
}}
"""


class Nginx:
    """A proxy that can be restarted, on a port that it keeps."""

    def __init__(self, server: Server) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="jobwire-nginx-")
        self.address = f"127.0.0.1:{free_port()}"
        self._file = Path(self._folder.name) / "nginx.conf"
        text = _CONFIGURATION.format(
            folder=self._folder.name, address=self.address, server=server.address, timeout=READ_TIMEOUT
        )
        self._file.write_text(text)
        self._process: Process | None = None

    async def start(self) -> None:
        # Debian keeps it out of the way of those who are not root.
        nginx = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin") or "nginx"
        self._process = await Process.start([nginx, "-c", str(self._file), "-e", f"{self._folder.name}/error.log"])
        while not await connects(self.address):
            await asyncio.sleep(0.02)

    async def stop(self) -> None:
        """Without a last word to those who are connected."""
        if self._process:
            await self._process.terminate()
            self._process = None

    def ended(self, method: str) -> int:
        """How many calls of a method have ended."""
        log = Path(self._folder.name) / "access.log"
        return log.read_text().count(f"/{method} ") if log.exists() else 0

    async def close(self) -> None:
        await self.stop()
        self._folder.cleanup()
