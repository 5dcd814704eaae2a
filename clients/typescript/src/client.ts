// The calls of JobService with deadlines, safe repeats, and watches that resume.

import { clone, create, type MessageInitShape } from "@bufbuild/protobuf";
import { durationFromMs, durationMs } from "@bufbuild/protobuf/wkt";
import { type CallOptions, Code, createClient, type Client as Rpc, type Transport } from "@connectrpc/connect";

import { JobwireError } from "./errors.js";
import {
    type BatchSubmitResponse,
    BatchSubmitRequestSchema,
    type CancelJobRequestSchema,
    DeleteJobRequestSchema,
    type GetJobRequestSchema,
    type GetResultResponse,
    type GetServerInfoResponse,
    JobService,
    type ListJobsResponse,
    ListJobsRequestSchema,
    type RetryJobRequestSchema,
    type SubmitRequest,
    SubmitRequestSchema,
    type SubmitResponse,
    WatchResultsRequestSchema,
    type WatchResultsResponse,
} from "./gen/jobwire/v1/job_service_pb.js";
import type { Job, JobSpecSchema } from "./gen/jobwire/v1/types_pb.js";
import { Backoff, sleep } from "./pause.js";
import { Resume } from "./resume.js";

// Milliseconds.
/** The deadline of a call, beyond the `wait` it asks for. */
const CALL_TIMEOUT = 15_000;
/** One step of a long poll. Servers may answer sooner, with done = false. */
const POLL = 40_000;
const [FIRST_PAUSE, LONGEST_PAUSE] = [100, 5_000];
const [FIRST_STREAM_PAUSE, LONGEST_STREAM_PAUSE] = [250, 15_000];
/** A server that wants to be left alone for longer is not asked again. */
const LONGEST_RETRY_DELAY = 30_000;
/** How long waits and watches go on trying without a single reply before they pass the error on. */
const PATIENCE = 600_000;
/** Tries of one call in all. */
const MAX_TRIES = 8;
/** Those among them that are given all of their time and bring no answer. */
const MAX_LATE_TRIES = 3;

export interface Options {
    /** Ends the call, its repeats and its pauses. */
    signal?: AbortSignal;
}

/** A client of one server. Every method throws a {@link JobwireError}, or the reason of an aborted signal. */
export class Client {
    readonly #calls: Rpc<typeof JobService>;
    readonly #streams: Rpc<typeof JobService>;

    /**
     * Streams have a transport of their own: once the streams of a connection are used up, further calls on it hang.
     * `connect` in jobwire/node and jobwire/web makes both.
     */
    constructor(calls: Transport, streams: Transport) {
        this.#calls = createClient(JobService, calls);
        this.#streams = createClient(JobService, streams);
    }

    /**
     * Stores a job. Durable when this returns.
     *
     * Fills in `requestId` if it is empty, so that a repeat after a lost reply does not make a second job. To repeat
     * after an error yourself, set `requestId` yourself. With `wait`, the reply comes when the job has ended or the
     * time is up, whichever is first.
     */
    async submit(init: MessageInitShape<typeof SubmitRequestSchema>, options?: Options): Promise<SubmitResponse> {
        const request = withRequestId(create(SubmitRequestSchema, init));
        const wait = request.wait ? durationMs(request.wait) : 0;
        const timeout = CALL_TIMEOUT + Math.min(wait, POLL);
        return this.#call((call) => this.#calls.submit(request, call), { ...options, timeout });
    }

    /** Stores up to 1000 jobs, all or none. Fills in each `requestId` that is empty, as `submit` does. */
    async batchSubmit(
        init: MessageInitShape<typeof BatchSubmitRequestSchema>,
        options?: Options,
    ): Promise<BatchSubmitResponse> {
        const { requests } = create(BatchSubmitRequestSchema, init);
        const request = create(BatchSubmitRequestSchema, { requests: requests.map(withRequestId) });
        return this.#call((call) => this.#calls.batchSubmit(request, call), options);
    }

