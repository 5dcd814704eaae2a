"""The client against a server that breaks its streams and refuses calls."""

import asyncio
import contextlib
import datetime
from collections.abc import AsyncIterator, Awaitable, Callable

import grpc
import pytest
from fake import Fake, Refusal, caught_up, finished, until_all_done
from jobwire import Client, Error
from jobwire.channel import target
from jobwire.v1 import (
    DeleteJobRequest,
    Gap,
    JobSpec,
    ListJobsRequest,
    RetryJobRequest,
    SubmitRequest,
    WatchResultsRequest,
    WatchResultsResponse,
)

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
LATE = grpc.StatusCode.DEADLINE_EXCEEDED
FULL = Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")


def removed(job_id: str) -> Refusal:
    return Refusal(grpc.StatusCode.NOT_FOUND, "JOB_NOT_FOUND", job_id=job_id)


def asked(fake: Fake) -> list[str]:
    """The ids that each watch named, all of one letter."""
    return ["".join(request.filter.job_ids) for request in fake.watched]


def drive(fake: Fake, test: Callable[[Client], Awaitable[None]]) -> None:
    async def run() -> None:
        async with asyncio.timeout(30), fake.serve() as address, Client(address) as client:
            await test(client)

    asyncio.run(run())


def test_a_submit_is_repeated_with_the_same_request_id() -> None:
    fake = Fake()
    fake.submit_errors = [Refusal(UNAVAILABLE), FULL]

    async def test(client: Client) -> None:
        await client.submit(SubmitRequest())
        ids = {request.request_id for request in fake.submitted}
        assert len(fake.submitted) == 3 and len(ids) == 1 and "" not in ids

    drive(fake, test)


def test_a_submit_is_repeated_when_its_time_ran_out() -> None:
    fake = Fake()
    fake.submit_errors = [Refusal(LATE)] * 5

    async def test(client: Client) -> None:
        with pytest.raises(Error) as caught:
            await client.submit(SubmitRequest())
        assert caught.value.code is LATE and len(fake.submitted) == 3
        await client.submit(SubmitRequest())
        assert len(fake.submitted) == 6
        assert len({request.request_id for request in fake.submitted}) == 2

    drive(fake, test)


@pytest.mark.parametrize(
    "refusal",
    [
        Refusal(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"),
        Refusal(LATE, "DEADLINE_EXCEEDED"),
        Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED),
        Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", domain="proxy.example"),
        Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", delay=31),
    ],
)
def test_a_refusal_is_passed_on_at_once(refusal: Refusal) -> None:
    fake = Fake()
    fake.submit_errors = [refusal]

    async def test(client: Client) -> None:
        with pytest.raises(Error) as caught:
            await client.submit(SubmitRequest(request_id="mine"))
        assert caught.value.code is refusal.code
        assert [request.request_id for request in fake.submitted] == ["mine"]

    drive(fake, test)


