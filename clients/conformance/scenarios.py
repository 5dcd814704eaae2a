"""What every client library must do, seen from outside."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

from jobwire import Client, decode, encode
from jobwire.v1 import CancelJobRequest, GetJobRequest, Job, JobSpec, RetryPolicy, SubmitRequest
from nginx import READ_TIMEOUT, Nginx
from server import Driver, Running, Server


class World:
    """One library, one server, and a client of the tests' own to arrange things with."""

    def __init__(self, driver: Driver, server: Server, client: Client) -> None:
        self.driver, self.server, self.client = driver, server, client
        # Each scenario has a queue of its own.
        self.queue = f"q-{uuid4().hex[:8]}"

    async def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        return await self.driver.ask(command, self.server.address, **arguments)

    @asynccontextmanager
    async def start(self, command: str, **arguments: Any) -> AsyncIterator[Running]:
        running = await self.driver.start(command, self.server.address, **arguments)
        try:
            yield running
        finally:
            await running.process.kill()

    @asynccontextmanager
    async def worker(self, **arguments: Any) -> AsyncIterator[Running]:
        async with self.start("work", queues=[self.queue], **arguments) as running:
            await running.next("working")
            yield running

    async def submit(self, kind: str, payload: Any = None, **spec: Any) -> str:
        asked = JobSpec(kind=kind, payload=encode(payload), queue=self.queue, **spec)
        return (await self.client.submit(SubmitRequest(spec=asked))).job.job_id

    async def outcome(self, job_id: str) -> Job:
        reply = await self.client.result(job_id, 40)
        assert reply.done, f"after 40 s the job is {Job.State.Name(reply.job.state)}"
        return await self.client.get(GetJobRequest(job_id=job_id, view="JOB_VIEW_FULL"))


def same(found: Any, expected: Any) -> None:
    assert found == expected, f"{found!r}, not {expected!r}"


def within(seconds: float, began: float) -> None:
    took = time.monotonic() - began
    assert took < seconds, f"took {took:.1f} s"


def succeeded(job: Job, output: Any) -> None:
    same((Job.State.Name(job.state), decode(job.output)), ("STATE_SUCCEEDED", output))


async def one_request_id(world: World) -> None:
    arguments = {"kind": "echo", "payload": [1, "é"], "request_id": f"r-{uuid4()}"}
    first, second = [await world.ask("submit", **arguments) for _ in range(2)]
    same((first["deduplicated"], second["deduplicated"]), (False, True))
    same(second["job_id"], first["job_id"])
    other = await world.ask("submit", **{**arguments, "payload": 2})
    same((other["error"], other["reason"]), ("ALREADY_EXISTS", "REQUEST_ID_REUSED"))


async def errors(world: World) -> None:
    said = await world.ask("get", job_id="never-was")
    same((said["error"], said["reason"]), ("NOT_FOUND", "JOB_NOT_FOUND"))


async def wait(world: World) -> None:
    said = await world.ask("run", kind="echo", payload={"whole": 1, "large": 2**53 - 1, "text": "é"})
    same((said["state"], said["output"]), ("STATE_SUCCEEDED", {"whole": 1, "large": 2**53 - 1, "text": "é"}))
    # Nobody works on it yet, so it cannot be done, however long a driver takes to start.
    job_id = await world.submit("double", 2)
    soon = await world.ask("result", job_id=job_id, wait=0.1)
    same(soon["done"], False)
    async with world.worker():
        late = await world.ask("result", job_id=job_id)
        same((late["done"], late["state"]), (True, "STATE_SUCCEEDED"))


async def deadline(world: World) -> None:
    """The caller's own limit, by the language's own means, ends the call and nothing else."""
    # Nobody works on it yet, so it cannot be sooner.
    job_id = await world.submit("double", 2)
    said = await world.ask("result", job_id=job_id, limit=0.5)
    same((said["error"], said["reason"] or None), ("DEADLINE_EXCEEDED", None))
    async with world.worker():
        late = await world.ask("result", job_id=job_id, limit=40)
        same((late["done"], late["state"], late["output"]), (True, "STATE_SUCCEEDED", 4))


async def cancel(world: World) -> None:
    nap = await world.ask("submit", kind="sleep", payload={"duration": "1h"})
    await world.ask("cancel", job_id=nap["job_id"])
    said = await world.ask("result", job_id=nap["job_id"])
    same(said["state"], "STATE_CANCELLED")


async def server_comes_back(world: World) -> None:
    """A submit and a wait that begin without a server."""
    nap = await world.ask("submit", kind="sleep", payload={"duration": "300ms"})
    await world.server.kill()
    async with (
        world.start("submit", kind="echo", request_id=f"r-{uuid4()}") as submit,
        world.start("result", job_id=nap["job_id"]) as result,
    ):
        await asyncio.sleep(1)
        await world.server.start()
        assert "job_id" in (said := await submit.next()), said
        same((await result.next())["state"], "STATE_SUCCEEDED")