    /** Submits a job and waits until it has ended, well or not: see `state`, `output` and `error`. */
    async run(spec: MessageInitShape<typeof JobSpecSchema>, options?: Options): Promise<Job> {
        const { done, job } = await this.submit({ spec, wait: durationFromMs(POLL) }, options);
        if (done && !job!.output?.omitted) return job!;
        return (await this.result(job!.jobId, Infinity, options)).job!;
    }

    /**
     * The outcome of a job: waits until it has ended, or for `waitMs`. A job that has not ended by then is a reply with
     * `done` false, no error. Outlives restarts of the server, up to 10 minutes without a single reply.
     */
    async result(jobId: string, waitMs = Infinity, options?: Options): Promise<GetResultResponse> {
        const end = performance.now() + waitMs;
        const backoff = new Backoff(FIRST_PAUSE, LONGEST_PAUSE);
        let replied = performance.now();
        for (;;) {
            const asked = performance.now();
            const left = Math.max(Math.min(end - asked, POLL), 0);
            const request = left > 0 ? { jobId, wait: durationFromMs(Math.ceil(left)) } : { jobId };
            let reply: GetResultResponse;
            try {
                const how = { ...options, timeout: left + CALL_TIMEOUT, maxLateTries: 1 };
                reply = await this.#call((call) => this.#calls.getResult(request, call), how);
            } catch (thrown) {
                const now = performance.now();
                const lost = thrown instanceof JobwireError && thrown.repeatable(true);
                if (!lost || now >= end || now - replied > PATIENCE) throw thrown;
                await sleep(Math.min(backoff.pause(thrown.retryDelayMs), left), options?.signal);
                continue;
            }
            backoff.reset();
            replied = performance.now();
            if (reply.done || replied >= end) return reply;
            // A server that does not hold replies says when to ask again.
            if (reply.retryAfter && replied - asked < left / 2) {
                await sleep(Math.min(durationMs(reply.retryAfter), left), options?.signal);
            }
        }
    }

