// The worker against a server that does to it what real ones do now and then.

import { create } from "@bufbuild/protobuf";
import { durationMs, DurationSchema } from "@bufbuild/protobuf/wkt";
import assert from "node:assert/strict";
import { syncBuiltinESMExports } from "node:module";
import os from "node:os";
import { test, type TestContext } from "node:test";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";

import {
    Code,
    type Context,
    decode,
    durationFromMs,
    encode,
    Failure,
    LeaseSchema,
    Worker,
    type WorkerOptions,
} from "../src/node.js";
import { Fake } from "./fake.js";

function lease(leaseId: string, kind: string, payload: unknown = null, sequence = 1n) {
    const job = { jobId: `job-${leaseId}`, attempt: 1, spec: { kind, payload: encode(payload) } };
    return { case: "lease", value: create(LeaseSchema, { leaseId, sequence, job }) } as const;
}

class Bench {
    readonly cancelled: string[] = [];
    readonly warnings: string[] = [];
    proceed!: () => void;
    readonly #proceeding = new Promise<void>((resolve) => (this.proceed = resolve));

    constructor(
        readonly fake: Fake,
        readonly worker: Worker,
    ) {
        worker
            .handle("double", (_: Context, n: number) => n * 2)
            .handle("large", () => "x".repeat(5 << 20))
            .handle("fail", (_, options) => {
                throw options ? new Failure("x", "no", options) : new TypeError("boom");
            })
            .handle("wait", async (context) => {
                context.progress(0.25, "quarter", { page: 1 });
                context.progress(0.5, "half");
                await Promise.race([
                    this.#proceeding,
                    new Promise((_, reject) => {
                        context.signal.addEventListener("abort", () => {
                            this.cancelled.push(context.job.jobId);
                            reject(context.signal.reason);
                        });
                    }),
                ]);
                return "done";
            });
    }
}

function bench(options: WorkerOptions, body: (bench: Bench) => Promise<void>): Promise<void> {
    return new Fake().serve(async (fake) => {
        const worker = new Worker(fake.address, { onWarning: (warning) => bench.warnings.push(warning), ...options });
        const bench = new Bench(fake, worker);
        const run = worker.run();
        try {
            await body(bench);
        } finally {
            worker.stop();
            worker.stop();
            await run;
        }
    });
}

test("queues are a list", () => {
    assert.throws(() => new Worker("localhost", { queues: "mail" as never }), TypeError);
});

test("a worker runs once", { timeout: 20_000 }, () =>
    bench({}, async ({ fake, worker }) => {
        await fake.session();
        await assert.rejects(worker.run(), /once/);
    }));

test("the name of a host makes no worker invalid", (context: TestContext) => {
    context.mock.method(os, "hostname", () => `server-é 1${"x".repeat(200)}`);
    syncBuiltinESMExports();
    const { workerId } = new Worker();
    context.mock.restoreAll();
    syncBuiltinESMExports();
    assert.match(workerId, /^node-server-1x{50,60}-[!-~]{1,30}$/);
});

test("a worker that cannot say hello ends", { timeout: 5_000 }, () =>
    new Fake().serve(async (fake) => {
        const worker = new Worker(fake.address, { concurrency: 4.5 }).handle("any", () => {});
        await assert.rejects(worker.run(), { code: Code.InvalidArgument, message: /max_in_flight/ });
    }));