async def watch_across_a_kill(world: World) -> None:
    async with world.start("watch", queues=[world.queue], count=40) as watch:
        await watch.next("checkpoint")
        jobs = [await world.submit("echo", number) for number in range(20)]
        seen = [(await watch.next("finished"))["finished"] for _ in range(10)]
        await world.server.kill()
        await world.server.start()
        jobs += [await world.submit("echo", number) for number in range(20)]
        seen += [(await watch.next("finished"))["finished"] for _ in range(30)]
    same(sorted(seen), sorted(jobs))


async def through_nginx(world: World) -> None:
    """A proxy that cuts what is silent: a watch stays while nothing happens, and comes back after a restart."""
    proxy = Nginx(world.server)
    await proxy.start()
    try:
        said = await world.driver.ask("run", proxy.address, kind="echo", payload="é")
        same((said["state"], said["output"]), ("STATE_SUCCEEDED", "é"))
        failed = await world.driver.ask("get", proxy.address, job_id="never-was")
        same((failed["error"], failed["reason"]), ("NOT_FOUND", "JOB_NOT_FOUND"))
        watch = await world.driver.start("watch", proxy.address, queues=[world.queue], count=2)
        try:
            await watch.next("checkpoint")
            await asyncio.sleep(READ_TIMEOUT + 2)
            first = await world.submit("echo")
            same((await watch.next("finished"))["finished"], first)
            same(proxy.ended("WatchResults"), 0)
            await proxy.stop()
            second = await world.submit("echo")
            await proxy.start()
            same((await watch.next("finished"))["finished"], second)
        finally:
            await watch.process.kill()
    finally:
        await proxy.close()


async def work_through_nginx(world: World) -> None:
    """One stream carries results beyond what nginx takes of a request by default."""
    proxy = Nginx(world.server)
    await proxy.start()
    try:
        worker = await world.driver.start("work", proxy.address, queues=[world.queue])
        try:
            for job_id in [await world.submit("large", 512 << 10) for _ in range(4)]:
                job = await world.outcome(job_id)
                same(Job.State.Name(job.state), "STATE_SUCCEEDED")
            await asyncio.sleep(READ_TIMEOUT + 2)
            succeeded(await world.outcome(await world.submit("double", 4)), 8)
            same(proxy.ended("Work"), 0)
        finally:
            await worker.process.kill()
    finally:
        await proxy.close()


async def compression(world: World) -> None:
    """Requests in gzip: refused unless the server was told to take them, then taken from callers and workers."""
    text = "compressible " * 1000
    refused = await world.ask("run", kind="echo", payload=text, compress=True)
    same((refused["error"], refused["reason"]), ("UNIMPLEMENTED", "NOT_SUPPORTED"))
    server = Server(world.server.binary, JOBWIRE_HTTP2__ACCEPT_GZIP="true")
    try:
        await server.start()
        taking = World(world.driver, server, world.client)
        same((await taking.ask("run", kind="echo", payload=text, compress=True))["output"], text)
        async with (
            taking.start("watch", queues=[taking.queue], count=1, compress=True) as watch,
            taking.worker(compress=True),
        ):
            await watch.next("checkpoint")
            job = await taking.ask("submit", kind="double", queue=taking.queue, payload=21, compress=True)
            same((await watch.next("finished"))["finished"], job["job_id"])
            same((await taking.ask("result", job_id=job["job_id"], compress=True))["output"], 42)
    finally:
        await server.close()


async def gap(world: World) -> None:
    """A cursor of another store."""
    other = "c1.m4gK5Bp_UpgAAAAAAAAAAHuj0ws"
    failed = await world.ask("watch", after_cursor=other)
    same((failed["error"], failed["reason"]), ("OUT_OF_RANGE", "LOG_REPLACED"))
    async with world.start("watch", after_cursor=other, on_gap="ON_GAP_CONTINUE") as watch:
        same((await watch.next("gap"))["gap"], 2)


async def work(world: World) -> None:
    async with world.worker():
        jobs = [await world.submit("double", number) for number in range(20)]
        for number, job_id in enumerate(jobs):
            succeeded(await world.outcome(job_id), number * 2)


async def fail(world: World) -> None:
    async with world.worker():
        how = {"code": "smtp.refused", "retryable": False}
        job = await world.outcome(await world.submit("fail", how))
        same((Job.State.Name(job.state), job.attempt, job.error.code), ("STATE_FAILED", 1, "smtp.refused"))
        same(decode(job.error.details)["code"], "smtp.refused")
        job = await world.outcome(await world.submit("fail", {}, retry=RetryPolicy(max_attempts=1)))
        same((Job.State.Name(job.state), job.error.code), ("STATE_FAILED", "error"))
        assert "boom" in job.error.message, job.error


