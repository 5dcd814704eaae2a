// A server that says what a test tells it to, over real sockets.

import { create } from "@bufbuild/protobuf";
import { durationFromMs } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, type ConnectRouter } from "@connectrpc/connect";
import { connectNodeAdapter } from "@connectrpc/connect-node";
import { createServer } from "node:http2";
import type { AddressInfo } from "node:net";

import { BadRequestSchema, ErrorInfoSchema, RetryInfoSchema } from "../src/gen/google/rpc/error_details_pb.js";
import {
    type BatchSubmitRequest,
    type DeleteJobRequest,
    JobService,
    type SubmitRequest,
    type SubmitResponseSchema,
    type WatchResultsRequest,
    type WatchResultsResponse,
    WatchResultsResponseSchema,
} from "../src/gen/jobwire/v1/job_service_pb.js";
import {
    type Finish,
    type Lease,
    type WorkerHello,
    WorkerService,
    type WorkRequest,
    type WorkResponse,
    WorkResponseSchema,
} from "../src/gen/jobwire/v1/worker_service_pb.js";
import type { MessageInitShape } from "@bufbuild/protobuf";

/** A status with details, as jobwire gives it. */
export function refusal(code: Code, reason = "", domain = "jobwire.v1", delayMs = 10): ConnectError {
    if (!reason) return new ConnectError("no", code);
    return new ConnectError("no", code, undefined, [
        { desc: ErrorInfoSchema, value: { reason, domain, metadata: { key: "value" } } },
        { desc: RetryInfoSchema, value: { retryDelay: durationFromMs(delayMs) } },
        { desc: BadRequestSchema, value: { fieldViolations: [{ field: "spec.kind", description: "is missing" }] } },
    ]);
}

/** As {@link refusal}, for a job that there is not. */
export function unknown(jobId: string): ConnectError {
    const value = { reason: "JOB_NOT_FOUND", domain: "jobwire.v1", metadata: { job_id: jobId } };
    return new ConnectError("no such job", Code.NotFound, undefined, [{ desc: ErrorInfoSchema, value }]);
}

export function finished(jobId: string, cursor: string, run = 1): WatchResultsResponse {
    return create(WatchResultsResponseSchema, { cursor, event: { case: "finished", value: { jobId, run } } });
}

export function caughtUp(cursor: string): WatchResultsResponse {
    return create(WatchResultsResponseSchema, { cursor, event: { case: "checkpoint", value: { caughtUp: true } } });
}

type Kind = NonNullable<WorkRequest["message"]["case"]>;
type Value<K extends Kind> = Extract<WorkRequest["message"], { case: K }>["value"];

/** One stream of Work, as the server sees it. */
export class Session {
    readonly messages: WorkRequest["message"][] = [];
    readonly ended: Promise<void>;
    end!: () => void;
    #outgoing: WorkResponse[] = [];
    #wake: () => void = () => {};

    constructor() {
        this.ended = new Promise((resolve) => (this.end = resolve));
    }

    send(message: NonNullable<MessageInitShape<typeof WorkResponseSchema>["message"]>): void {
        this.#outgoing.push(create(WorkResponseSchema, { message }));
        this.#wake();
    }

    /** The first message of this kind that passes, waited for. */
    async seen<K extends Kind>(kind: K, test: (value: Value<K>) => boolean = () => true): Promise<Value<K>> {
        for (;;) {
            for (const { case: found, value } of this.messages) {
                if (found === kind && test(value as Value<K>)) return value as Value<K>;
            }
            await new Promise((resolve) => setTimeout(resolve, 10));
        }
    }

    async acknowledge(leaseId: string): Promise<Finish> {
        const finish = await this.seen("finish", (finish) => finish.leaseId === leaseId);
        this.send({ case: "finishAck", value: { leaseId, accepted: true } });
        return finish;
    }

