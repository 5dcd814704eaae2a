"""SIGTERM and SIGINT, for all workers of a process."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

_listeners: list[Callable[[], object]] = []
# What the application had set when the first listener came.
_before: dict[signal.Signals, Any] = {}


@contextlib.contextmanager
def heard_by(stop: Callable[[], None]) -> Iterator[None]:
    """Calls `stop`, in the running loop, for each signal. The last to leave puts back the application's handlers."""
    if threading.current_thread() is not threading.main_thread():
        # Only the main thread may take signals.
        yield
        return
    listener = functools.partial(asyncio.get_running_loop().call_soon_threadsafe, stop)
    if not _listeners:
        _take()
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)
        if not _listeners:
            _give_back()


def _take() -> None:
    # Not by the loop's `add_signal_handler`: what that replaces cannot be put back.
    for number in (signal.SIGTERM, signal.SIGINT):
        # None is a handler that Python did not set, and cannot set again.
        if (handler := signal.getsignal(number)) is not None:
            _before[number] = handler
            signal.signal(number, _hear)


def _give_back() -> None:
    while _before:
        number, handler = _before.popitem()
        # Otherwise the application has set another one meanwhile.
        if signal.getsignal(number) is _hear:
            signal.signal(number, handler)


def _hear(_number: int, _frame: object) -> None:
    for listener in list(_listeners):
        listener()
