#!/usr/bin/env python3
"""Runs somebody else's program against a real server, and looks for a text in what it prints.

usage: tool.py BINARY TEXT COMMAND…, where {address} stands for the server's
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from server import PATIENCE, Server


async def main(binary: str, text: str, *command: str) -> int:
    server = Server(Path(binary))
    await server.start()
    try:
        words = [word.replace("{address}", server.address) for word in command]
        program = await asyncio.create_subprocess_exec(
            *words, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        try:
            # The first time, Maven brings half of its world.
            async with asyncio.timeout(5 * PATIENCE):
                printed, _ = await program.communicate()
        finally:
            if program.returncode is None:
                program.kill()
    finally:
        await server.close()
    if program.returncode == 0 and text in printed.decode():
        print(f"{Path(command[0]).name}: {text}")
        return 0
    print(printed.decode(), f"{Path(command[0]).name} ended with {program.returncode}, without: {text}", sep="\n")
    return 1


sys.exit(asyncio.run(main(*sys.argv[1:])))