    async *outgoing(): AsyncGenerator<WorkResponse> {
        let over = false;
        void this.ended.then(() => {
            over = true;
            this.#wake();
        });
        while (!over) {
            yield* this.#outgoing.splice(0);
            if (!over && this.#outgoing.length === 0) {
                await new Promise<void>((resolve) => (this.#wake = resolve));
            }
        }
        yield* this.#outgoing.splice(0);
    }
}

/** Both services. What they answer is in the lists, in order. */
export class Fake {
    readonly submitted: SubmitRequest[] = [];
    readonly batches: BatchSubmitRequest[] = [];
    submitErrors: ConnectError[] = [];
    submitReply: MessageInitShape<typeof SubmitResponseSchema> = { job: { jobId: "a" } };
    polls = 0;
    pollErrors: ConnectError[] = [];
    retries = 0;
    readonly deleted: DeleteJobRequest[] = [];
    readonly watched: WatchResultsRequest[] = [];
    /** What each stream brings: messages, and perhaps an error at the end. */
    streams: (WatchResultsResponse | ConnectError)[][] = [];
    /** Leases that the next hello loses. */
    lost: string[] = [];
    /** A lease that is on its way when the worker says that it takes no more. */
    crossing: Lease | undefined;
    /** Sessions that begin now are welcomed, and end with that. */
    curt = false;
    readonly #sessions: Session[] = [];
    address = "";

    async serve(test: (fake: Fake) => Promise<void>): Promise<void> {
        const server = createServer(connectNodeAdapter({ routes: (router) => this.#routes(router) }));
        const connections = new Set<{ destroy(): void }>();
        server.on("session", (session) => connections.add(session));
        await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
        this.address = `127.0.0.1:${(server.address() as AddressInfo).port}`;
        try {
            await test(this);
        } finally {
            for (const connection of connections) connection.destroy();
            server.close();
        }
    }

    /** The next session that a worker has begun, and its hello. */
    async session(): Promise<{ session: Session; hello: WorkerHello }> {
        while (this.#sessions.length === 0) await new Promise((resolve) => setTimeout(resolve, 10));
        const session = this.#sessions.shift()!;
        return { session, hello: await session.seen("hello") };
    }

    #routes(router: ConnectRouter): void {
        router.service(JobService, {
            submit: (request) => {
                this.submitted.push(request);
                const error = this.submitErrors.shift();
                if (error) throw error;
                return this.submitReply;
            },
            batchSubmit: (request) => {
                this.batches.push(request);
                return {};
            },
            getResult: ({ jobId }) => {
                const done = ++this.polls > 2;
                const error = this.pollErrors.shift();
                if (error) throw error;
                return { done, job: { jobId } };
            },
            listJobs: ({ pageToken }) => ({ nextPageToken: Number(pageToken) < 2 ? `${Number(pageToken) + 1}` : "" }),
            retryJob: () => {
                this.retries++;
                throw new ConnectError("gone", Code.Unavailable);
            },
            deleteJob: (request) => {
                this.deleted.push(request);
                if (this.deleted.length === 1) throw new ConnectError("gone", Code.Unavailable);
                return {};
            },
            watchResults: (request, { signal }) => this.#watch(request, signal),
        });
        router.service(WorkerService, { work: (requests) => this.#work(requests) });
    }

    async *#watch(request: WatchResultsRequest, signal: AbortSignal): AsyncGenerator<WatchResultsResponse> {
        this.watched.push(request);
        const script = this.streams.shift();
        if (!script) await new Promise((resolve) => signal.addEventListener("abort", resolve));
        for (const item of script ?? []) {
            if (item instanceof ConnectError) throw item;
            yield item;
        }
    }

    async *#work(requests: AsyncIterable<WorkRequest>): AsyncGenerator<WorkResponse> {
        const session = new Session();
        this.#sessions.push(session);
        void (async () => {
            try {
                for await (const { message } of requests) {
                    session.messages.push(message);
                    if (message.case === "hello") {
                        const value = { heartbeatInterval: durationFromMs(200), lostLeaseIds: this.lost };
                        session.send({ case: "welcome", value });
                        if (this.curt) break;
                    }
                    if (message.case === "capacity" && this.crossing) {
                        session.send({ case: "lease", value: this.crossing });
                    }
                    if (message.case === "heartbeat") session.send({ case: "heartbeatAck", value: {} });
                }
            } catch {
                // The worker hung up.
            }
            session.end();
        })();
        yield* session.outgoing();
    }
}