test("outcomes", { timeout: 20_000 }, () =>
    bench({ concurrency: 7, queues: ["mail"], workerId: "me" }, async ({ fake, warnings }) => {
        const { session, hello } = await fake.session();
        assert.deepEqual([hello.workerId, hello.maxInFlight, hello.queues], ["me", 7, ["mail"]]);
        assert.deepEqual(hello.kinds, ["double", "fail", "large", "wait"]);
        const outcome = async (message: ReturnType<typeof lease>) => {
            session.send(message);
            return (await session.acknowledge(message.value.leaseId)).outcome;
        };
        const succeeded = await outcome(lease("a", "double", 21));
        assert.ok(succeeded.case === "succeeded");
        assert.equal(decode(succeeded.value), 42);
        const permanent = await outcome(lease("b", "fail", { retryable: false, details: [1] }));
        assert.ok(permanent.case === "failed");
        assert.deepEqual([permanent.value.code, permanent.value.retryable], ["x", false]);
        assert.deepEqual(decode(permanent.value.details), [1]);
        const later = await outcome(lease("c", "fail", { retryAfterMs: 1_500 }));
        assert.ok(later.case === "failed" && later.value.retryable);
        assert.deepEqual([later.value.retryDelay?.seconds, later.value.retryDelay?.nanos], [1n, 500_000_000]);
        const thrown = await outcome(lease("d", "fail"));
        assert.ok(thrown.case === "failed" && thrown.value.retryable);
        assert.deepEqual([thrown.value.code, thrown.value.message], ["error", "TypeError: boom"]);
        assert.deepEqual(warnings, ["the handler of fail failed for job job-d"]);
        const bad = lease("e", "double");
        bad.value.job!.spec!.payload!.body = { case: "text", value: "{" };
        const invalid = await outcome(bad);
        assert.ok(invalid.case === "failed" && !invalid.value.retryable);
        assert.equal(invalid.value.code, "payload.invalid");
    }));

test("a result that is refused becomes a failure", { timeout: 20_000 }, () =>
    bench({}, async ({ fake }) => {
        const { session } = await fake.session();
        session.send(lease("a", "double", 1));
        await session.seen("finish");
        // Not now: it comes again. Not at all: a failure takes its place.
        for (const [code, expected] of [[14, "succeeded"], [3, "failed"]] as const) {
            session.messages.splice(0);
            const rejection = { code, message: "too large", retryDelay: durationFromMs(10) };
            session.send({ case: "finishAck", value: { leaseId: "a", rejection } });
            assert.equal((await session.seen("finish")).outcome.case, expected);
        }
        await session.acknowledge("a");
        session.send(lease("b", "large"));
        const { outcome } = await session.acknowledge("b");
        assert.ok(outcome.case === "failed");
        assert.equal(outcome.value.code, "output.invalid");
    }));

test("a failure that cannot be sent as it is", { timeout: 20_000 }, () =>
    bench({}, async ({ fake, worker }) => {
        const cycle: unknown[] = [];
        cycle.push(cycle);
        const textless = Object.create(null);
        const raise = (thrown: unknown) => {
            throw thrown;
        };
        const throws: [thrown: unknown, code: string, retryable: boolean][] = [
            [new Failure("x", "y", { retryAfterMs: 100.1, details: { n: 1n } }), "x", true],
            [new Failure("x", "y", { retryable: false, details: cycle }), "x", false],
            [new Failure("x", "y", { retryable: false, details: "x".repeat(5 << 20) }), "x", false],
            [new Failure("x", "y", { details: { toJSON: () => raise(textless) } }), "x", true],
            [new Failure(textless, "y", { retryable: false }), "error", false],
            [new Failure("x", "x".repeat(5 << 20)), "x", true],
            [new Failure("x", "y", { retryAfterMs: 1e300 }), "x", true],
            [textless, "error", true],
            [Object.defineProperty(new Failure("x"), "code", { get: () => raise("no") }), "error", true],
        ];
        worker.handle("throw", (_, index) => raise(throws[index]![0]));
        const { session } = await fake.session();
        for (const [index, [, code, retryable]] of throws.entries()) {
            session.send(lease(`${index}`, "throw", index));
            session.send(lease(`other ${index}`, "double", 1));
            const { outcome } = await session.acknowledge(`${index}`);
            assert.ok(outcome.case === "failed");
            assert.deepEqual([outcome.value.code, outcome.value.retryable], [code, retryable], `${index}`);
            assert.equal((await session.acknowledge(`other ${index}`)).outcome.case, "succeeded");
        }
    }));

