// The TypeScript library as clients/conformance drives it: COMMAND ADDRESS ARGUMENTS, lines of JSON out.

import { setTimeout as sleep } from "node:timers/promises";

import {
    type Client,
    Code,
    connect,
    decode,
    durationFromMs,
    encode,
    Failure,
    type Job,
    Job_State,
    JobwireError,
    WatchResultsRequest_OnGap as OnGap,
    Worker,
} from "../src/node.js";

const [command = "", address = "", text = "{}"] = process.argv.slice(2);
const args = JSON.parse(text);
const say = (line: object) => console.log(JSON.stringify(line));
const show = ({ jobId, state, output }: Job) => ({
    job_id: jobId,
    state: `STATE_${Job_State[state]}`,
    output: decode(output) ?? null,
});
const spec = () => ({ kind: args.kind, payload: encode(args.payload), queue: args.queue ?? "" });

const commands: Record<string, (client: Client) => Promise<void>> = {
    async submit(client) {
        const reply = await client.submit({ spec: spec(), requestId: args.request_id ?? "" });
        say({ job_id: reply.job?.jobId, deduplicated: reply.deduplicated, cursor: reply.cursor });
    },
    async run(client) {
        say(show(await client.run(spec())));
    },
    async result(client) {
        const options = "limit" in args ? { signal: AbortSignal.timeout(args.limit * 1000) } : {};
        const { done, job } = await client.result(args.job_id, "wait" in args ? args.wait * 1000 : Infinity, options);
        say({ done, ...show(job!) });
    },
    async get(client) {
        say(show(await client.get({ jobId: args.job_id })));
    },
    async cancel(client) {
        say(show(await client.cancel({ jobId: args.job_id })));
    },
    /** Until `count` outcomes came, or a gap. */
    async watch(client) {
        let count = 0;
        for await (const { cursor, event } of client.watch({
            filter: { queues: args.queues ?? [] },
            heartbeatInterval: durationFromMs(1_000),
            onGap: args.on_gap === "ON_GAP_CONTINUE" ? OnGap.CONTINUE : OnGap.FAIL,
            start: args.after_cursor ? { case: "afterCursor", value: args.after_cursor } : { case: undefined },
        })) {
            if (event.case === "finished") {
                say({ finished: event.value.jobId });
                count++;
            } else if (event.case === "checkpoint") {
                say({ checkpoint: cursor });
            } else if (event.case === "gap") {
                return say({ gap: event.value.reason });
            }
            if (count === args.count) return;
        }
    },
};

async function work(): Promise<void> {
    const worker = new Worker(address, {
        queues: args.queues,
        concurrency: args.concurrency ?? 4,
        drainTimeoutMs: 20_000,
        gzip: args.compress,
    });
    worker.handle("double", (_, number: number) => number * 2);
    worker.handle("large", (_, size: number) => new Uint8Array(size));
    worker.handle("die", () => process.exit(9));
    worker.handle("fail", (context, how) => {
        const { attempt } = context.job;
        if (attempt >= (how.until ?? 99)) return { attempt, checkpoint: context.checkpoint ?? null };
        context.progress(0.5, "half", { from: attempt });
        if (!how.code) throw new Error("boom");
        const after = how.after ? { retryAfterMs: how.after * 1000 } : {};
        throw new Failure(how.code, "no", { retryable: how.retryable ?? true, details: how, ...after });
    });
    worker.handle("hold", async ({ job, signal }, seconds: number[]) => {
        say({ started: job.jobId, attempt: job.attempt });
        signal.addEventListener("abort", () => say({ stopped: job.jobId }));
        await sleep(seconds[Math.min(job.attempt, seconds.length) - 1]! * 1000, undefined, { signal });
        return "held";
    });
    say({ working: worker.workerId });
    await worker.run();
    say({ drained: true });
}

const upper = (code: Code) => Code[code].replace(/(?<=[a-z])(?=[A-Z])/g, "_").toUpperCase();

if (command === "work") {
    await work();
} else {
    try {
        await commands[command]!(connect(address, { gzip: args.compress }));
    } catch (error) {
        if (error instanceof DOMException && error.name === "TimeoutError") {
            say({ error: "DEADLINE_EXCEEDED", reason: null });
        } else if (error instanceof JobwireError) {
            say({ error: upper(error.code), reason: error.reason ?? null });
        } else {
            throw error;
        }
    }
}
process.exit();
