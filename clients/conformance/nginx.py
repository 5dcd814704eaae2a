"""nginx between a library and the server, with the server block of clients/README.md."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import tempfile
from pathlib import Path

from server import CLIENTS, Process, Server, connects, free_port

# Shorter than the watch is idle in the scenario, longer than its heartbeat.
READ_TIMEOUT = 3

_CONFIGURATION = """
daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 64; }}
http {{
    access_log {folder}/access.log;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    {block}
}}
"""


def _block(address: str, server: str) -> str:
    """As it is printed, but for the addresses and the times."""
    text = (CLIENTS / "README.md").read_text()
    printed = re.search(r"^```nginx\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert printed, "clients/README.md has no server block"
    block = printed[1]
    for old, new in (("50052", address), ("127.0.0.1:50051", server), ("90s", f"{READ_TIMEOUT}s")):
        assert old in block, f"the server block has no {old}"
        block = block.replace(old, new)
    return block


class Nginx:
    """A proxy that can be restarted, on a port that it keeps."""

    def __init__(self, server: Server) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="jobwire-nginx-")
        self.address = f"127.0.0.1:{free_port()}"
        self._file = Path(self._folder.name) / "nginx.conf"
        block = _block(self.address, server.address)
        self._file.write_text(_CONFIGURATION.format(folder=self._folder.name, block=block))
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
