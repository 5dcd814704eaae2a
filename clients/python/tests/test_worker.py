"""The worker against a server that does to it what real ones do now and then."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import functools
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
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
async def bench(*, signals: bool = True, **settings: Any) -> AsyncIterator[Bench]:
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

        run = asyncio.create_task(worker.run(signals=signals))
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


async def nothing(context: Context, payload: Any) -> None: ...


class Handler:
    async def __call__(self, context: Context, payload: Any) -> None: ...


def test_a_handler_is_async() -> None:
    worker = Worker()
    for handler in (nothing, Handler(), Handler().__call__, functools.partial(nothing), functools.partial(Handler())):
        worker.handler("any")(handler)

    def blocking(context: Context, payload: Any) -> None: ...

    for wrong in (blocking, functools.partial(blocking), 5):
        with pytest.raises(TypeError, match="'wrong' must be async"):
            worker.handler("wrong")(wrong)  # type: ignore[arg-type]


def test_queues_are_a_list() -> None:
    with pytest.raises(TypeError, match="queues"):
        Worker(queues="mail")


def test_a_worker_runs_once() -> None:
    async def test() -> None:
        async with bench() as this:
            await this.session()
            with pytest.raises(RuntimeError, match="once"):
                await this.worker.run()

    asyncio.run(test())


def test_the_name_of_a_host_makes_no_worker_invalid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "server-é 1" + "x" * 200)
    worker_id = Worker().worker_id
    assert worker_id.startswith("python-server-1xxx") and len(worker_id) < 100
    assert worker_id.isascii() and worker_id.isprintable() and " " not in worker_id


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
        (SystemExit(3), "error", "SystemExit: 3", True),
        (Failure("x" * 200, "é" * (5 << 20)), "x" * 128, "é" * (8 << 10), True),
        (Failure("x", "no", details="x" * (5 << 20)), "x", "no", True),
        (Failure("x", "no", details="x" * (16 << 10)), "x", "no", True),
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
            assert not failed.HasField("details") and not failed.HasField("retry_delay")
            # The others go on.
            await session.send(lease=lease("b", "fail"))
            await acknowledge(session, "b")

    asyncio.run(test())


@pytest.mark.parametrize("after", [-1.0, float("inf"), float("nan"), 1e300, NOW])
def test_a_delay_that_is_none_is_left_out_alone(after: Any) -> None:
    async def test() -> None:
        async with bench() as this:

            @this.worker.handler("double")
            async def fail(context: Context, payload: Any) -> None:
                raise Failure("x", retry_after=after, details="x" * ((16 << 10) - 2))

            session = await this.session()
            await session.send(lease=lease("a", "double"))
            failed = (await acknowledge(session, "a")).failed
            assert failed.retryable and not failed.HasField("retry_delay")
            assert len(failed.details.text) == 16 << 10

    asyncio.run(test())


def test_a_failure_that_is_refused_stays_that_failure() -> None:
    async def test() -> None:
        async with bench() as this:
            session = await this.session()
            await session.send(lease=lease("a", "fail", {"code": "busy", "message": "soon", "details": 1}))
            assert (await session.seen("finish")).failed.HasField("details")
            session.messages.clear()
            await session.send(finish_ack={"lease_id": "a", "rejection": {"code": 3, "message": "bad details"}})
            failed = (await acknowledge(session, "a")).failed
            assert (failed.code, failed.message, failed.retryable) == ("busy", "soon", True)
            assert not failed.HasField("details")

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


def test_a_note_is_cut_to_what_servers_keep() -> None:
    async def test() -> None:
        async with bench() as this:

            @this.worker.handler("double")
            async def talk(context: Context, payload: Any) -> None:
                context.progress(0.5, "é" * (5 << 20))
                await this.proceed.wait()

            session = await this.session()
            await session.send(lease=lease("a", "double"))
            assert (await session.seen("progress")).progress.note == "é" * (1 << 10)
            this.proceed.set()
            await acknowledge(session, "a")

    asyncio.run(test())


def test_progress_may_come_from_any_thread() -> None:
    async def test() -> None:
        async with bench() as this:

            @this.worker.handler("double")
            async def block(context: Context, payload: Any) -> Any:
                await asyncio.to_thread(context.progress, 0.5, "half", checkpoint={"page": 1})
                return context.checkpoint

            session = await this.session()
            await session.send(lease=lease("a", "double"))
            progress = (await session.seen("progress")).progress
            assert (progress.note, decode(progress.details)) == ("half", {"page": 1})
            assert decode((await acknowledge(session, "a")).succeeded) == {"page": 1}

    asyncio.run(test(), debug=True)


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


def test_a_checkpoint_comes_back_before_the_failure_that_followed_it() -> None:
    async def test() -> None:
        async with bench() as this:

            @this.worker.handler("double")
            async def fail(context: Context, payload: Any) -> None:
                context.progress(0.5, checkpoint={"page": 2})
                raise Failure("x")

            first = await this.session()
            await first.send(lease=lease("a", "double"))
            await first.seen("finish")
            await first.send(drain={})
            second = await this.session()
            await acknowledge(second, "a")
            kinds = [message.WhichOneof("message") for message in second.messages]
            assert kinds[:3] == ["hello", "progress", "finish"]
            assert decode((await second.seen("progress")).progress.details) == {"page": 2}

    asyncio.run(test())


def test_a_welcome_alone_does_not_shorten_the_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobwire.backoff.random.random", lambda: 1.0)

    async def test() -> None:
        async with bench() as this:
            this.fake.curt = True
            await this.session()
            began = time.monotonic()
            for _ in range(3):
                await this.session()
            assert time.monotonic() - began > 0.25 + 0.5 + 1
            this.fake.curt = False

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


@pytest.fixture
def told() -> Iterator[list[int]]:
    """What the application's own handler of SIGTERM heard."""
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    yield heard
    signal.signal(signal.SIGTERM, before)


