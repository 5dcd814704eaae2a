"""A worker: functions that run jobs."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import datetime
import functools
import inspect
import logging
import math
import os
import re
import secrets
import socket
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

import grpc

from . import channel
from .backoff import Backoff
from .errors import Error, resumable
from .payload import decode, encode
from .session import Session
from .signals import heard_by
from .v1 import (
    Finish,
    FinishAck,
    FinishJobRequest,
    Job,
    JobError,
    Lease,
    LeaseProgress,
    Payload,
    Progress,
    Release,
    WorkerCapacity,
    WorkerHello,
    WorkRequest,
    WorkResponse,
)
from .v1.worker_service_pb2_grpc import WorkerServiceStub

_log = logging.getLogger("jobwire")

Handler = Callable[["Context", Any], Awaitable[object]]
_SDK = "jobwire-python/0.1.0"
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 15.0
# Seconds for handlers to end once they are cancelled, and for the last results, when a worker ends.
_LAST_WORDS = 5.0
_LAST_LEASES = 1.0  # Seconds for leases that are on their way when a drain begins.
_LAST_CALL = 2.0  # Seconds to report a result without a session.
_PAUSE = 1.0  # Seconds before a result is sent again that the server could not take.
# What servers keep of a report.
_MAX_CODE, _MAX_TEXT, _MAX_NOTE = 128, 8 << 10, 1 << 10
_MAX_DETAILS_BYTES = 16 << 10
_MAX_FINISH_BYTES = channel.MAX_MESSAGE_BYTES - 1024
# Codes of google.rpc.Code in the rejection of a result.
_INVALID_ARGUMENT, _RESOURCE_EXHAUSTED, _UNAVAILABLE = 3, 8, 14


class Failure(Exception):
    """Raised by a handler: the attempt failed.

    `code` is a stable word, such as ``smtp.refused``. `retryable` False ends the job at once; `retry_after`, in
    seconds, takes the place of the back-off, if it is a number from 0 on. `details`, of at most 16 KiB, go to whoever
    reads the outcome.
    """

    def __init__(
        self,
        code: str,
        message: str = "",
        *,
        retryable: bool = True,
        retry_after: float | None = None,
        details: object = None,
    ) -> None:
        super().__init__(message or code)
        self.code = code
        self.retryable = retryable
        self.retry_after = retry_after
        self.details = details


class Context:
    """One attempt, as its handler sees it."""

    def __init__(self, lease: Lease, tell: Callable[[], None]) -> None:
        self._lease = lease
        self._tell = tell
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        # Each is replaced as a whole, so that no thread sees half of it.
        self._step = Progress()
        self._details = lease.job.progress.details

    @property
    def job(self) -> Job:
        """The job. Its `job_id`, `run` and `attempt` serve a handler's own idempotency: it may run more than once."""
        return self._lease.job

    @property
    def deadline(self) -> datetime.datetime:
        """When the attempt's time is over. The handler is cancelled then."""
        return self._lease.attempt_deadline.ToDatetime(datetime.UTC)

    @property
    def checkpoint(self) -> Any:
        """The newest checkpoint, of this attempt or one before; None without one."""
        return decode(self._details)

    def progress(self, fraction: float, note: str = "", *, checkpoint: object = None) -> None:
        """Reports how far the attempt is, from 0 to 1. Only the newest report is kept, and 1 KiB of its note.

        `checkpoint`: a value of at most 16 KiB that is handed to the next attempt if this one fails. May be called from
        any thread.
        """
        if checkpoint is not None:
            details = _write(checkpoint, "checkpoint")
            if not _fits(details):
                raise Failure("checkpoint.invalid", "the checkpoint has more than 16 KiB", retryable=False)
            # A handler may go on with a payload of its own.
            self._details = copy.deepcopy(details)
        self._step = Progress(fraction=fraction, note=_text(note, _MAX_NOTE))
        if threading.get_ident() == self._thread:
            self._tell()
        else:
            self._loop.call_soon_threadsafe(self._tell)

    def _report(self) -> Progress:
        # A checkpoint stays with later reports that bring none.
        report = Progress(details=self._details)
        report.MergeFrom(self._step)
        return report