test("a failure goes without what servers do not take of it", () => {
    const large = new Failure("x".repeat(200), "y".repeat(5 << 20), { details: "z".repeat(5 << 20) }).report();
    assert.deepEqual([large.code.length, large.message.length, large.details], [128, 8 << 10, undefined]);
    for (const [length, kept] of [[(16 << 10) - 2, true], [(16 << 10) - 1, false]] as const) {
        const report = new Failure("x", "y", { retryAfterMs: 5, details: "z".repeat(length) }).report();
        assert.equal(report.details !== undefined, kept);
        assert.ok(report.retryDelay && report.retryable);
    }
    const odd = new Failure("x", "y", { retryAfterMs: Symbol() as never, details: [1] }).report();
    assert.deepEqual([decode(odd.details), odd.retryDelay], [[1], undefined]);
});

test("a failure that is refused stays that failure", { timeout: 20_000 }, () =>
    bench({}, async ({ fake }) => {
        const { session } = await fake.session();
        session.send(lease("a", "fail", { details: [1], retryAfterMs: 5 }));
        await session.seen("finish");
        session.messages.splice(0);
        session.send({ case: "finishAck", value: { leaseId: "a", rejection: { code: 3, message: "bad details" } } });
        const { outcome } = await session.acknowledge("a");
        assert.ok(outcome.case === "failed");
        const { code, message, retryable, details } = outcome.value;
        assert.deepEqual([code, message, retryable, details], ["x", "no", true, undefined]);
    }));

test("an output that cannot be sent", { timeout: 20_000 }, () =>
    bench({}, async ({ fake, worker }) => {
        worker.handle("odd", () => Object.assign(encode(1), { body: { case: "data", value: 5 } }));
        const { session } = await fake.session();
        session.send(lease("a", "odd"));
        const { outcome } = await session.acknowledge("a");
        assert.ok(outcome.case === "failed" && !outcome.value.retryable);
        assert.equal(outcome.value.code, "output.invalid");
    }));

test("when to try again", () => {
    const delay = (retryAfterMs: number) => {
        const { retryDelay } = new Failure("x", "y", { retryAfterMs }).report();
        return retryDelay && durationMs(create(DurationSchema, retryDelay));
    };
    assert.deepEqual([0, 1, 100.1, 1234.56].map(delay), [0, 1, 101, 1235]);
    assert.deepEqual([NaN, -1, -0.5, Infinity, -Infinity, 1e300].map(delay), Array(6).fill(undefined));
});

test("heartbeats name what is held and progress keeps its checkpoint", { timeout: 20_000 }, () =>
    bench({}, async (bench) => {
        const { session } = await bench.fake.session();
        session.send(lease("a", "wait", null, 5n));
        const beat = await session.seen("heartbeat", (beat) => beat.leaseIds[0] === "a");
        assert.equal(beat.lastLeaseSequence, 5n);
        const { progress } = await session.seen("progress", ({ progress }) => progress?.fraction === 0.5);
        assert.equal(progress?.note, "half");
        assert.deepEqual(decode(progress?.details), { page: 1 });
        bench.proceed();
        await session.acknowledge("a");
        await session.seen("heartbeat", (beat) => beat.leaseIds.length === 0);
    }));

test("progress that cannot be sent as it is", { timeout: 20_000 }, () =>
    bench({}, async ({ fake, worker }) => {
        worker.handle("talk", (context) => {
            context.progress(1n as never, "x".repeat(5 << 20));
            context.progress(0.5, 5 as never, 1);
        });
        const { session } = await fake.session();
        session.send(lease("a", "talk"));
        assert.equal((await session.acknowledge("a")).outcome.case, "succeeded");
        const { progress } = await session.seen("progress");
        assert.deepEqual([progress?.fraction, progress?.note], [0.5, "5"]);
        worker.handle("talk", (context) => {
            context.progress(1n as never, "x".repeat(5 << 20));
            return new Promise(() => {});
        });
        session.send(lease("b", "talk"));
        const long = await session.seen("progress", ({ leaseId }) => leaseId === "b");
        assert.deepEqual([long.progress?.fraction, long.progress?.note], [1, "x".repeat(1024)]);
        session.send({ case: "heartbeatAck", value: { lostLeaseIds: ["b"] } });
    }));

