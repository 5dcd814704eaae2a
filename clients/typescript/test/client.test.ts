// The client against a server that breaks its streams and refuses calls.

import { create } from "@bufbuild/protobuf";
import { durationFromMs } from "@bufbuild/protobuf/wkt";
import assert from "node:assert/strict";
import { test } from "node:test";

import { baseUrl } from "../src/address.js";
import { BatchSubmitRequestSchema, Code, connect, JobwireError } from "../src/node.js";
import { caughtUp, Fake, finished, refusal, unknown } from "./fake.js";

const LATE = () => refusal(Code.DeadlineExceeded);
const FULL = () => refusal(Code.ResourceExhausted, "QUEUE_FULL");

test("a submit is repeated with the same request id", () =>
    new Fake().serve(async (fake) => {
        fake.submitErrors = [refusal(Code.Unavailable), FULL()];
        await connect(fake.address).submit({});
        const ids = new Set(fake.submitted.map((request) => request.requestId));
        assert.equal(fake.submitted.length, 3);
        assert.equal(ids.size, 1);
        assert.ok(!ids.has(""));
    }));

test("a submit is repeated when its time ran out", () =>
    new Fake().serve(async (fake) => {
        fake.submitErrors = Array.from({ length: 5 }, LATE);
        const client = connect(fake.address);
        await assert.rejects(client.submit({}), { code: Code.DeadlineExceeded });
        assert.equal(fake.submitted.length, 3);
        await client.submit({});
        assert.equal(fake.submitted.length, 6);
        assert.equal(new Set(fake.submitted.map((request) => request.requestId)).size, 2);
    }));

test("the message of a caller stays as it is", () =>
    new Fake().serve(async (fake) => {
        const request = create(BatchSubmitRequestSchema, { requests: [{}, { requestId: "mine" }] });
        await connect(fake.address).batchSubmit(request);
        assert.deepEqual(
            request.requests.map(({ requestId }) => requestId),
            ["", "mine"],
        );
        const sent = fake.batches[0]!.requests.map(({ requestId }) => requestId);
        assert.ok(sent[0] && sent[1] === "mine");
    }));

test("what cannot be written is refused at once", { timeout: 5_000 }, () =>
    new Fake().serve(async (fake) => {
        const began = performance.now();
        const submit = connect(fake.address).submit({ spec: { priority: 0.5 } });
        await assert.rejects(submit, { code: Code.InvalidArgument, message: /priority/ });
        assert.ok(performance.now() - began < 1_000);
    }));

test("a refusal is passed on at once", async () => {
    for (const error of [
        refusal(Code.InvalidArgument, "INVALID_FIELD"),
        refusal(Code.DeadlineExceeded, "DEADLINE_EXCEEDED"),
        refusal(Code.ResourceExhausted),
        refusal(Code.ResourceExhausted, "QUEUE_FULL", "proxy.example"),
        refusal(Code.ResourceExhausted, "QUEUE_FULL", "jobwire.v1", 31_000),
        refusal(Code.Internal),
    ]) {
        await new Fake().serve(async (fake) => {
            fake.submitErrors = [error];
            await assert.rejects(connect(fake.address).submit({ requestId: "mine" }), { code: error.code });
            assert.deepEqual(
                fake.submitted.map((request) => request.requestId),
                ["mine"],
            );
        });
    }
});

test("an error has its details", () =>
    new Fake().serve(async (fake) => {
        fake.submitErrors = [refusal(Code.InvalidArgument, "INVALID_FIELD", "jobwire.v1", 2_000)];
        await assert.rejects(connect(fake.address).submit({}), (error: JobwireError) => {
            assert.equal(error.reason, "INVALID_FIELD");
            assert.deepEqual(error.metadata, { key: "value" });
            assert.deepEqual(error.fields, [{ path: "spec.kind", why: "is missing" }]);
            assert.equal(error.retryDelayMs, 2_000);
            assert.equal(error.message, "no (INVALID_FIELD)");
            return true;
        });
    }));

