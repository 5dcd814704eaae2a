"""One stream of WorkerService.Work: what goes out on it, and when it counts as lost."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from typing import Any

import grpc

from .errors import Error
from .v1 import WorkerHello, WorkerHeartbeat, WorkerWelcome, WorkRequest, WorkResponse

# Seconds.
_WELCOME_TIMEOUT = 15.0
_GOODBYE_TIMEOUT = 1.0


class Session:
    """Sends what is in its outbox, hands on what comes, and beats.

    The outbox holds one message for each key, the newest: what is not sent yet is replaced, so it cannot grow beyond
    what the worker holds.
    """

    def __init__(self, call: Any, welcome: WorkerWelcome) -> None:
        self.welcome = welcome
        #: Set when this stream ended or is about to.
        self.leaving = asyncio.Event()
        #: Why it ended.
        self.error: Error | None = None
        self.last_sequence = 0
        self._call = call
        self._outbox: dict[str, WorkRequest] = {}
        self._beat_due = False
        # Heartbeats that were sent, and that were answered.
        self._beats = self._answers = 0
        self._answered = asyncio.Event()
        self._wake = asyncio.Event()
        self._closing = False
        self._tasks: list[asyncio.Task[None]] = []

    @classmethod
    async def open(cls, rpc: Any, hello: WorkerHello) -> Session:
        """Begins a session: raises `Error` if the server does not welcome it."""
        call = rpc.Work()
        try:
            async with asyncio.timeout(_WELCOME_TIMEOUT):
                with contextlib.suppress(asyncio.InvalidStateError):  # The read below tells why.
                    await call.write(WorkRequest(hello=hello))
                message = await call.read()
        except grpc.aio.AioRpcError as error:
            raise Error.of(error) from None
        except TimeoutError:
            raise Error(grpc.StatusCode.DEADLINE_EXCEEDED, "the server does not welcome this worker") from None
        if message is grpc.aio.EOF or message.WhichOneof("message") != "welcome":
            call.cancel()
            raise Error(grpc.StatusCode.UNAVAILABLE, "the server ended the session before its welcome")
        return cls(call, message.welcome)

    def start(
        self,
        receive: Callable[[WorkResponse], None],
        held: Callable[[], list[str]],
        named: Callable[[Iterable[str]], None],
    ) -> None:
        """Begins to send, to beat with the leases of `held`, and to hand messages to `receive`.

        `named` hears which leases a heartbeat has named, once it is written.
        """
        interval = self.welcome.heartbeat_interval.ToTimedelta().total_seconds() or 5.0
        self._tasks = [
            asyncio.create_task(self._send(held, named)),
            asyncio.create_task(self._beat(interval)),
            asyncio.create_task(self._receive(3 * interval, receive)),
        ]

    def post(self, key: str, message: WorkRequest) -> None:
        """Sends a message soon, in order, in place of an unsent one with the same key."""
        self._outbox[key] = message
        self._wake.set()

    def beat(self) -> None:
        """Sends a heartbeat soon."""
        self._beat_due = True
        self._wake.set()

    @property
    def useful(self) -> bool:
        """Whether the server has taken what was sent: all that is held comes before the first heartbeat."""
        return self._answers > 0

    async def heard(self, seconds: float) -> None:
        """Waits until the server has answered a heartbeat that follows all that was posted, but no longer than this."""
        wanted = self._beats + 1
        self.beat()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._answers < wanted and not self.leaving.is_set():
                    self._answered.clear()
                    await self._answered.wait()

    async def close(self) -> None:
        """Says goodbye: what was posted is sent first, if the stream still takes it."""
        self._closing = True
        self._wake.set()
        # Not awaited itself: a write on a call that `_receive` gave up ends its task as cancelled, and that is not us.
        await asyncio.wait(self._tasks[:1], timeout=_GOODBYE_TIMEOUT)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._call.cancel()

    async def _send(self, held: Callable[[], list[str]], named: Callable[[Iterable[str]], None]) -> None:
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):  # _receive tells why.
            while True:
                if self._beat_due:
                    self._beat_due = False
                    # Last: it does not name a lease whose result waits here, and must not overtake that.
                    self._outbox.pop("heartbeat", None)
                    heartbeat = WorkerHeartbeat(lease_ids=held(), last_lease_sequence=self.last_sequence)
                    self._outbox["heartbeat"] = WorkRequest(heartbeat=heartbeat)
                if self._outbox:
                    message = self._outbox.pop(next(iter(self._outbox)))
                    self._beats += message.HasField("heartbeat")
                    await self._call.write(message)
                    if message.HasField("heartbeat"):
                        named(message.heartbeat.lease_ids)
                elif self._closing:
                    return await self._call.done_writing()  # type: ignore[no-any-return]
                else:
                    self._wake.clear()
                    await self._wake.wait()

    async def _beat(self, interval: float) -> None:
        while True:
            await asyncio.sleep(interval)
            self.beat()

    async def _receive(self, silence: float, receive: Callable[[WorkResponse], None]) -> None:
        try:
            while True:
                async with asyncio.timeout(silence):
                    message = await self._call.read()
                if message is grpc.aio.EOF:
                    raise Error(grpc.StatusCode.UNAVAILABLE, "the server ended the session")
                receive(message)
                if message.HasField("heartbeat_ack"):
                    self._answers += 1
                    self._answered.set()
        except grpc.aio.AioRpcError as error:
            self.error = Error.of(error)
        except TimeoutError:
            self.error = Error(grpc.StatusCode.DEADLINE_EXCEEDED, f"the server has been silent for {silence:g} s")
            self._call.cancel()
        except Error as error:
            self.error = error
        finally:
            self.leaving.set()
            self._answered.set()
