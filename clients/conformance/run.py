#!/usr/bin/env python3
"""Drives the client libraries through the same scenarios against the real server, and prints a table.

A driver takes a command, the address and arguments in JSON, and answers in lines of JSON, as
clients/python/tests/conformance.py does. Each has a server of its own; they run side by side.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
import traceback
from pathlib import Path

from jobwire import Client
from readme import readme
from scenarios import CALLS, WORKERS, Scenario, World
from server import CLIENTS, PATIENCE, Driver, Language, Server

_GO_RUN = ["sh", "-c", 'cd "$(dirname "$0")" && go build -o "$0.out" "$0" && exec "$0.out"']
PYTHON = Language("python", "python", "py", [sys.executable])
TYPESCRIPT = Language("typescript", "js", "mjs", ["node"])
GO = Language("go", "go", "go", _GO_RUN)


async def play(driver: Driver, binary: Path, chosen: list[Scenario], failures: list[str]) -> dict[str, str]:
    """A word for each scenario, and why it failed."""
    words = {}
    server = Server(binary)
    try:
        await server.start()
        for scenario in chosen:
            if scenario is readme and not driver.language:
                words[scenario.__name__] = "-"
                continue
            began = time.monotonic()
            try:
                async with asyncio.timeout(2 * PATIENCE), Client(server.address) as client:
                    await scenario(World(driver, server, client))
                words[scenario.__name__] = f"{time.monotonic() - began:.1f} s"
            except Exception as error:
                words[scenario.__name__] = "FAILED"
                line = traceback.extract_tb(error.__traceback__)[-1].lineno
                failures.append(f"{driver.name}, {scenario.__name__}: {type(error).__name__}: {error} ({line})")
                # It may have left the server down.
                await server.kill()
                await server.start()
    finally:
        await server.close()
    return words


async def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", type=Path, required=True, metavar="BINARY")
    parser.add_argument("--go", required=True, metavar="DRIVER", help="clients/go/internal/conformance, built")
    parser.add_argument("--rust", required=True, metavar="DRIVER", help="the example `conformance`, built")
    parser.add_argument("--only", default="", help="scenarios whose name has this in it")
    arguments = parser.parse_args()
    drivers = [
        Driver("Python", [sys.executable, str(CLIENTS / "python/tests/conformance.py")], PYTHON),
        Driver("TypeScript", ["node", str(CLIENTS / "typescript/dist/test/conformance.js")], TYPESCRIPT),
        Driver("Go", [arguments.go], GO),
        # The programs of its README are tests of cargo.
        Driver("Rust", [arguments.rust]),
    ]
    chosen = [scenario for scenario in [*CALLS, *WORKERS, readme] if arguments.only in scenario.__name__]
    failures: list[str] = []
    results = await asyncio.gather(*(play(driver, arguments.server, chosen, failures) for driver in drivers))

    print(" " * 22 + "".join(f"{driver.name:>12}" for driver in drivers))
    for scenario in chosen:
        words = [result[scenario.__name__] for result in results]
        print(f"{scenario.__name__.replace('_', ' '):<22}" + "".join(f"{word:>12}" for word in words))
    print(*failures, sep="\n", end="\n" if failures else "")
    every = [word for result in results for word in result.values()]
    failed, skipped = every.count("FAILED"), every.count("-")
    passed = len(every) - failed - skipped
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return 0 if passed and not failed else 1


sys.exit(asyncio.run(main()))
