"""The worker against a server that does to it what real ones do now and then."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from fake import Fake, Session
from jobwire import Context, Error, Failure, Worker, decode, encode
from jobwire.v1 import Job, JobSpec, Lease, WorkerWelcome


def lease(lease_id: str, kind: str, payload: object = None, sequence: int = 1) -> Lease:
    spec = JobSpec(kind=kind, payload=encode(payload))
    return Lease(lease_id=lease_id, sequence=sequence, job=Job(job_id=f"job-{lease_id}", spec=spec, attempt=1))


class Bench:
    """A worker at work for a fake server."""

    def __init__(self, fake: Fake, worker: Worker) -> None:
        self.fake, self.worker = fake, worker
        self.cancelled: list[str] = []
        self.proceed = asyncio.Event()

    async def session(self) -> Session:
        async with asyncio.timeout(20):
            session = await self.fake.sessions.get()
            await session.seen("hello")
            return session


@contextlib.asynccontextmanager
async def bench(**settings: Any) -> AsyncIterator[Bench]:
    fake = Fake()
    async with asyncio.timeout(30), fake.serve() as address:
        worker = Worker(address, **settings)
        this = Bench(fake, worker)

        @worker.handler("double")
        async def double(context: Context, payload: Any) -> Any:
            return payload * 2

        @worker.handler("fail")
        async def fail(context: Context, payload: Any) -> None:
            raise Failure(**payload) if payload else ValueError("boom")

        @worker.handler("wait")
        async def wait(context: Context, payload: Any) -> str:
            context.progress(0.25, "quarter", checkpoint={"page": 1})
            context.progress(0.5, "half")
            try:
                await this.proceed.wait()
            except asyncio.CancelledError:
                this.cancelled.append(context.job.job_id)
                raise
            return "done"

        run = asyncio.create_task(worker.run())
        try:
            yield this
        finally:
            worker.stop()
            worker.stop()
            await run


async def acknowledge(session: Session, lease_id: str) -> Any:
    finish = await session.seen("finish", lambda finish: finish.lease_id == lease_id)
    await session.send(finish_ack={"lease_id": lease_id, "accepted": True})
    return finish


def test_outcomes() -> None:
    async def test() -> None:
        async with bench(concurrency=7, queues=["mail"], worker_id="me") as this:
            session = await this.session()
            hello = await session.seen("hello")
            assert (hello.worker_id, hello.max_in_flight, list(hello.queues)) == ("me", 7, ["mail"])
            assert list(hello.kinds) == ["double", "fail", "wait"]
            await session.send(lease=lease("a", "double", 21))
            assert decode((await acknowledge(session, "a")).succeeded) == 42
            await session.send(lease=lease("b", "fail", {"code": "x", "retryable": False, "details": [1]}))
            failed = (await acknowledge(session, "b")).failed
            assert (failed.code, failed.retryable, decode(failed.details)) == ("x", False, [1])
            await session.send(lease=lease("c", "fail", {"code": "busy", "retry_after": 1.5}))
            failed = (await acknowledge(session, "c")).failed
            assert failed.retryable and failed.retry_delay.ToMilliseconds() == 1500
            await session.send(lease=lease("d", "fail"))
            failed = (await acknowledge(session, "d")).failed
            assert (failed.code, failed.message, failed.retryable) == ("error", "ValueError: boom", True)
            bad = lease("e", "double")
            bad.job.spec.payload.text = "{"
            await session.send(lease=bad)
            failed = (await acknowledge(session, "e")).failed
            assert (failed.code, failed.retryable) == ("payload.invalid", False)

    asyncio.run(test())


class Mute(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


class Stop(BaseException):
    pass


NOW = datetime.datetime.now()


@pytest.mark.parametrize(
    ("raised", "code", "message", "retryable"),
    [
        (Failure("x", "no", retryable=False, details={"at": NOW}), "x", "no", False),
        (Failure("x", "no", retryable=False, details="\ud800"), "x", "no", False),
        (Failure("x\ud800", "no \udcff", retryable=False), "x?", "no ?", False),
        (Failure(404, retryable=False), "404", "404", False),  # type: ignore[arg-type]
        (Failure("x", Mute(), retryable=False), "x", "a Failure without a text", False),  # type: ignore[arg-type]
        (Failure("x", "no", retry_after=NOW), "x", "no", True),  # type: ignore[arg-type]
        (ValueError("no \udcff"), "error", "ValueError: no ?", True),
        (Mute(), "error", "Mute: a Mute without a text", True),
        (Stop("now"), "error", "Stop: now", True),
    ],
)
def test_a_failure_that_cannot_be_written_is_reported_as_far_as_it_can(
    raised: BaseException, code: str, message: str, retryable: bool
) -> None:
    async def test() -> None:
        async with asyncio.timeout(5), bench() as this:

            @this.worker.handler("double")
            async def fail(context: Context, payload: Any) -> None:
                raise raised

            session = await this.session()
            await session.send(lease=lease("a", "double"))
            failed = (await acknowledge(session, "a")).failed
            assert (failed.code, failed.message, failed.retryable) == (code, message, retryable)

    asyncio.run(test())


def test_a_result_that_is_refused_becomes_a_failure() -> None:
    async def test() -> None:
        async with bench() as this:
            session = await this.session()
            await session.send(lease=lease("a", "double", 1))
            await session.seen("finish")
            # Not now: it comes again. Not at all: a failure takes its place.
            for code, passes in ((14, "succeeded"), (3, "failed")):
                session.messages.clear()
                rejection = {"code": code, "message": "too large", "retry_delay": datetime.timedelta(milliseconds=10)}
                await session.send(finish_ack={"lease_id": "a", "rejection": rejection})
                finish = await session.seen("finish")
                assert finish.WhichOneof("outcome") == passes
            assert (finish.failed.code, finish.failed.message) == ("output.invalid", "too large")
            await acknowledge(session, "a")
            await session.send(lease=lease("b", "double", "x" * (3 << 20)))
            assert (await acknowledge(session, "b")).failed.code == "output.invalid"

    asyncio.run(test())


def test_heartbeats_name_what_is_held_and_progress_keeps_its_checkpoint() -> None:
    async def test() -> None:
        async with bench() as this:
            session = await this.session()
            await session.send(lease=lease("a", "wait", sequence=5))
            beat = await session.seen("heartbeat", lambda beat: list(beat.lease_ids) == ["a"])
            assert beat.last_lease_sequence == 5
            progress = (await session.seen("progress", lambda p: p.progress.fraction == 0.5)).progress
            assert (progress.note, decode(progress.details)) == ("half", {"page": 1})
            this.proceed.set()
            await acknowledge(session, "a")
            await session.seen("heartbeat", lambda beat: not beat.lease_ids)

    asyncio.run(test())


def test_a_heartbeat_names_leases_before_their_work_begins() -> None:
    async def test() -> None:
        async with bench() as this:
            session = await this.session()
            for sequence, name in enumerate("abc", 1):
                await session.send(lease=lease(name, "wait", sequence=sequence))
            this.proceed.set()
            for name in "abc":
                await acknowledge(session, name)
            named: set[str] = set()
            for message in session.messages:
                named |= set(message.heartbeat.lease_ids)
                assert not message.HasField("progress") or message.progress.lease_id in named

    asyncio.run(test())


def test_a_lease_that_is_revoked_before_its_work_begins() -> None:
    async def test() -> None:
        async with bench() as this:
            session = await this.session()
            await session.send(lease=lease("a", "wait"))
            await session.send(revoked={"lease_id": "a", "reason": "REASON_CANCELLED"})
            assert (await acknowledge(session, "a")).failed.code == "interrupted"

    asyncio.run(test())


def test_a_revoked_lease_cancels_its_handler() -> None:
    async def test() -> None:
        async with bench() as this:
            session = await this.session()
            await session.send(lease=lease("a", "wait"))
            await session.seen("progress")
            await session.send(revoked={"lease_id": "a", "reason": "REASON_CANCELLED"})
            finish = await acknowledge(session, "a")
            assert finish.failed.code == "interrupted" and this.cancelled == ["job-a"]

    asyncio.run(test())


def test_a_lost_lease_is_dropped() -> None:
    async def test() -> None:
        async with bench() as this:
            session = await this.session()
            await session.send(lease=lease("a", "wait"))
            await session.seen("progress")
            await session.send(heartbeat_ack={"lost_lease_ids": ["a"]})
            await session.send(lease=lease("b", "double", 1))
            await acknowledge(session, "b")
            assert this.cancelled == ["job-a"]
            assert not any(m.finish.lease_id == "a" for m in session.messages)

    asyncio.run(test())


def test_a_worker_comes_back_with_what_it_holds() -> None:
    async def test() -> None:
        async with bench() as this:
            first = await this.session()
            for name, kind in (("a", "wait"), ("b", "double"), ("c", "wait")):
                await first.send(lease=lease(name, kind, 4))
            await first.seen("finish")
            await first.seen("heartbeat", lambda beat: sorted(beat.lease_ids) == ["a", "c"])
            this.fake.welcomes = [WorkerWelcome(lost_lease_ids=["c"])]
            await first.send(drain={})
            second = await this.session()
            assert sorted((await second.seen("hello")).held_lease_ids) == ["a", "b", "c"]
            # The result that was not acknowledged comes again.
            assert decode((await acknowledge(second, "b")).succeeded) == 8
            await second.seen("progress", lambda p: p.lease_id == "a")
            await first.ended.wait()
            this.proceed.set()
            await acknowledge(second, "a")
            assert this.cancelled == ["job-c"]

    asyncio.run(test())


def test_a_result_outlives_its_lease_until_it_is_answered() -> None:
    async def test() -> None:
        async with asyncio.timeout(5), bench() as this:
            first = await this.session()
            await first.send(lease=lease("a", "double", 4))
            await first.seen("finish")
            await first.send(heartbeat_ack={"lost_lease_ids": ["a"]})
            this.fake.welcomes = [WorkerWelcome(lost_lease_ids=["a"])]
            await first.send(drain={})
            second = await this.session()
            assert decode((await second.seen("finish")).succeeded) == 8
            # The next attempt has begun.
            await second.send(finish_ack={"lease_id": "a", "rejection": {"code": 9, "reason": "LEASE_LOST"}})
            await second.send(drain={})
            third = await this.session()
            assert not (await third.seen("hello")).held_lease_ids

    asyncio.run(test())


def test_a_worker_leaves_a_server_that_does_not_read() -> None:
    async def test() -> None:
        async with bench() as this:
            this.fake.deaf = True
            first = await this.session()
            this.fake.deaf = False
            # More than the stream holds: a write is under way when the worker gives the stream up.
            for sequence, name in enumerate("abc", 1):
                await first.send(lease=lease(name, "double", "x" * (3 << 19), sequence))
            second = await this.session()
            for name in "abc":
                await acknowledge(second, name)

    asyncio.run(test())


def test_sigterm_drains() -> None:
    async def test() -> None:
        async with bench() as this:
            session = await this.session()
            await session.send(lease=lease("a", "wait"))
            await session.seen("progress")
            os.kill(os.getpid(), signal.SIGTERM)
            assert (await session.seen("capacity")).max_in_flight == 0
            # On its way before the server knew: given back.
            await session.send(lease=lease("b", "double", 1))
            assert (await acknowledge(session, "b")).HasField("released")
            this.proceed.set()
            assert decode((await acknowledge(session, "a")).succeeded) == "done"
            await session.ended.wait()
            assert this.cancelled == []

    asyncio.run(test())


def test_a_drain_gives_back_what_does_not_end() -> None:
    async def test() -> None:
        async with bench(drain_timeout=0.1) as this:
            session = await this.session()
            await session.send(lease=lease("a", "wait"))
            await session.seen("progress")
            this.worker.stop()
            assert (await acknowledge(session, "a")).HasField("released")
            assert this.cancelled == ["job-a"]

    asyncio.run(test())


def test_a_handler_that_does_not_end_is_left(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("jobwire.worker._LAST_WORDS", 0.1)

    async def test() -> None:
        async with asyncio.timeout(5), bench(drain_timeout=0.1) as this:

            @this.worker.handler("double")
            async def stay(context: Context, payload: Any) -> None:
                context.progress(0.5)
                with contextlib.suppress(asyncio.CancelledError):
                    await this.proceed.wait()
                await this.proceed.wait()

            session = await this.session()
            await session.send(lease=lease("a", "double"))
            await session.seen("progress")
            this.worker.stop()
            assert (await acknowledge(session, "a")).released.reason == "the handler did not end"
        assert "the handler of job job-a does not end" in caplog.text

    asyncio.run(test())


def test_a_refusal_ends_the_worker() -> None:
    async def test() -> None:
        server = grpc.aio.server()
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        worker = Worker(f"127.0.0.1:{port}")

        @worker.handler("any")
        async def handle(context: Context, payload: Any) -> None: ...

        with pytest.raises(Error) as caught:
            await worker.run()
        assert caught.value.code is grpc.StatusCode.UNIMPLEMENTED
        await server.stop(None)

    asyncio.run(test())