test("nobody there is unavailable", async () => {
    let address = "";
    await new Fake().serve(async (fake) => void (address = fake.address));
    await assert.rejects(connect(address).retry({}), { code: Code.Unavailable });
});

test("a retry is not sent twice but a delete is", () =>
    new Fake().serve(async (fake) => {
        const client = connect(fake.address);
        await assert.rejects(client.retry({}));
        assert.equal(fake.retries, 1);
        await client.delete({});
        assert.deepEqual(
            fake.deleted.map((request) => request.allowMissing),
            [false, true],
        );
    }));

test("a result is polled until the job has ended", () =>
    new Fake().serve(async (fake) => {
        const client = connect(fake.address);
        assert.equal((await client.result("a", 0)).done, false);
        assert.equal(fake.polls, 1);
        assert.equal((await client.result("a")).done, true);
        assert.equal(fake.polls, 3);
    }));

test("a result outlives a server that hangs", () =>
    new Fake().serve(async (fake) => {
        fake.pollErrors = Array.from({ length: 5 }, LATE);
        assert.equal((await connect(fake.address).result("a")).done, true);
        assert.equal(fake.polls, 6);
    }));

test("a result is not waited for beyond its time", () =>
    new Fake().serve(async (fake) => {
        fake.pollErrors = [LATE()];
        await assert.rejects(connect(fake.address).result("a", 0), { code: Code.DeadlineExceeded });
        assert.equal(fake.polls, 1);
    }));

test("an output that was left out is asked for", () =>
    new Fake().serve(async (fake) => {
        const client = connect(fake.address);
        fake.submitReply = { done: true, job: { jobId: "a" } };
        await client.run({});
        assert.equal(fake.polls, 0);
        fake.submitReply = { done: true, job: { jobId: "a", output: { omitted: true } } };
        await client.run({});
        assert.equal(fake.polls, 3);
    }));

test("an aborted signal ends a call", () =>
    new Fake().serve(async (fake) => {
        fake.submitErrors = Array.from({ length: 8 }, () => refusal(Code.Unavailable, "DRAINING", "jobwire.v1", 9_000));
        const controller = new AbortController();
        setTimeout(() => controller.abort(new Error("enough")), 50);
        await assert.rejects(connect(fake.address).submit({}, { signal: controller.signal }), /enough/);
    }));

test("pages are listed to the end", () =>
    new Fake().serve(async (fake) => {
        let pages = 0;
        for await (const _ of connect(fake.address).list({})) pages++;
        assert.equal(pages, 3);
    }));

test("a watch goes on from its cursor and ends when all is done", () =>
    new Fake().serve(async (fake) => {
        fake.streams = [
            [refusal(Code.Unavailable, "STREAM_ROTATED")],
            [refusal(Code.DeadlineExceeded, "DEADLINE_EXCEEDED")],
            [finished("a", "c0"), caughtUp("c1"), refusal(Code.Unknown)],
            [finished("b", "c2"), refusal(Code.ResourceExhausted, "WATCH_STALLED")],
            [finished("c", "c3")],
        ];
        const seen: string[] = [];
        const request = { filter: { jobIds: ["a", "b", "c"] }, untilAllDone: true };
        for await (const { event } of connect(fake.address).watch(request)) {
            if (event.case === "finished") seen.push(event.value.jobId);
        }
        assert.deepEqual(seen, ["a", "b", "c"]);
        assert.deepEqual(
            fake.watched.map(({ start }) => start.value),
            [undefined, undefined, undefined, "c1", "c2"],
        );
        assert.deepEqual(
            fake.watched.map(({ filter }) => filter?.jobIds.length),
            [3, 3, 3, 3, 3],
        );
    }));