def test_sigterm_drains_all_workers_and_is_then_the_applications_again(told: list[int]) -> None:
    async def test() -> None:
        async with bench() as one, bench() as other:
            sessions = [await this.session() for this in (one, other)]
            os.kill(os.getpid(), signal.SIGTERM)
            for session in sessions:
                await session.ended.wait()

    asyncio.run(test())
    assert not told
    os.kill(os.getpid(), signal.SIGTERM)
    assert told == [signal.SIGTERM]


def test_a_handler_that_the_loop_had_before_hears_again() -> None:
    async def test() -> None:
        told = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
        async with bench() as this:
            await this.session()
        os.kill(os.getpid(), signal.SIGTERM)
        await told.wait()

    asyncio.run(test())


def test_a_worker_may_leave_signals_to_the_application(told: list[int]) -> None:
    async def test() -> None:
        async with bench(signals=False) as this:
            session = await this.session()
            os.kill(os.getpid(), signal.SIGTERM)
            assert told == [signal.SIGTERM]
            await session.send(lease=lease("a", "double", 1))
            assert (await acknowledge(session, "a")).HasField("succeeded")

    asyncio.run(test())


def test_a_lease_that_crosses_the_drain_is_given_back() -> None:
    async def test() -> None:
        async with bench() as this:
            this.fake.crossing = lease("a", "double", 1)
            session = await this.session()
            this.worker.stop()
            assert (await acknowledge(session, "a")).HasField("released")

    asyncio.run(test())


ENDS = """
import asyncio, sys
from jobwire import Worker

async def main():
    worker = Worker(sys.argv[1])
    begun = asyncio.Event()

    @worker.handler("double")
    async def double(context, payload):
        return payload * 2

    @worker.handler("wait")
    async def wait(context, payload):
        begun.set()
        await asyncio.Event().wait()

    run = asyncio.create_task(worker.run())
    await begun.wait()

asyncio.run(main())
"""


def test_a_program_that_ends_under_its_worker_reports_what_is_held() -> None:
    async def test() -> None:
        fake = Fake()
        async with asyncio.timeout(20), fake.serve() as address:
            program = await asyncio.create_subprocess_exec(sys.executable, "-c", ENDS, address)
            session = await fake.sessions.get()
            await session.seen("hello")
            await session.send(lease=lease("a", "double", 4))
            await session.seen("finish")
            await session.send(lease=lease("b", "wait", sequence=2))
            assert await program.wait() == 0
            finished = {finish.lease_id: finish for finish in fake.finished}
            assert decode(finished["a"].succeeded) == 8
            assert finished["b"].HasField("released")

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