def test_an_error_has_its_details() -> None:
    fake = Fake()
    fake.submit_errors = [Refusal(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", delay=2, key="value")]

    async def test(client: Client) -> None:
        with pytest.raises(Error) as caught:
            await client.submit(SubmitRequest())
        error = caught.value
        assert (error.reason, error.metadata, error.retry_delay) == ("INVALID_FIELD", {"key": "value"}, 2)
        assert error.fields == [("spec.kind", "is missing")]
        assert str(error) == "no (INVALID_FIELD)"

    drive(fake, test)


def test_a_retry_is_not_sent_twice_but_a_delete_is() -> None:
    fake = Fake()

    async def test(client: Client) -> None:
        with pytest.raises(Error):
            await client.retry(RetryJobRequest())
        assert len(fake.retried) == 1
        await client.delete(DeleteJobRequest())
        assert [request.allow_missing for request in fake.deleted] == [False, True]

    drive(fake, test)


def test_a_result_is_polled_until_the_job_has_ended() -> None:
    fake = Fake()

    async def test(client: Client) -> None:
        assert (await client.result("a")).done
        assert len(fake.polls) == 3

    drive(fake, test)


def test_a_result_outlives_a_server_that_hangs() -> None:
    fake = Fake()
    fake.poll_errors = [Refusal(LATE)] * 5

    async def test(client: Client) -> None:
        assert (await client.result("a")).done
        assert len(fake.polls) == 6

    drive(fake, test)


def test_a_result_is_not_waited_for_beyond_its_time() -> None:
    fake = Fake()
    fake.poll_errors = [Refusal(LATE)]

    async def test(client: Client) -> None:
        with pytest.raises(Error):
            await client.result("a", 0)
        assert len(fake.polls) == 1

    drive(fake, test)


def test_an_output_that_was_left_out_is_asked_for() -> None:
    fake = Fake()
    fake.submit_reply.done = True

    async def test(client: Client) -> None:
        await client.run(JobSpec())
        assert not fake.polls
        fake.submit_reply.job.output.omitted = True
        await client.run(JobSpec())
        assert len(fake.polls) == 3

    drive(fake, test)


def test_a_result_without_a_wait_is_asked_for_once() -> None:
    fake = Fake()

    async def test(client: Client) -> None:
        assert not (await client.result("a", 0)).done
        assert [request.HasField("wait") for request in fake.polls] == [False]

    drive(fake, test)


def test_pages_are_listed_to_the_end() -> None:
    async def test(client: Client) -> None:
        assert len([page async for page in client.list(ListJobsRequest())]) == 3

    drive(Fake(), test)


def test_a_watch_goes_on_from_its_cursor_and_ends_when_all_is_done() -> None:
    fake = Fake()
    fake.streams = [
        [Refusal(UNAVAILABLE, "STREAM_ROTATED")],
        [Refusal(LATE, "DEADLINE_EXCEEDED")],
        [finished("a", "c0"), caught_up("c1"), Refusal(grpc.StatusCode.UNKNOWN)],
        [finished("b", "c2"), Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "WATCH_STALLED")],
        [finished("c", "c3")],
    ]

    async def test(client: Client) -> None:
        messages = [message async for message in client.watch(until_all_done("abc"))]
        assert [m.finished.job_id for m in messages if m.HasField("finished")] == ["a", "b", "c"]
        assert [request.after_cursor for request in fake.watched] == ["", "", "", "c1", "c2"]
        assert asked(fake) == ["abc"] * 5

    drive(fake, test)


def test_a_watch_until_all_is_done_brings_later_runs_and_ends_when_the_server_says_so() -> None:
    fake = Fake()
    fake.streams = [
        [caught_up("c0"), finished("a", "c1"), Refusal(UNAVAILABLE)],
        [finished("a", "c2", run=2)],
    ]

    async def test(client: Client) -> None:
        messages = [message async for message in client.watch(until_all_done("a"))]
        assert [m.finished.run for m in messages if m.HasField("finished")] == [1, 2]
        assert asked(fake) == ["a", "a"]

    drive(fake, test)


def test_a_job_that_was_removed_after_its_outcome_is_asked_for_no_more() -> None:
    fake = Fake()
    fake.streams = [
        [caught_up("c0"), finished("a", "c1"), finished("b", "c2"), Refusal(UNAVAILABLE)],
        [removed("a")],
        [finished("c", "c3"), Refusal(UNAVAILABLE)],
        [removed("c")],
        [removed("b")],
    ]

    async def test(client: Client) -> None:
        messages = [message async for message in client.watch(until_all_done("abca"))]
        assert [m.finished.job_id for m in messages if m.HasField("finished")] == ["a", "b", "c"]
        assert asked(fake) == ["abca", "abca", "bc", "bc", "b"]

    drive(fake, test)


@pytest.mark.parametrize("refusal", [removed("b"), Refusal(grpc.StatusCode.NOT_FOUND, job_id="a")])
def test_a_job_that_was_never_there_ends_the_watch(refusal: Refusal) -> None:
    fake = Fake()
    fake.streams = [[finished("a", "c1"), Refusal(UNAVAILABLE)], [refusal]]

    async def test(client: Client) -> None:
        with pytest.raises(Error) as caught:
            async for _ in client.watch(until_all_done("ab")):
                pass
        assert caught.value.code is grpc.StatusCode.NOT_FOUND
        assert asked(fake) == ["ab", "ab"]

    drive(fake, test)


def test_a_replay_that_breaks_begins_again_without_repeats() -> None:
    fake = Fake()
    fake.streams = [
        [finished("a", "c5"), Refusal(UNAVAILABLE)],
        [finished("a", "c5"), finished("a", "c6", run=2), finished("b", "c6"), caught_up("c6")],
        [Refusal(grpc.StatusCode.OUT_OF_RANGE, "CURSOR_EXPIRED")],
    ]

    async def test(client: Client) -> None:
        seen = []
        with pytest.raises(Error) as caught:
            async for message in client.watch(WatchResultsRequest(include_existing=True)):
                seen.append((message.finished.job_id, message.finished.run))
        assert seen == [("a", 1), ("a", 2), ("b", 1), ("", 0)]
        assert caught.value.reason == "CURSOR_EXPIRED"
        assert [request.include_existing for request in fake.watched] == [True, True, False]

    drive(fake, test)


def test_a_gap_is_passed_on_and_moves_the_cursor() -> None:
    fake = Fake()
    gap = WatchResultsResponse(cursor="c9", gap=Gap(missed_events=3))
    fake.streams = [[gap], [Refusal(grpc.StatusCode.OUT_OF_RANGE, "LOG_REPLACED")]]

    async def test(client: Client) -> None:
        with pytest.raises(Error):
            async for message in client.watch(WatchResultsRequest(after_cursor="c1")):
                assert message.gap.missed_events == 3
        assert [request.after_cursor for request in fake.watched] == ["c1", "c9"]

    drive(fake, test)


def test_looking_back_keeps_the_moment() -> None:
    fake = Fake()
    fake.streams = [[Refusal(UNAVAILABLE)], [Refusal(grpc.StatusCode.NOT_FOUND, "JOB_NOT_FOUND")]]

    async def test(client: Client) -> None:
        with pytest.raises(Error):
            async for _ in client.watch(WatchResultsRequest(lookback=datetime.timedelta(seconds=60))):
                pass
        assert [request.lookback.seconds for request in fake.watched] == [61, 61]

    drive(fake, test)


def test_a_silent_server_is_left_for_a_new_stream() -> None:
    fake = Fake()
    request = until_all_done("a")
    request.heartbeat_interval.FromTimedelta(datetime.timedelta(seconds=1))

    async def test(client: Client) -> None:
        async def speak_later() -> None:
            while not fake.watched:
                await asyncio.sleep(0.01)
            fake.streams = [[finished("a", "c1")]]

        later = asyncio.create_task(speak_later())
        messages = [message async for message in client.watch(request)]
        await later
        assert len(messages) == 1 and len(fake.watched) == 2

    drive(fake, test)


@contextlib.asynccontextmanager
async def far(address: str) -> AsyncIterator[str]:
    """The address of one whose first words are half a second under way."""

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, after: float) -> None:
        await asyncio.sleep(after)
        while data := await reader.read(1 << 16):
            writer.write(data)
        writer.close()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = address.split(":")
        there = await asyncio.open_connection(host, int(port))
        await asyncio.gather(carry(reader, there[1], 0), carry(there[0], writer, 0.5))

    async with await asyncio.start_server(connect, "127.0.0.1", 0) as server:
        yield "127.0.0.1:{}".format(server.sockets[0].getsockname()[1])


def test_a_server_may_be_far_away() -> None:
    fake = Fake()

    async def test() -> None:
        async with asyncio.timeout(30), fake.serve() as address, far(address) as way, Client(way) as client:
            with pytest.raises(Error):
                await client.retry(RetryJobRequest())
            assert len(fake.retried) == 1

    asyncio.run(test())


def test_addresses() -> None:
    assert target("localhost") == "localhost:50051"
    assert target(" http://127.0.0.1:80/") == "127.0.0.1:80"
    assert target("[::1]:7000") == "[::1]:7000"
    for wrong in ("", "https://a:1", "a:0", "a:99999", "http://a:1/path", "u:p@a:1"):
        with pytest.raises(ValueError, match="address"):
            target(wrong)
