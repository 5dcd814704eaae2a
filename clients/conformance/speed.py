#!/usr/bin/env python3
"""Measures one worker process of the Python library: no-op jobs a second, from the first lease to the last outcome.

usage: speed.py BINARY [JOBS]
"""

from __future__ import annotations

import asyncio
import statistics
import sys
from pathlib import Path

from jobwire import Client, Context, Worker
from jobwire.v1 import BatchSubmitRequest, Job, JobFilter, JobSpec, ListJobsRequest, SubmitRequest
from server import PATIENCE, Process, Server

RUNS = 3
CONCURRENCY = 256
BATCH = 1000


async def work(address: str) -> None:
    worker = Worker(address, concurrency=CONCURRENCY)

    @worker.handler("noop")
    async def noop(context: Context, payload: object) -> None:
        pass

    await worker.run()


async def jobs(client: Client, *states: Job.State) -> list[Job]:
    request = ListJobsRequest(filter=JobFilter(states=states), page_size=BATCH)
    return [job async for page in client.list(request) for job in page.jobs]


async def measure(binary: Path, count: int) -> float:
    # The defaults: the tests' leases are short.
    server = Server(binary, JOBWIRE_WORKERS__LEASE="30s", JOBWIRE_WORKERS__HEARTBEAT="5s")
    await server.start()
    worker: Process | None = None
    try:
        async with Client(server.address) as client:
            noop = SubmitRequest(spec=JobSpec(kind="noop"))
            for first in range(0, count, BATCH):
                await client.batch_submit(BatchSubmitRequest(requests=[noop] * min(BATCH, count - first)))
            worker = await Process.start([sys.executable, __file__, "--work", server.address])
            async with asyncio.timeout(5 * PATIENCE):
                # Rare and small, so that the measurement does not take the processor from what it measures.
                one = ListJobsRequest(filter=JobFilter(states=["STATE_QUEUED", "STATE_RUNNING"]), page_size=1)
                while (await anext(client.list(one))).jobs:
                    await asyncio.sleep(0.25)
            done = await jobs(client, Job.STATE_SUCCEEDED)
    finally:
        if worker:
            await worker.terminate()
        await server.close()
    assert len(done) == count, f"{len(done)} of {count} jobs succeeded"
    assert all(job.attempt == 1 for job in done), "a job was tried again"
    began = min(job.start_time.ToNanoseconds() for job in done)
    ended = max(job.finish_time.ToNanoseconds() for job in done)
    return count / (ended - began) * 1e9


async def main(binary: str, count: str = "20000") -> None:
    rates = [await measure(Path(binary), int(count)) for _ in range(RUNS)]
    each = ", ".join(f"{rate:.0f}" for rate in rates)
    print(f"{statistics.median(rates):.0f} jobs a second: the median of {each}; {count} jobs, concurrency {CONCURRENCY}")


if sys.argv[1] == "--work":
    asyncio.run(work(sys.argv[2]))
else:
    asyncio.run(main(*sys.argv[1:]))
