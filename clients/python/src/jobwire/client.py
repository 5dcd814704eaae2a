"""The calls of JobService with deadlines, safe repeats, and watches that resume."""

from __future__ import annotations

import asyncio
import datetime
import logging
import time
import uuid
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc

from . import channel
from .backoff import Backoff
from .errors import Error, late, repeatable, resumable
from .resume import Resume
from .v1 import (
    BatchSubmitRequest,
    BatchSubmitResponse,
    CancelJobRequest,
    CancelJobResponse,
    DeleteJobRequest,
    GetJobRequest,
    GetJobResponse,
    GetResultRequest,
    GetResultResponse,
    GetServerInfoRequest,
    GetServerInfoResponse,
    Job,
    JobSpec,
    ListJobsRequest,
    ListJobsResponse,
    RetryJobRequest,
    RetryJobResponse,
    SubmitRequest,
    SubmitResponse,
    WatchResultsRequest,
    WatchResultsResponse,
)
from .v1.job_service_pb2_grpc import JobServiceStub

_log = logging.getLogger("jobwire")

# Seconds.
_CALL_TIMEOUT = 15.0  # The deadline of a call, beyond the `wait` it asks for.
_POLL = 40.0  # One step of a long poll. Servers may answer sooner, with done = False.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
_FIRST_STREAM_PAUSE, _LONGEST_STREAM_PAUSE = 0.25, 15.0
_LONGEST_RETRY_DELAY = 30.0  # A server that wants to be left alone for longer is not asked again.
_PATIENCE = 600.0  # How long waits and watches go on trying without a single reply.
_MAX_TRIES = 8
_MAX_LATE_TRIES = 3  # Those among them that are given all of their time and bring no answer.