class _Held:
    """A lease with its work, from its arrival until its result was acknowledged."""

    def __init__(self, context: Context) -> None:
        self.context = context
        # Not before a heartbeat has named the lease.
        self.task: asyncio.Task[None] | None = None
        self.reported = False
        self.finish: Finish | None = None
        # The server would not have the handler's own result.
        self.refused = False
        self.cancelled = False
        # What becomes of the job if the handler lets itself be cancelled.
        self.give_back = False


class Worker:
    """Runs the jobs of the kinds that have a handler, until SIGTERM.

    At most `concurrency` at the same time. On SIGTERM or SIGINT it takes no more jobs, lets those that run end for
    `drain_timeout` seconds, and gives the rest back uncounted; a second signal does that at once. `queues` empty means
    the queue "default".
    """

    def __init__(
        self,
        address: str = "localhost",
        *,
        concurrency: int = 16,
        queues: Iterable[str] = (),
        worker_id: str = "",
        labels: Mapping[str, str] | None = None,
        drain_timeout: float = 30.0,
        credentials: grpc.ChannelCredentials | None = None,
        compression: grpc.Compression | None = None,
    ) -> None:
        channel.target(address)
        if isinstance(queues, str):
            raise TypeError("queues must be a list of names, not one name")
        self._address = address
        self._credentials = credentials
        self._compression = compression
        self._concurrency = concurrency
        self._queues = list(queues)
        self._labels = dict(labels or {})
        self._drain_timeout = drain_timeout
        self.worker_id = worker_id or _own_id()
        self._handlers: dict[str, Handler] = {}
        self._held: dict[str, _Held] = {}
        # Handlers under way, those whose lease was lost among them.
        self._running: set[asyncio.Task[None]] = set()
        self._session: Session | None = None
        self._ran = False
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._changed = asyncio.Event()

    def handler(self, kind: str) -> Callable[[Handler], Handler]:
        """Registers an async function for a kind: ``await function(context, payload)``.

        The payload comes decoded; what is returned becomes the output. A `Failure` says how the attempt failed; any
        other exception fails it as retryable, with the code ``error``. The function is cancelled
        (`asyncio.CancelledError`) when the job is, when the attempt's time is over or the lease is lost.
        """

        def register(function: Handler) -> Handler:
            if not _is_async(function):
                raise TypeError(f"the handler of {kind!r} must be async; what blocks goes into asyncio.to_thread")
            self._handlers[kind] = function
            return function

        return register

    def stop(self) -> None:
        """Begins the drain, as SIGTERM does; called again, ends it."""
        (self._hurry if self._stop.is_set() else self._stop).set()

    async def run(self, *, signals: bool = True) -> None:
        """Works until it is told to stop, through restarts of the server. Once.

        Handlers that do not end when they are cancelled are left running after some seconds. Without `signals`, and
        outside the main thread, SIGTERM and SIGINT are the application's, and `stop` is the way. Raises `Error` if the
        server refuses this worker.
        """
        if not self._handlers:
            raise ValueError("the worker has no handler")
        if self._ran:
            raise RuntimeError("a worker runs once")
        self._ran = True
        connection = channel.connect(self._address, self._credentials, self._compression)
        rpc: Any = WorkerServiceStub(connection)
        link = asyncio.create_task(self._keep_connected(rpc))
        stop = asyncio.create_task(self._stop.wait())
        try:
            with heard_by(self.stop) if signals else contextlib.nullcontext():
                await asyncio.wait({link, stop}, return_when=asyncio.FIRST_COMPLETED)
                if link.done():
                    link.result()
                await self._drain(link)
        finally:
            self._stop.set()
            for held in self._held.values():
                self._cancel(held, give_back=True)
            link.cancel()
            stop.cancel()
            await asyncio.gather(link, stop, return_exceptions=True)
            await self._last_words()
            self._give_up()
            if self._session:
                await self._session.close()
            await self._last_call(rpc)
            await connection.close()

    async def _drain(self, link: asyncio.Task[None]) -> None:
        if self._session:
            self._session.post("capacity", WorkRequest(capacity=WorkerCapacity(max_in_flight=0)))
            await self._session.heard(_LAST_LEASES)
        hurry = asyncio.create_task(self._hurry.wait())
        try:
            await self._until_idle(self._drain_timeout, link, hurry)
            for held in self._held.values():
                self._cancel(held, give_back=True)
            await self._until_idle(_LAST_WORDS, link)
            self._give_up()
            await self._until_idle(_LAST_WORDS, link)
        finally:
            hurry.cancel()

    async def _until_idle(self, seconds: float, *sooner: asyncio.Task[Any]) -> None:
        """Waits until nothing is held, but no longer than this, nor when one of the tasks ends."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._held and not any(task.done() for task in sooner):
                    self._changed.clear()
                    changed = asyncio.create_task(self._changed.wait())
                    try:
                        await asyncio.wait({changed, *sooner}, return_when=asyncio.FIRST_COMPLETED)
                    finally:
                        changed.cancel()

    def _give_up(self) -> None:
        for held in self._held.values():
            self._settle(held, Finish(released=Release(reason="the handler did not end")))

    async def _last_call(self, rpc: Any) -> None:
        """Reports what no session took: it was lost, or cancelled together with `run`, as at the end of asyncio.run."""
        finishes = [held.finish for held in self._held.values() if held.finish]
        calls = (rpc.FinishJob(FinishJobRequest(finish=finish), timeout=_LAST_CALL) for finish in finishes)
        for reply in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(reply, grpc.aio.AioRpcError):
                _log.warning("a result was not taken: %s", Error.of(reply))

    async def _last_words(self) -> None:
        """Waits for handlers that were cancelled, but not for ever: they may catch that and go on."""
        if self._running:
            _, left = await asyncio.wait(self._running, timeout=_LAST_WORDS)
            for task in left:
                _log.warning("the handler of job %s does not end and is left running", task.get_name())

    async def _keep_connected(self, rpc: Any) -> None:
        backoff = Backoff(_FIRST_PAUSE, _LONGEST_PAUSE)
        while True:
            try:
                session = await Session.open(rpc, self._hello())
            except Error as error:
                if not resumable(error):
                    raise
                _log.warning("no session with the server, trying again: %s", error)
                await asyncio.sleep(backoff.pause(error.retry_delay))
                continue
            # The old one goes only now: until here it could still take results.
            old, self._session = self._session, session
            self._resume(session)
            if old:
                await old.close()
            await session.leaving.wait()
            if session.error:
                _log.warning("lost the session with the server: %s", session.error)
            # A welcome alone is no success: what is sent next may be what ends every session.
            if session.useful:
                backoff.reset()
            await asyncio.sleep(backoff.pause(session.error.retry_delay if session.error else None))

    def _hello(self) -> WorkerHello:
        return WorkerHello(
            worker_id=self.worker_id,
            kinds=sorted(self._handlers),
            queues=self._queues,
            max_in_flight=0 if self._stop.is_set() else self._concurrency,
            held_lease_ids=list(self._held),
            labels=self._labels,
            sdk=_SDK,
        )

    def _resume(self, session: Session) -> None:
        """Brings a new session up to date with what is held."""
        for lease_id in session.welcome.lost_lease_ids:
            self._lose(lease_id)
        session.start(lambda message: self._receive(session, message), self._at_work, self._begin)
        session.beat()
        if self._stop.is_set():
            session.post("capacity", WorkRequest(capacity=WorkerCapacity(max_in_flight=0)))
        for lease_id, held in self._held.items():
            # Also before a result: a failure hands the checkpoint on.
            if held.reported:
                self._post_progress(lease_id, held.context)
            if held.finish:
                self._post_finish(lease_id, held.finish)

    def _receive(self, session: Session, message: WorkResponse) -> None:
        # What a newer server may send beyond this is ignored.
        match message.WhichOneof("message"):
            case "lease":
                session.last_sequence = max(session.last_sequence, message.lease.sequence)
                self._take(session, message.lease)
            case "heartbeat_ack":
                for lease_id in message.heartbeat_ack.lost_lease_ids:
                    self._lose(lease_id)
            case "finish_ack":
                self._settled(message.finish_ack)
            case "revoked":
                if held := self._held.get(message.revoked.lease_id):
                    self._cancel(held)
            case "drain":
                session.leaving.set()

    def _at_work(self) -> list[str]:
        """Leases for the heartbeat: a result is on its way before it."""
        return [lease_id for lease_id, held in self._held.items() if held.finish is None]

    def _take(self, session: Session, lease: Lease) -> None:
        if lease.lease_id in self._held:
            return
        held = _Held(Context(lease, functools.partial(self._tell, lease.lease_id)))
        self._held[lease.lease_id] = held
        handler = self._handlers.get(lease.job.spec.kind)
        if handler is None or self._stop.is_set():
            self._settle(held, Finish(released=Release(reason="drain" if handler else "no handler for this kind")))
        else:
            # An attempt that nobody confirmed does not count: a job that ends this process at once would run for ever.
            session.beat()

    def _begin(self, lease_ids: Iterable[str]) -> None:
        """Starts the work of leases that a heartbeat has named."""
        for lease_id in lease_ids:
            held = self._held.get(lease_id)
            if held is None or held.task or held.finish:
                continue
            if self._stop.is_set():
                self._cancel(held, give_back=True)
                continue
            job = held.context.job
            held.task = asyncio.create_task(self._work(held, self._handlers[job.spec.kind]), name=job.job_id)
            self._running.add(held.task)
            held.task.add_done_callback(functools.partial(self._ended, held))

    def _ended(self, held: _Held, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        # Perhaps before it had run at all.
        if task.cancelled():
            self._settle(held, _interrupted(give_back=held.give_back))
        # What `_work` does not catch, such as KeyboardInterrupt.
        elif error := task.exception():
            _log.error("the handler failed for job %s", held.context.job.job_id, exc_info=error)
            self._settle(held, _failed(error))

    async def _work(self, held: _Held, handler: Handler) -> None:
        job = held.context.job
        try:
            payload = _read(job.spec.payload)
            outcome = Finish(succeeded=_write(await handler(held.context, payload), "output"))
        except Failure as failure:
            outcome = _failed(failure)
        # asyncio passes SystemExit on, and that would end the work of all others.
        except (Exception, SystemExit) as error:
            _log.exception("the handler of %s failed for job %s", job.spec.kind, job.job_id)
            outcome = _failed(error)
        self._settle(held, outcome)

    def _settle(self, held: _Held, finish: Finish) -> None:
        """Keeps a result until the server has acknowledged it."""
        lease_id = held.context._lease.lease_id
        if self._held.get(lease_id) is not held or held.finish:
            return
        if finish.ByteSize() > _MAX_FINISH_BYTES:
            finish = _instead_of(finish, "the output is larger than a message may be")
        finish.lease_id = lease_id
        held.finish = finish
        held.task = None
        self._post_finish(lease_id, finish)

    def _settled(self, ack: FinishAck) -> None:
        held = self._held.get(ack.lease_id)
        if held is None or held.finish is None:
            return
        code = 0 if ack.accepted else ack.rejection.code
        if code in (_UNAVAILABLE, _RESOURCE_EXHAUSTED):
            pause = ack.rejection.retry_delay.ToTimedelta().total_seconds() or _PAUSE
            asyncio.get_running_loop().call_later(pause, self._post_finish, ack.lease_id, held.finish)
            return
        if code:
            _log.warning("the server refused a result: %s (%s)", ack.rejection.message, ack.rejection.reason)
        if code == _INVALID_ARGUMENT and not held.refused:
            held.refused = True
            refused, held.finish = held.finish, None
            self._settle(held, _instead_of(refused, ack.rejection.message))
        else:
            self._forget(ack.lease_id)

    def _post_finish(self, lease_id: str, finish: Finish) -> None:
        if self._session and lease_id in self._held:
            self._session.post(f"finish {lease_id}", WorkRequest(finish=finish))

    def _tell(self, lease_id: str) -> None:
        held = self._held.get(lease_id)
        if held and held.finish is None:
            held.reported = True
            self._post_progress(lease_id, held.context)

    def _post_progress(self, lease_id: str, context: Context) -> None:
        if self._session:
            report = LeaseProgress(lease_id=lease_id, progress=context._report())
            self._session.post(f"progress {lease_id}", WorkRequest(progress=report))

    def _cancel(self, held: _Held, *, give_back: bool = False) -> None:
        if held.task is None:
            self._settle(held, _interrupted(give_back=give_back))
        elif not held.cancelled:
            held.cancelled = True
            held.give_back = give_back
            # At its end asyncio.run has cancelled everything: once more would cut short what the handler does then.
            if not (give_back and held.task.cancelling()):
                held.task.cancel()

    def _lose(self, lease_id: str) -> None:
        """The lease is somebody else's by now: its work is for nothing.

        A result that is there may still count, and waits for its answer.
        """
        if (held := self._held.get(lease_id)) and held.finish is None:
            _log.warning("lost the lease of job %s", held.context.job.job_id)
            self._forget(lease_id)
            self._cancel(held)

    def _forget(self, lease_id: str) -> None:
        self._held.pop(lease_id, None)
        self._changed.set()


def _interrupted(*, give_back: bool) -> Finish:
    if give_back:
        return Finish(released=Release(reason="drain"))
    return _failed(Failure("interrupted", "stopped before it was done"))


def _instead_of(finish: Finish, why: str) -> Finish:
    """What is reported in place of a result that cannot be. A failure stays that failure."""
    match finish.WhichOneof("outcome"):
        case "failed":
            failed = finish.failed
            return Finish(failed=JobError(code=failed.code, message=failed.message, retryable=failed.retryable))
        case "released":
            return Finish(released=Release())
    return _failed(Failure("output.invalid", why, retryable=False))


def _failed(error: BaseException) -> Finish:
    """As much of a failure as can be sent: what the handler put into it may be anything, but it has failed."""
    if not isinstance(error, Failure):
        error = Failure("error", f"{type(error).__name__}: {_text(error, _MAX_TEXT)}")
    code, message = _text(error.code, _MAX_CODE), _text(error, _MAX_TEXT)
    report = JobError(code=code, message=message, retryable=bool(error.retryable))
    for add in (_add_delay, _add_details):
        try:
            add(report, error)
        except Exception:
            _log.exception("the failure %s is reported without what cannot be written", code)
    return Finish(failed=report)


def _add_delay(report: JobError, failure: Failure) -> None:
    delay = failure.retry_after
    if delay is not None and math.isfinite(delay) and delay >= 0:
        report.retry_delay.FromTimedelta(datetime.timedelta(seconds=delay))


def _add_details(report: JobError, failure: Failure) -> None:
    if failure.details is None:
        return
    details = encode(failure.details)
    if _fits(details):
        report.details.CopyFrom(details)
    else:
        _log.warning("the failure %s is reported without its details: they have more than 16 KiB", report.code)


def _fits(details: Payload) -> bool:
    body = details.text.encode() or details.data
    return (len(body) or details.json.ByteSize()) <= _MAX_DETAILS_BYTES


def _text(value: object, most: int) -> str:
    """A text that UTF-8 can write, of so many characters: those of exceptions may have lone surrogates, or fail."""
    try:
        text = value if isinstance(value, str) else str(value)
    except Exception:
        text = f"a {type(value).__name__} without a text"
    return text[:most].encode("utf-8", "replace").decode()


def _own_id() -> str:
    """With a word before the name of the host, which may be one that ids must not begin with."""
    host = re.sub("[^!-~]", "", socket.gethostname())[:64]
    return f"python-{host}-{os.getpid()}-{secrets.token_hex(3)}"


def _is_async(function: object) -> bool:
    """Whether calls are awaited: of a function, of an object, and of what a partial or a decorator was made from."""
    while isinstance(function, functools.partial):
        function = function.func
    if not callable(function):
        return False
    function = inspect.unwrap(function)
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def _read(payload: Payload) -> Any:
    try:
        return decode(payload)
    except ValueError as error:
        raise Failure("payload.invalid", f"the payload is no JSON: {error}", retryable=False) from None


def _write(value: object, what: str) -> Payload:
    try:
        return encode(value)
    except (TypeError, ValueError) as error:
        raise Failure(f"{what}.invalid", f"the {what} cannot be written as JSON: {error}", retryable=False) from None