async def too_large(world: World) -> None:
    """An output beyond the server's limit fails the job once, and not the worker."""
    async with world.worker():
        job = await world.outcome(await world.submit("large", 2 << 20))
        same((Job.State.Name(job.state), job.attempt, job.error.code), ("STATE_FAILED", 1, "output.invalid"))
        succeeded(await world.outcome(await world.submit("double", 4)), 8)


async def retry_after(world: World) -> None:
    """The delay is the handler's, and the checkpoint reaches the next attempt."""
    async with world.worker():
        how = {"code": "busy", "after": 1.5, "until": 2}
        job = await world.outcome(await world.submit("fail", how))
        succeeded(job, {"attempt": 2, "checkpoint": {"from": 1}})
        pause = job.start_time.ToMilliseconds() - job.attempts[0].finish_time.ToMilliseconds()
        assert 1400 <= pause < 5000, f"{pause} ms between the attempts"


async def cancel_while_running(world: World) -> None:
    async with world.worker() as worker:
        job_id = await world.submit("hold", [3600])
        same((await worker.next("started"))["started"], job_id)
        began = time.monotonic()
        await world.client.cancel(CancelJobRequest(job_id=job_id))
        same((await worker.next("stopped"))["stopped"], job_id)
        within(2, began)
        job = await world.outcome(job_id)
        same(Job.State.Name(job.state), "STATE_CANCELLED")
        within(5, began)


async def drain(world: World) -> None:
    async with world.worker(concurrency=1) as worker:
        running, waiting = await world.submit("hold", [1.5]), await world.submit("hold", [0.1])
        same((await worker.next("started"))["started"], running)
        worker.process.signal(signal.SIGTERM)
        assert await worker.next("drained", "started") == {"drained": True}
        same(await worker.process.ended(), 0)
    job = await world.outcome(running)
    succeeded(job, "held")
    same(job.attempt, 1)
    async with world.worker():
        job = await world.outcome(waiting)
        succeeded(job, "held")
        same(job.attempt, 1)


async def lease_lost(world: World) -> None:
    """A worker that froze for longer than its lease: the job goes on elsewhere, and what it did is for nothing."""
    async with world.worker() as frozen:
        soon = RetryPolicy(initial_backoff={"nanos": 1000000})
        job_id = await world.submit("hold", [3600, 1], retry=soon)
        await frozen.next("started")
        # A lease that no heartbeat confirmed would go back uncounted.
        await asyncio.sleep(1.5)
        frozen.process.signal(signal.SIGSTOP)
        async with world.worker() as other:
            said = await other.next("started")
            same((said["started"], said["attempt"]), (job_id, 2))
            frozen.process.signal(signal.SIGCONT)
            same((await frozen.next("stopped"))["stopped"], job_id)
            job = await world.outcome(job_id)
            succeeded(job, "held")
            same(job.attempt, 2)
        # It is told, and goes on as a worker.
        succeeded(await world.outcome(await world.submit("double", 4)), 8)


async def worker_killer(world: World) -> None:
    """A job that kills its worker is counted."""
    policy = RetryPolicy(max_attempts=2, initial_backoff={"nanos": 1000000})
    job_id = await world.submit("die", retry=policy)
    for _ in range(2):
        async with world.worker() as worker:
            same(await worker.process.ended(), 9)
    async with world.worker():
        job = await world.outcome(job_id)
        same((Job.State.Name(job.state), job.attempt), ("STATE_FAILED", 2))
        # The third worker lives.
        succeeded(await world.outcome(await world.submit("double", 4)), 8)


async def server_restarts(world: World) -> None:
    """A worker goes on with what it holds when its server was killed."""
    async with world.worker() as worker:
        job_id = await world.submit("hold", [1.5])
        await worker.next("started")
        await world.server.kill()
        await world.server.start()
        job = await world.outcome(job_id)
        succeeded(job, "held")
        same(job.attempt, 1)
        succeeded(await world.outcome(await world.submit("double", 2)), 4)


Scenario = Callable[[World], Awaitable[None]]
CALLS: list[Scenario] = [
    one_request_id,
    errors,
    wait,
    deadline,
    cancel,
    gap,
    compression,
    server_comes_back,
    watch_across_a_kill,
    through_nginx,
]
WORKERS: list[Scenario] = [
    work,
    fail,
    too_large,
    retry_after,
    cancel_while_running,
    drain,
    lease_lost,
    worker_killer,
    server_restarts,
    work_through_nginx,
]
