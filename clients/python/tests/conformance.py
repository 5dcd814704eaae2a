"""The Python library as clients/conformance drives it: COMMAND ADDRESS ARGUMENTS, lines of JSON out."""

from __future__ import annotations

import asyncio
import datetime
import json
import os
import sys
from typing import Any

import grpc

from jobwire import Client, Context, Error, Failure, Worker, decode, encode
from jobwire.v1 import (
    CancelJobRequest,
    GetJobRequest,
    Job,
    JobFilter,
    JobSpec,
    SubmitRequest,
    WatchResultsRequest,
)


def say(**line: Any) -> None:
    print(json.dumps(line), flush=True)


def compression(args: dict[str, Any]) -> grpc.Compression | None:
    return grpc.Compression.Gzip if args.get("compress") else None


def show(job: Job) -> dict[str, Any]:
    return {"job_id": job.job_id, "state": Job.State.Name(job.state), "output": decode(job.output)}


async def submit(client: Client, args: dict[str, Any]) -> None:
    spec = JobSpec(kind=args["kind"], payload=encode(args.get("payload")), queue=args.get("queue", ""))
    reply = await client.submit(SubmitRequest(spec=spec, request_id=args.get("request_id", "")))
    say(job_id=reply.job.job_id, deduplicated=reply.deduplicated, cursor=reply.cursor)


async def run(client: Client, args: dict[str, Any]) -> None:
    spec = JobSpec(kind=args["kind"], payload=encode(args.get("payload")), queue=args.get("queue", ""))
    say(**show(await client.run(spec)))


async def result(client: Client, args: dict[str, Any]) -> None:
    async with asyncio.timeout(args.get("limit")):
        reply = await client.result(args["job_id"], args.get("wait"))
    say(done=reply.done, **show(reply.job))


async def get(client: Client, args: dict[str, Any]) -> None:
    say(**show(await client.get(GetJobRequest(job_id=args["job_id"]))))


async def cancel(client: Client, args: dict[str, Any]) -> None:
    say(**show(await client.cancel(CancelJobRequest(job_id=args["job_id"]))))


async def watch(client: Client, args: dict[str, Any]) -> None:
    """Until `count` outcomes came, or a gap."""
    request = WatchResultsRequest(
        filter=JobFilter(queues=args.get("queues", [])),
        heartbeat_interval=datetime.timedelta(seconds=1),
        on_gap=args.get("on_gap", "ON_GAP_FAIL"),
    )
    if cursor := args.get("after_cursor"):
        request.after_cursor = cursor
    count = 0
    async for message in client.watch(request):
        match message.WhichOneof("event"):
            case "finished":
                say(finished=message.finished.job_id)
                count += 1
            case "checkpoint":
                say(checkpoint=message.cursor)
            case "gap":
                say(gap=message.gap.reason)
                return
        if count == args.get("count"):
            return


async def work(address: str, args: dict[str, Any]) -> None:
    worker = Worker(
        address,
        queues=args["queues"],
        concurrency=args.get("concurrency", 4),
        drain_timeout=20,
        compression=compression(args),
    )

    @worker.handler("double")
    async def double(context: Context, number: int) -> int:
        return number * 2

    @worker.handler("large")
    async def large(context: Context, size: int) -> bytes:
        return bytes(size)

    @worker.handler("die")
    async def die(context: Context, payload: Any) -> None:
        os._exit(9)

    @worker.handler("fail")
    async def fail(context: Context, how: dict[str, Any]) -> Any:
        attempt = context.job.attempt
        if attempt >= how.get("until", 99):
            return {"attempt": attempt, "checkpoint": context.checkpoint}
        context.progress(0.5, "half", checkpoint={"from": attempt})
        if "code" not in how:
            raise ValueError("boom")
        raise Failure(
            how["code"], "no", retryable=how.get("retryable", True), retry_after=how.get("after"), details=how
        )

    @worker.handler("hold")
    async def hold(context: Context, seconds: list[float]) -> str:
        say(started=context.job.job_id, attempt=context.job.attempt)
        try:
            await asyncio.sleep(seconds[min(context.job.attempt, len(seconds)) - 1])
        except asyncio.CancelledError:
            say(stopped=context.job.job_id)
            raise
        return "held"

    say(working=worker.worker_id)
    await worker.run()
    say(drained=True)


async def main() -> None:
    command, address, args = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    if command == "work":
        return await work(address, args)
    async with Client(address, compression=compression(args)) as client:
        try:
            await {"submit": submit, "run": run, "result": result, "get": get, "cancel": cancel, "watch": watch}[
                command
            ](client, args)
        except Error as error:
            say(error=error.code.name, reason=error.reason)
        except TimeoutError:
            say(error="DEADLINE_EXCEEDED", reason=None)


asyncio.run(main())
