"""Where a broken watch goes on: the pure part of resuming."""

from __future__ import annotations

import datetime

from .errors import Error
from .v1 import Job, WatchResultsRequest, WatchResultsResponse

# Outcomes of a replay that are remembered to leave out repeats, should it break before its end.
_MAX_REMEMBERED = 100_000


class Resume:
    """What was asked, and how far it came."""

    def __init__(self, request: WatchResultsRequest) -> None:
        self._request = request
        self._cursor = ""
        # Outcomes from before the watch are still being sent, so a cursor would skip the rest of them.
        self._replaying = request.WhichOneof("start") is None and (request.include_existing or request.until_all_done)
        self._replayed: set[tuple[str, int]] = set()
        # Under until_all_done: ids of which an outcome has come. Not done for good: a job may be retried.
        self._finished: set[str] = set()

    def request(self, elapsed: float) -> WatchResultsRequest:
        """The request that goes on from here. `elapsed`: seconds since the first one was sent."""
        request = WatchResultsRequest()
        request.CopyFrom(self._request)
        if self._cursor:
            request.after_cursor = self._cursor
            request.include_existing = False
        elif request.WhichOneof("start") == "lookback":
            # The same moment in the past as at the first try.
            lookback = request.lookback.ToTimedelta() + datetime.timedelta(seconds=int(elapsed) + 1)
            request.lookback.FromTimedelta(lookback)
        return request

    def note(self, message: WatchResultsResponse) -> bool:
        """Notes a message. False if the caller has had it already."""
        fresh = True
        event = message.WhichOneof("event")
        if event == "finished":
            fresh = self._note_finished(message.finished)
        elif event == "checkpoint" and message.checkpoint.caught_up:
            self._replaying = False
            self._replayed.clear()
        if not self._replaying and message.cursor:
            self._cursor = message.cursor
        return fresh

    def _note_finished(self, job: Job) -> bool:
        if self._request.until_all_done:
            self._finished.add(job.job_id)
        if not self._replaying:
            return True
        key = (job.job_id, job.run)
        if key in self._replayed:
            return False
        if len(self._replayed) < _MAX_REMEMBERED:
            self._replayed.add(key)
        return True

    def drop_removed(self, error: Error) -> bool:
        """Asks no more for a job that was removed after its outcome had come. False if the error is another."""
        job_id = error.metadata.get("job_id", "")
        if error.reason != "JOB_NOT_FOUND" or job_id not in self._finished:
            return False
        self._finished.remove(job_id)
        left = [other for other in self._request.filter.job_ids if other != job_id]
        self._request.filter.job_ids[:] = left
        return True

    @property
    def fulfilled(self) -> bool:
        """Nothing is left to ask for."""
        return self._request.until_all_done and not self._request.filter.job_ids

    @property
    def ends(self) -> bool:
        """The server ends this stream with OK when it has sent everything."""
        return self._request.until_all_done

    @property
    def max_silence(self) -> float:
        """Longer without any message means that the connection is lost: three heartbeats, in seconds."""
        asked = 15.0
        if self._request.HasField("heartbeat_interval"):
            asked = self._request.heartbeat_interval.ToTimedelta().total_seconds()
        return 3 * min(max(asked, 1.0), 60.0)