    /** One job, as much of it as `view` asks for. */
    async get(request: MessageInitShape<typeof GetJobRequestSchema>, options?: Options): Promise<Job> {
        return (await this.#call((call) => this.#calls.getJob(request, call), options)).job!;
    }

    /** The jobs that match, page by page, from `pageToken` on to the end. */
    async *list(
        init: MessageInitShape<typeof ListJobsRequestSchema>,
        options?: Options,
    ): AsyncGenerator<ListJobsResponse, void, undefined> {
        const request = clone(ListJobsRequestSchema, create(ListJobsRequestSchema, init));
        do {
            const page = await this.#call((call) => this.#calls.listJobs(request, call), options);
            yield page;
            request.pageToken = page.nextPageToken;
        } while (request.pageToken);
    }

    /** Cancels a job: after this no new attempt starts. A job that has ended is returned as it is. */
    async cancel(request: MessageInitShape<typeof CancelJobRequestSchema>, options?: Options): Promise<Job> {
        return (await this.#call((call) => this.#calls.cancelJob(request, call), options)).job!;
    }

    /**
     * Starts a new run of a job that failed, was cancelled or expired, or ends its back-off. Without an `etag` it is
     * not repeated after a lost reply, because that could start two runs.
     */
    async retry(request: MessageInitShape<typeof RetryJobRequestSchema>, options?: Options): Promise<Job> {
        const harmless = Boolean(request.etag);
        return (await this.#call((call) => this.#calls.retryJob(request, call), { ...options, harmless })).job!;
    }

    /** Removes a job that has ended, and its outcome. */
    async delete(init: MessageInitShape<typeof DeleteJobRequestSchema>, options?: Options): Promise<void> {
        const request = clone(DeleteJobRequestSchema, create(DeleteJobRequestSchema, init));
        await this.#call(async (call) => {
            const reply = this.#calls.deleteJob(clone(DeleteJobRequestSchema, request), call);
            // The first try may remove the job although its reply is lost.
            request.allowMissing = true;
            return reply;
        }, options);
    }

    /** The server's version, limits and optional features. */
    async info(options?: Options): Promise<GetServerInfoResponse> {
        return this.#call((call) => this.#calls.getServerInfo({}, call), options);
    }

    /**
     * Outcomes of many jobs, as they come.
     *
     * Goes on by itself, from its cursor, when the connection breaks, the server restarts or falls silent for three
     * heartbeats; nothing is left out and no outcome comes twice. Checkpoints and gaps are passed on like everything
     * else. It ends after an error that another try would only repeat (such as `CURSOR_EXPIRED`), after 10 minutes
     * without a single message, and under `untilAllDone` when the server says that every job has ended. Without a
     * `start` it begins with its first checkpoint.
     */
    async *watch(
        init: MessageInitShape<typeof WatchResultsRequestSchema>,
        { signal }: Options = {},
    ): AsyncGenerator<WatchResultsResponse, void, undefined> {
        const resume = new Resume(create(WatchResultsRequestSchema, init));
        const backoff = new Backoff(FIRST_STREAM_PAUSE, LONGEST_STREAM_PAUSE);
        const began = performance.now();
        let failingSince: number | undefined;
        for (;;) {
            signal?.throwIfAborted();
            try {
                for await (const message of this.#stream(resume, performance.now() - began, signal)) {
                    failingSince = undefined;
                    backoff.reset();
                    if (resume.note(message)) yield message;
                }
                return;
            } catch (thrown) {
                signal?.throwIfAborted();
                const error = JobwireError.from(thrown);
                if (resume.forget(error)) {
                    if (resume.fulfilled) return;
                    continue;
                }
                failingSince ??= performance.now();
                if (!error.resumable || performance.now() - failingSince > PATIENCE) throw error;
                await sleep(backoff.pause(error.retryDelayMs), signal);
            }
        }
    }

    /** One stream of a watch. Ends without an error only if everything asked for was sent. */
    async *#stream(resume: Resume, elapsedMs: number, signal?: AbortSignal): AsyncGenerator<WatchResultsResponse> {
        const controller = new AbortController();
        const stop = () => controller.abort(signal?.reason);
        signal?.addEventListener("abort", stop, { once: true });
        const silence = resume.maxSilenceMs;
        let silent = false;
        const listen = () =>
            setTimeout(() => {
                silent = true;
                controller.abort();
            }, silence);
        let timer = listen();
        try {
            for await (const message of this.#streams.watchResults(resume.request(elapsedMs), {
                signal: controller.signal,
            })) {
                clearTimeout(timer);
                yield message;
                timer = listen();
            }
        } catch (thrown) {
            if (!silent) throw thrown;
            const seconds = silence / 1000;
            throw new JobwireError(
                Code.DeadlineExceeded,
                `the server has been silent for ${seconds} s: the connection is lost, or the server hangs`,
            );
        } finally {
            clearTimeout(timer);
            signal?.removeEventListener("abort", stop);
            controller.abort();
        }
        if (!resume.ends) throw new JobwireError(Code.Unavailable, "the server ended the stream early");
    }

    /** One call with its repeats. `harmless`: twice does no more than once. */
    async #call<Reply>(
        send: (options: CallOptions) => Promise<Reply>,
        {
            signal,
            timeout = CALL_TIMEOUT,
            harmless = true,
            maxLateTries = MAX_LATE_TRIES,
        }: Options & { timeout?: number; harmless?: boolean; maxLateTries?: number } = {},
    ): Promise<Reply> {
        const backoff = new Backoff(FIRST_PAUSE, LONGEST_PAUSE);
        let lateTries = 0;
        for (let tries = 1; ; tries++) {
            try {
                return await send(signal ? { signal, timeoutMs: timeout } : { timeoutMs: timeout });
            } catch (thrown) {
                signal?.throwIfAborted();
                const error = JobwireError.from(thrown);
                const wanted = error.retryDelayMs ?? 0;
                if (error.late) lateTries++;
                const last = tries === MAX_TRIES || lateTries === maxLateTries;
                if (last || !error.repeatable(harmless) || wanted > LONGEST_RETRY_DELAY) throw error;
                await sleep(backoff.pause(wanted), signal);
            }
        }
    }
}

function withRequestId(request: SubmitRequest): SubmitRequest {
    return request.requestId ? request : { ...request, requestId: randomId() };
}

/** As `crypto.randomUUID`, which browsers have for pages that came over TLS only. */
function randomId(): string {
    const bytes = crypto.getRandomValues(new Uint8Array(16));
    return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
