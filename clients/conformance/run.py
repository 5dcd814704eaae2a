#!/usr/bin/env python3
"""Drives the client libraries through the same scenarios against the real server, and prints a table.

usage: run.py --server BINARY [--driver NAME=COMMAND…] [--only SCENARIO]

A driver speaks as clients/python/tests/conformance.py does. Each has a server of its own; they run side by side.
"""

from __future__ import annotations

import argparse
import asyncio
import shlex
import sys
import time
import traceback
from pathlib import Path

import grpc
from jobwire import Client
from jobwire.v1 import LeaseJobsRequest
from jobwire.v1.worker_service_pb2_grpc import WorkerServiceStub
from scenarios import CALLS, WORKERS, Scenario, World
from server import PATIENCE, Driver, Server


async def serves_workers(address: str) -> bool:
    async with grpc.aio.insecure_channel(address) as channel:
        try:
            await WorkerServiceStub(channel).LeaseJobs(LeaseJobsRequest(worker_id="probe", kinds=["none"], max_jobs=1))
        except grpc.aio.AioRpcError as error:
            return error.code() is not grpc.StatusCode.UNIMPLEMENTED
    return True


async def play(driver: Driver, binary: Path, chosen: list[Scenario]) -> dict[str, str]:
    """A word for each scenario."""
    words = {}
    server = Server(binary)
    try:
        await server.start()
        for scenario in chosen:
            if scenario in WORKERS and not (driver.works and await serves_workers(server.address)):
                words[scenario.__name__] = "-"
                continue
            async with Client(server.address) as client:
                began = time.monotonic()
                try:
                    async with asyncio.timeout(2 * PATIENCE):
                        await scenario(World(driver, server, client))
                    words[scenario.__name__] = f"{time.monotonic() - began:.1f} s"
                except Exception as error:
                    words[scenario.__name__] = "FAILED"
                    line = traceback.extract_tb(error.__traceback__)[-1].lineno
                    why = f"{type(error).__name__}: {error}"
                    print(f"{driver.name}, {scenario.__name__}: {why} (line {line})", file=sys.stderr)
            # Left down by a scenario that failed.
            await server.kill()
            await server.start()
    finally:
        await server.close()
    return words


async def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", type=Path, required=True)
    parser.add_argument("--driver", action="append", default=[], metavar="NAME=COMMAND")
    parser.add_argument("--calls-only", action="append", default=[], metavar="NAME", help="a driver that has no worker")
    parser.add_argument("--only", help="scenarios whose name has this in it")
    arguments = parser.parse_args()
    drivers = []
    for text in arguments.driver:
        name, _, command = text.partition("=")
        drivers.append(Driver(name, shlex.split(command), works=name not in arguments.calls_only))
    chosen = [scenario for scenario in CALLS + WORKERS if (arguments.only or "") in scenario.__name__]
    results = await asyncio.gather(*(play(driver, arguments.server, chosen) for driver in drivers))

    print("".join(f"{title:<24}" if not title else f"{title:>12}" for title in ["", *(d.name for d in drivers)]))
    for scenario in chosen:
        words = [result[scenario.__name__] for result in results]
        print(f"{scenario.__name__.replace('_', ' '):<24}" + "".join(f"{word:>12}" for word in words))
    every = [word for result in results for word in result.values()]
    failed, skipped = every.count("FAILED"), every.count("-")
    print(f"conformance: {len(every) - failed - skipped} passed, {failed} failed, {skipped} skipped")
    return 1 if failed or skipped == len(every) else 0


sys.exit(asyncio.run(main()))
