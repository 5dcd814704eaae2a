"""A server that says what a test tells it to, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from jobwire.v1 import (
    Checkpoint,
    DeleteJobResponse,
    Finish,
    FinishJobResponse,
    GetResultResponse,
    Job,
    JobFilter,
    Lease,
    ListJobsResponse,
    RetryJobResponse,
    SubmitResponse,
    WatchResultsRequest,
    WatchResultsResponse,
    WorkerWelcome,
    WorkRequest,
    WorkResponse,
)
from jobwire.v1.job_service_pb2_grpc import JobServiceServicer, add_JobServiceServicer_to_server
from jobwire.v1.worker_service_pb2_grpc import WorkerServiceServicer, add_WorkerServiceServicer_to_server


class Refusal(Exception):
    """A status with details, as jobwire gives it."""

    def __init__(
        self, code: grpc.StatusCode, reason: str = "", domain: str = "jobwire.v1", delay: float = 0.01, **metadata: str
    ) -> None:
        super().__init__(reason)
        self.code, self.reason, self.domain, self.delay, self.metadata = code, reason, domain, delay, metadata

    async def end(self, context: Any) -> None:
        if self.reason:
            info = error_details_pb2.ErrorInfo(reason=self.reason, domain=self.domain, metadata=self.metadata)
            retry = error_details_pb2.RetryInfo(retry_delay=datetime.timedelta(seconds=self.delay))
            bad = error_details_pb2.BadRequest()
            bad.field_violations.add(field="spec.kind", description="is missing")
            status = status_pb2.Status(code=self.code.value[0], message="no")
            for message in (info, retry, bad):
                status.details.append(_any(message))
            context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
        await context.abort(self.code, "no")


def _any(message: Any) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


class Session:
    """One stream of Work, as the server sees it."""

    def __init__(self, context: Any) -> None:
        self._context = context
        # A stream takes one message at a time.
        self._writing = asyncio.Lock()
        self.messages: list[WorkRequest] = []
        self.ended = asyncio.Event()

    async def send(self, **message: Any) -> None:
        async with self._writing:
            await self._context.write(WorkResponse(**message))

    async def seen(self, kind: str, test: Callable[[Any], bool] = lambda _: True) -> Any:
        """The first message of this kind that passes, waited for."""
        async with asyncio.timeout(20):
            while True:
                for message in self.messages:
                    if message.WhichOneof("message") == kind and test(getattr(message, kind)):
                        return getattr(message, kind)
                await asyncio.sleep(0.01)


class Fake(JobServiceServicer, WorkerServiceServicer):
    """Both services. What they answer is in the lists, in order."""

    def __init__(self) -> None:
        self.submitted: list[Any] = []
        self.submit_errors: list[Refusal] = []
        self.submit_reply = SubmitResponse(job=Job(job_id="a"))
        self.polls: list[Any] = []
        self.poll_errors: list[Refusal] = []
        self.deleted: list[Any] = []
        self.retried: list[Any] = []
        self.watched: list[WatchResultsRequest] = []
        # What each stream brings: messages, and perhaps a refusal at the end.
        self.streams: list[list[WatchResultsResponse | Refusal]] = []
        self.welcomes: list[WorkerWelcome] = []
        self.sessions: asyncio.Queue[Session] = asyncio.Queue()
        # A lease that is on its way when the worker says that it takes no more.
        self.crossing: Lease | None = None
        # Outcomes that came without a session.
        self.finished: list[Finish] = []
        # Sessions that begin now are welcomed, and then neither read nor answered.
        self.deaf = False
        # Sessions that begin now are welcomed, and end with that.
        self.curt = False

    @contextlib.asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        """The address, as long as it serves."""
        server = grpc.aio.server()
        add_JobServiceServicer_to_server(self, server)
        add_WorkerServiceServicer_to_server(self, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            await server.stop(None)

    async def Submit(self, request: Any, context: Any) -> SubmitResponse:
        self.submitted.append(request)
        if self.submit_errors:
            await self.submit_errors.pop(0).end(context)
        return self.submit_reply

    async def GetResult(self, request: Any, context: Any) -> GetResultResponse:
        self.polls.append(request)
        if self.poll_errors:
            await self.poll_errors.pop(0).end(context)
        return GetResultResponse(done=len(self.polls) > 2, job=Job(job_id=request.job_id))

    async def ListJobs(self, request: Any, context: Any) -> ListJobsResponse:
        page = int(request.page_token or "0")
        return ListJobsResponse(next_page_token=str(page + 1) if page < 2 else "")

    async def DeleteJob(self, request: Any, context: Any) -> DeleteJobResponse:
        self.deleted.append(request)
        if len(self.deleted) == 1:
            await Refusal(grpc.StatusCode.UNAVAILABLE).end(context)
        return DeleteJobResponse()

    async def RetryJob(self, request: Any, context: Any) -> RetryJobResponse:
        self.retried.append(request)
        await Refusal(grpc.StatusCode.UNAVAILABLE).end(context)
        return RetryJobResponse()

    async def WatchResults(self, request: WatchResultsRequest, context: Any) -> AsyncIterator[WatchResultsResponse]:
        self.watched.append(request)
        if not self.streams:
            await asyncio.Event().wait()
        for item in self.streams.pop(0):
            if isinstance(item, Refusal):
                await item.end(context)
            else:
                yield item

    async def FinishJob(self, request: Any, context: Any) -> FinishJobResponse:
        self.finished.append(request.finish)
        return FinishJobResponse()

    async def Work(self, requests: Any, context: Any) -> None:
        session = Session(context)
        self.sessions.put_nowait(session)
        async for message in requests:
            session.messages.append(message)
            if message.WhichOneof("message") == "hello":
                beat = datetime.timedelta(seconds=0.2)
                welcome = self.welcomes.pop(0) if self.welcomes else WorkerWelcome()
                welcome.heartbeat_interval.FromTimedelta(beat)
                await session.send(welcome=welcome)
                if self.deaf:
                    await asyncio.Event().wait()
                if self.curt:
                    return
            if message.WhichOneof("message") == "capacity" and self.crossing:
                await session.send(lease=self.crossing)
            if message.WhichOneof("message") == "heartbeat":
                await session.send(heartbeat_ack={})
        session.ended.set()


def finished(job_id: str, cursor: str, run: int = 1) -> WatchResultsResponse:
    return WatchResultsResponse(cursor=cursor, finished=Job(job_id=job_id, run=run))


def caught_up(cursor: str) -> WatchResultsResponse:
    return WatchResultsResponse(cursor=cursor, checkpoint=Checkpoint(caught_up=True))


def until_all_done(ids: Iterable[str]) -> WatchResultsRequest:
    return WatchResultsRequest(filter=JobFilter(job_ids=ids), until_all_done=True)