class Client:
    """A client of one server. Made inside a running event loop; connects when it is used.

    Every method raises `Error`. The address is `http://host:port` or `host:port`; without a port, 50051. A server takes
    requests with `compression`, which may be `grpc.Compression.Gzip`, only if its `http2.accept_gzip` is set.
    """

    def __init__(
        self,
        address: str = "localhost",
        *,
        credentials: grpc.ChannelCredentials | None = None,
        compression: grpc.Compression | None = None,
    ) -> None:
        self._calls = channel.connect(address, credentials, compression)
        self._streams = channel.connect(address, credentials, compression)
        self._rpc: Any = JobServiceStub(self._calls)
        self._stream_rpc: Any = JobServiceStub(self._streams)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the connections, and what still runs on them."""
        await self._calls.close()
        await self._streams.close()

    async def submit(self, request: SubmitRequest) -> SubmitResponse:
        """Stores a job. Durable when this returns.

        Fills in `request_id` if it is empty, so that a repeat after a lost reply does not make a second job. To repeat
        after an error yourself, set `request_id` yourself. With `wait`, the reply comes when the job has ended or the
        time is up, whichever is first.
        """
        request = _with_request_id(request)
        wait = request.wait.ToTimedelta().total_seconds()
        reply: SubmitResponse = await self._call(self._rpc.Submit, request, _CALL_TIMEOUT + min(max(wait, 0.0), _POLL))
        return reply

    async def batch_submit(self, request: BatchSubmitRequest) -> BatchSubmitResponse:
        """Stores up to 1000 jobs, all or none. Fills in each `request_id` that is empty, as `submit` does."""
        request = BatchSubmitRequest(requests=[_with_request_id(item) for item in request.requests])
        reply: BatchSubmitResponse = await self._call(self._rpc.BatchSubmit, request)
        return reply

    async def run(self, spec: JobSpec) -> Job:
        """Submits a job and waits until it has ended, well or not: see `state`, `output` and `error`."""
        reply = await self.submit(SubmitRequest(spec=spec, wait=datetime.timedelta(seconds=_POLL)))
        if reply.done and not reply.job.output.omitted:
            return reply.job
        return (await self.result(reply.job.job_id)).job

    async def result(self, job_id: str, wait: float | None = None) -> GetResultResponse:
        """The outcome of a job: waits until it has ended, or for `wait` seconds. None: for ever.

        A job that has not ended by then is a reply with `done = False`, no error. Outlives restarts of the server, up
        to 10 minutes without a single reply.
        """
        end = float("inf") if wait is None else time.monotonic() + wait
        backoff = Backoff(_FIRST_PAUSE, _LONGEST_PAUSE)
        replied = time.monotonic()
        while True:
            asked = time.monotonic()
            left = max(min(end - asked, _POLL), 0.0)
            request = GetResultRequest(job_id=job_id)
            if left:
                request.wait.FromTimedelta(datetime.timedelta(seconds=left))
            try:
                reply: GetResultResponse = await self._call(
                    self._rpc.GetResult, request, left + _CALL_TIMEOUT, max_late_tries=1
                )
            except Error as error:
                now = time.monotonic()
                if not repeatable(error, harmless=True) or now >= end or now - replied > _PATIENCE:
                    raise
                _log.warning("lost the server, asking again: %s", error)
                await asyncio.sleep(min(backoff.pause(error.retry_delay), left))
                continue
            backoff.reset()
            replied = time.monotonic()
            if reply.done or replied >= end:
                return reply
            # A server that does not hold replies says when to ask again.
            if reply.HasField("retry_after") and replied - asked < left / 2:
                await asyncio.sleep(min(reply.retry_after.ToTimedelta().total_seconds(), left))

    async def get(self, request: GetJobRequest) -> Job:
        """One job, as much of it as `view` asks for."""
        reply: GetJobResponse = await self._call(self._rpc.GetJob, request)
        return reply.job

    async def list(self, request: ListJobsRequest) -> AsyncIterator[ListJobsResponse]:
        """The jobs that match, page by page, from `page_token` on to the end."""
        request = _copy(request)
        while True:
            page: ListJobsResponse = await self._call(self._rpc.ListJobs, request)
            yield page
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def cancel(self, request: CancelJobRequest) -> Job:
        """Cancels a job: after this no new attempt starts. A job that has ended is returned as it is."""
        reply: CancelJobResponse = await self._call(self._rpc.CancelJob, request)
        return reply.job

    async def retry(self, request: RetryJobRequest) -> Job:
        """Starts a new run of a job that failed, was cancelled or expired, or ends its back-off.

        Without an `etag` it is not repeated after a lost reply, because that could start two runs.
        """
        reply: RetryJobResponse = await self._call(self._rpc.RetryJob, request, harmless=bool(request.etag))
        return reply.job

    async def delete(self, request: DeleteJobRequest) -> None:
        """Removes a job that has ended, and its outcome."""
        # The first try may have removed the job although its reply was lost.
        again = _copy(request)
        again.allow_missing = True
        await self._call(self._rpc.DeleteJob, request, again=again)

    async def info(self) -> GetServerInfoResponse:
        """The server's version, limits and optional features."""
        reply: GetServerInfoResponse = await self._call(self._rpc.GetServerInfo, GetServerInfoRequest())
        return reply

    async def watch(self, request: WatchResultsRequest) -> AsyncIterator[WatchResultsResponse]:
        """Outcomes of many jobs, as they come.

        Goes on by itself, from its cursor, when the connection breaks, the server restarts or falls silent for three
        heartbeats; nothing is left out and no outcome comes twice. Checkpoints and gaps are passed on like everything
        else. It ends after an error that another try would only repeat (such as ``CURSOR_EXPIRED``), after 10 minutes
        without a single message, and under `until_all_done` when every job has ended. Without a `start` it begins with
        its first checkpoint.
        """
        resume = Resume(_copy(request))
        backoff = Backoff(_FIRST_STREAM_PAUSE, _LONGEST_STREAM_PAUSE)
        began = time.monotonic()
        failing_since: float | None = None
        stream: Any = None
        try:
            while True:
                try:
                    if stream is None:
                        stream = self._stream_rpc.WatchResults(resume.request(time.monotonic() - began))
                    message = await _next(stream, resume.max_silence)
                    if message is None and not resume.ends:
                        raise Error(grpc.StatusCode.UNAVAILABLE, "the server ended the stream early")
                except Error as error:
                    if stream is not None:
                        stream.cancel()
                        stream = None
                    if resume.drop_removed(error):
                        if resume.fulfilled:
                            return
                        continue
                    failing_since = failing_since or time.monotonic()
                    if not resumable(error) or time.monotonic() - failing_since > _PATIENCE:
                        raise
                    # A planned end is nothing that a person needs to know.
                    level = logging.DEBUG if error.reason == "STREAM_ROTATED" else logging.WARNING
                    _log.log(level, "lost the stream, coming back to it: %s", error)
                    await asyncio.sleep(backoff.pause(error.retry_delay))
                    continue
                if message is None:
                    return
                failing_since = None
                backoff.reset()
                if resume.note(message):
                    yield message
        finally:
            if stream is not None:
                stream.cancel()

    async def _call(
        self,
        method: Any,
        request: Any,
        timeout: float = _CALL_TIMEOUT,
        *,
        harmless: bool = True,
        again: Any = None,
        max_late_tries: int = _MAX_LATE_TRIES,
    ) -> Any:
        """One call with its repeats. `harmless`: twice does no more than once. `again`: what to send then."""
        backoff = Backoff(_FIRST_PAUSE, _LONGEST_PAUSE)
        tries = late_tries = 0
        while True:
            try:
                return await method(request, timeout=timeout)
            except grpc.aio.AioRpcError as status:
                error = Error.of(status)
            tries += 1
            late_tries += late(error)
            wanted = error.retry_delay or 0.0
            last = tries == _MAX_TRIES or late_tries == max_late_tries
            if last or not repeatable(error, harmless) or wanted > _LONGEST_RETRY_DELAY:
                raise error from None
            _log.debug("trying again: %s", error)
            await asyncio.sleep(backoff.pause(wanted))
            request = again or request


async def _next(stream: Any, silence: float) -> WatchResultsResponse | None:
    """The next message of a stream; None at its end."""
    message: Any
    try:
        async with asyncio.timeout(silence):
            message = await stream.read()
    except TimeoutError:
        raise Error(
            grpc.StatusCode.DEADLINE_EXCEEDED,
            f"the server has been silent for {silence:g} s: the connection is lost, or the server hangs",
        ) from None
    except grpc.aio.AioRpcError as error:
        raise Error.of(error) from None
    return None if message is grpc.aio.EOF else message


_Message = TypeVar("_Message", SubmitRequest, ListJobsRequest, DeleteJobRequest, WatchResultsRequest)


def _copy(message: _Message) -> _Message:
    copy = type(message)()
    copy.CopyFrom(message)
    return copy


def _with_request_id(request: SubmitRequest) -> SubmitRequest:
    if not request.request_id:
        request = _copy(request)
        request.request_id = str(uuid.uuid4())
    return request