test("a heartbeat names leases before their work begins", { timeout: 20_000 }, () =>
    bench({}, async (bench) => {
        const { session } = await bench.fake.session();
        for (const [index, name] of ["a", "b", "c"].entries()) {
            session.send(lease(name, "wait", null, BigInt(index + 1)));
        }
        bench.proceed();
        for (const name of ["a", "b", "c"]) await session.acknowledge(name);
        const named = new Set<string>();
        for (const { case: kind, value } of session.messages) {
            if (kind === "heartbeat") value.leaseIds.forEach((leaseId) => named.add(leaseId));
            if (kind === "progress") assert.ok(named.has(value.leaseId), value.leaseId);
        }
    }));

test("a lease that is revoked before its work begins", { timeout: 20_000 }, () =>
    bench({}, async ({ fake }) => {
        const { session } = await fake.session();
        session.send(lease("a", "wait"));
        session.send({ case: "revoked", value: { leaseId: "a" } });
        const { outcome } = await session.acknowledge("a");
        assert.ok(outcome.case === "failed");
        assert.equal(outcome.value.code, "interrupted");
    }));

test("a revoked lease aborts its handler", { timeout: 20_000 }, () =>
    bench({}, async ({ fake, cancelled }) => {
        const { session } = await fake.session();
        session.send(lease("a", "wait"));
        await session.seen("progress");
        session.send({ case: "revoked", value: { leaseId: "a" } });
        const { outcome } = await session.acknowledge("a");
        assert.ok(outcome.case === "failed");
        assert.equal(outcome.value.code, "interrupted");
        assert.deepEqual(cancelled, ["job-a"]);
    }));

test("a lost lease is dropped", { timeout: 20_000 }, () =>
    bench({}, async ({ fake, cancelled, warnings }) => {
        const { session } = await fake.session();
        session.send(lease("a", "wait"));
        await session.seen("progress");
        session.send({ case: "heartbeatAck", value: { lostLeaseIds: ["a"] } });
        session.send(lease("b", "double", 1));
        await session.acknowledge("b");
        assert.deepEqual(cancelled, ["job-a"]);
        assert.ok(!session.messages.some(({ case: kind, value }) => kind === "finish" && value.leaseId === "a"));
        assert.deepEqual(warnings, ["lost the lease of job job-a"]);
    }));

test("a worker comes back with what it holds", { timeout: 20_000 }, () =>
    bench({}, async (bench) => {
        const { session: first } = await bench.fake.session();
        first.send(lease("a", "wait"));
        first.send(lease("b", "double", 4));
        first.send(lease("c", "wait"));
        await first.seen("finish");
        await first.seen("heartbeat", (beat) => [...beat.leaseIds].sort().join() === "a,c");
        bench.fake.lost = ["c"];
        first.send({ case: "drain", value: {} });
        const { session: second, hello } = await bench.fake.session();
        assert.deepEqual([...hello.heldLeaseIds].sort(), ["a", "b", "c"]);
        // The result that was not acknowledged comes again.
        const { outcome } = await second.acknowledge("b");
        assert.ok(outcome.case === "succeeded");
        assert.equal(decode(outcome.value), 8);
        await second.seen("progress", ({ leaseId }) => leaseId === "a");
        await first.ended;
        bench.proceed();
        await second.acknowledge("a");
        assert.deepEqual(bench.cancelled, ["job-c"]);
    }));

test("a checkpoint comes back before the failure that followed it", { timeout: 20_000 }, () =>
    bench({}, async ({ fake, worker }) => {
        worker.handle("stumble", (context) => {
            context.progress(0.5, "half", { page: 2 });
            throw new Failure("x");
        });
        const { session: first } = await fake.session();
        first.send(lease("a", "stumble"));
        await first.seen("finish");
        first.send({ case: "drain", value: {} });
        const { session: second } = await fake.session();
        await second.acknowledge("a");
        assert.deepEqual(
            second.messages.slice(0, 3).map((message) => message.case),
            ["hello", "progress", "finish"],
        );
        assert.deepEqual(decode((await second.seen("progress")).progress?.details), { page: 2 });
    }));