test("only the server ends a watch of all that was asked for", () =>
    new Fake().serve(async (fake) => {
        fake.streams = [
            [finished("a", "c1"), refusal(Code.Unavailable)],
            [finished("a", "c1"), finished("a", "c2", 2), caughtUp("c2"), refusal(Code.Unavailable)],
            [finished("a", "c3", 3)],
        ];
        const runs: number[] = [];
        for await (const { event } of connect(fake.address).watch({ filter: { jobIds: ["a"] }, untilAllDone: true })) {
            if (event.case === "finished") runs.push(event.value.run);
        }
        assert.deepEqual(runs, [1, 2, 3]);
        assert.deepEqual(
            fake.watched.map(({ filter }) => filter?.jobIds),
            [["a"], ["a"], ["a"]],
        );
    }));

test("a watch goes on without jobs that were removed after their outcome", () =>
    new Fake().serve(async (fake) => {
        fake.streams = [
            [finished("a", "c0"), finished("c", "c0"), caughtUp("c1"), refusal(Code.Unavailable)],
            [unknown("a")],
            [unknown("c")],
            [finished("b", "c2"), refusal(Code.Unavailable)],
            [unknown("b")],
        ];
        const seen: string[] = [];
        const request = { filter: { jobIds: ["a", "b", "c"] }, untilAllDone: true };
        for await (const { event } of connect(fake.address).watch(request)) {
            if (event.case === "finished") seen.push(event.value.jobId);
        }
        assert.deepEqual(seen, ["a", "c", "b"]);
        assert.deepEqual(
            fake.watched.map(({ filter }) => filter?.jobIds.join("")),
            ["abc", "abc", "bc", "b", "b"],
        );
    }));

test("a watch ends with the error of a job that was never there", () =>
    new Fake().serve(async (fake) => {
        fake.streams = [[finished("a", "c0"), refusal(Code.Unavailable)], [unknown("b")]];
        const request = { filter: { jobIds: ["a", "b"] }, untilAllDone: true };
        await assert.rejects(
            async () => {
                for await (const _ of connect(fake.address).watch(request));
            },
            { reason: "JOB_NOT_FOUND", metadata: { job_id: "b" } },
        );
        assert.equal(fake.watched.length, 2);
    }));

test("a replay that breaks begins again without repeats", () =>
    new Fake().serve(async (fake) => {
        fake.streams = [
            [finished("a", "c5"), refusal(Code.Unavailable)],
            [finished("a", "c5"), finished("a", "c6", 2), finished("b", "c6"), caughtUp("c6")],
            [refusal(Code.OutOfRange, "CURSOR_EXPIRED")],
        ];
        const seen: string[] = [];
        await assert.rejects(
            async () => {
                for await (const { event } of connect(fake.address).watch({ includeExisting: true })) {
                    if (event.case === "finished") seen.push(`${event.value.jobId}${event.value.run}`);
                }
            },
            { reason: "CURSOR_EXPIRED" },
        );
        assert.deepEqual(seen, ["a1", "a2", "b1"]);
        assert.deepEqual(
            fake.watched.map((request) => request.includeExisting),
            [true, true, false],
        );
    }));

test("a silent server is left for a new stream", () =>
    new Fake().serve(async (fake) => {
        const request = { filter: { jobIds: ["a"] }, untilAllDone: true, heartbeatInterval: durationFromMs(1_000) };
        setTimeout(() => (fake.streams = [[finished("a", "c1")]]), 1_000);
        let messages = 0;
        for await (const _ of connect(fake.address).watch(request)) messages++;
        assert.equal(messages, 1);
        assert.equal(fake.watched.length, 2);
    }));

test("addresses", () => {
    assert.equal(baseUrl("localhost"), "http://localhost:50051");
    assert.equal(baseUrl(" http://127.0.0.1:80/"), "http://127.0.0.1:80");
    assert.equal(baseUrl("[::1]:7000"), "http://[::1]:7000");
    for (const wrong of ["", "https://a:1", "a:0", "a:99999", "http://a:1/path", "u:p@a:1"]) {
        assert.throws(() => baseUrl(wrong), TypeError, wrong);
    }
});
