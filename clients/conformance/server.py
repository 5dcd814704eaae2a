"""A real server that can be killed, and the drivers that speak to it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CLIENTS = Path(__file__).resolve().parent.parent
PATIENCE = 60.0  # Seconds; nothing that works takes as long.


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def connects(address: str) -> bool:
    """Whether somebody listens there."""
    host, port = address.rsplit(":", 1)
    try:
        _, writer = await asyncio.open_connection(host, int(port))
    except OSError:
        return False
    writer.close()
    return True


def environment() -> dict[str, str]:
    """Without settings of jobwire, which would change what is tested."""
    return {name: value for name, value in os.environ.items() if not name.startswith("JOBWIRE_")}


class Process:
    """A program whose standard output is read line by line."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, command: list[str], **settings: str) -> Process:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=sys.stderr if os.environ.get("VERBOSE") else asyncio.subprocess.DEVNULL,
            env=environment() | settings,
        )
        return cls(process)

    async def line(self) -> str:
        async with asyncio.timeout(PATIENCE):
            assert self._process.stdout
            return (await self._process.stdout.readline()).decode()

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def ended(self) -> int:
        """Its exit code."""
        async with asyncio.timeout(PATIENCE):
            return await self._process.wait()

    async def terminate(self) -> None:
        """SIGTERM, and SIGKILL if that does not help."""
        if self._process.returncode is None:
            self.signal(signal.SIGTERM)
        try:
            await self.ended()
        except TimeoutError:
            await self.kill()

    async def kill(self) -> None:
        if self._process.returncode is None:
            # Not Process.kill: that may collect the exit code, which the event loop waits for.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGKILL)
        await self._process.wait()


class Server:
    """The real binary, on a port that it keeps, with a store that it keeps."""

    def __init__(self, binary: Path, **settings: str) -> None:
        self.binary = binary
        # Leases are short, so that what depends on one that runs out is soon seen.
        self._settings = {"JOBWIRE_WORKERS__LEASE": "3s", "JOBWIRE_WORKERS__HEARTBEAT": "500ms"} | settings
        self._folder = tempfile.TemporaryDirectory(prefix="jobwire-conformance-")
        self.address = f"127.0.0.1:{free_port()}"
        self._process: Process | None = None

    async def start(self) -> None:
        self._process = await Process.start(
            [str(self.binary), "serve", "--listen", self.address, "--data", self._folder.name + "/data"],
            **self._settings,
        )
        first = await self._process.line()
        assert first.startswith("listening on"), first

    async def kill(self) -> None:
        """kill -9."""
        if self._process:
            await self._process.kill()
            self._process = None

    async def close(self) -> None:
        await self.kill()
        self._folder.cleanup()


@dataclass
class Language:
    """Where its library is, and how the programs of its README are found and run."""

    folder: str
    fence: str
    suffix: str
    run: list[str]


class Driver:
    """A library, behind a program that does with it what it is told."""

    def __init__(self, name: str, command: list[str], language: Language | None = None) -> None:
        self.name = name
        self.language = language
        self._command = command

    async def start(self, command: str, address: str, **arguments: Any) -> Running:
        return Running(await Process.start([*self._command, command, address, json.dumps(arguments)]))

    async def ask(self, command: str, address: str, **arguments: Any) -> dict[str, Any]:
        """The one line that it answers."""
        running = await self.start(command, address, **arguments)
        try:
            return await running.next()
        finally:
            await running.process.kill()


class Running:
    """A driver that goes on."""

    def __init__(self, process: Process) -> None:
        self.process = process

    async def next(self, *kinds: str) -> dict[str, Any]:
        """The next line, or the next that has one of these keys."""
        while True:
            line = await self.process.line()
            assert line, f"the driver ended before it said {kinds or 'anything'}"
            said: dict[str, Any] = json.loads(line)
            if not kinds or any(kind in said for kind in kinds):
                return said
            assert "error" not in said, said