test("a welcome alone does not shorten the pauses", { timeout: 20_000 }, (context: TestContext) =>
    bench({}, async ({ fake, warnings }) => {
        context.mock.method(Math, "random", () => 1);
        fake.curt = true;
        await fake.session();
        const began = performance.now();
        for (let i = 0; i < 3; i++) await fake.session();
        assert.ok(performance.now() - began > 250 + 500 + 1_000);
        assert.ok(warnings.includes("lost the session with the server"));
        fake.curt = false;
    }));

test("a result outlives its lease until the server has judged it", { timeout: 20_000 }, () =>
    bench({}, async ({ fake }) => {
        const { session: first } = await fake.session();
        first.send(lease("a", "double", 4));
        await first.seen("finish");
        first.send({ case: "heartbeatAck", value: { lostLeaseIds: ["a"] } });
        fake.lost = ["a"];
        first.send({ case: "drain", value: {} });
        const { session: second, hello } = await fake.session();
        assert.deepEqual(hello.heldLeaseIds, ["a"]);
        const { outcome } = await second.seen("finish");
        assert.ok(outcome.case === "succeeded");
        // Another attempt has begun: now it is for nothing.
        second.send({ case: "finishAck", value: { leaseId: "a", rejection: { code: Code.FailedPrecondition } } });
        fake.lost = [];
        second.send({ case: "drain", value: {} });
        const { hello: last } = await fake.session();
        assert.deepEqual(last.heldLeaseIds, []);
    }));

test("SIGTERM drains", { timeout: 20_000 }, () =>
    bench({}, async (bench) => {
        const { session } = await bench.fake.session();
        session.send(lease("a", "wait"));
        await session.seen("progress");
        process.kill(process.pid, "SIGTERM");
        assert.equal((await session.seen("capacity")).maxInFlight, 0);
        // On its way before the server knew: given back.
        session.send(lease("b", "double", 1));
        assert.equal((await session.acknowledge("b")).outcome.case, "released");
        bench.proceed();
        assert.equal((await session.acknowledge("a")).outcome.case, "succeeded");
        await session.ended;
        assert.deepEqual(bench.cancelled, []);
    }));

test("a lease that crosses the drain is given back", { timeout: 20_000 }, () =>
    bench({}, async ({ fake, worker }) => {
        fake.crossing = lease("a", "double", 1).value;
        const { session } = await fake.session();
        worker.stop();
        assert.equal((await session.acknowledge("a")).outcome.case, "released");
    }));

test("a drain may have no end", { timeout: 20_000 }, () =>
    bench({ drainTimeoutMs: Infinity }, async (bench) => {
        const { session } = await bench.fake.session();
        session.send(lease("a", "wait"));
        await session.seen("progress");
        bench.worker.stop();
        await session.seen("capacity");
        await new Promise((resolve) => setTimeout(resolve, 200));
        bench.proceed();
        assert.equal((await session.acknowledge("a")).outcome.case, "succeeded");
    }));

test("a drain gives back what does not end", { timeout: 20_000 }, () =>
    bench({ drainTimeoutMs: 100 }, async (bench) => {
        const { session } = await bench.fake.session();
        session.send(lease("a", "wait"));
        await session.seen("progress");
        bench.worker.stop();
        assert.equal((await session.acknowledge("a")).outcome.case, "released");
        assert.deepEqual(bench.cancelled, ["job-a"]);
    }));

test("a drain ends while garbage is collected", { timeout: 20_000 }, async () => {
    setFlagsFromString("--expose-gc");
    const collecting = setInterval(runInNewContext("gc"), 20);
    try {
        await bench({ drainTimeoutMs: 300 }, async (bench) => {
            const { session } = await bench.fake.session();
            session.send(lease("a", "wait"));
            await session.seen("progress");
            bench.worker.stop();
            assert.equal((await session.acknowledge("a")).outcome.case, "released");
        });
    } finally {
        clearInterval(collecting);
    }
});
