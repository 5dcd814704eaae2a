// A worker: functions that run jobs.

import { create, fromBinary, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import { durationFromMs, durationMs, timestampDate } from "@bufbuild/protobuf/wkt";
import { Code, createClient, type Client as Rpc } from "@connectrpc/connect";
import { hostname } from "node:os";

import { JobwireError } from "./errors.js";
import {
    type Job,
    type JobError,
    JobErrorSchema,
    type Payload,
    PayloadSchema,
    ProgressSchema,
} from "./gen/jobwire/v1/types_pb.js";
import {
    type FinishAck,
    type FinishSchema,
    type Lease,
    WorkerService,
    type WorkResponse,
} from "./gen/jobwire/v1/worker_service_pb.js";
import { Backoff, sleep } from "./pause.js";
import { decode, encode } from "./payload.js";
import { type Listener, Session } from "./session.js";
import { transport, type TransportOptions } from "./transport.js";

const SDK = "jobwire-typescript/0.1.0";
// Milliseconds.
const [FIRST_PAUSE, LONGEST_PAUSE] = [250, 15_000];
/** For handlers to heed their signal, and for the last results, when a worker ends. */
const LAST_WORDS = 5_000;
/** For leases that are on their way when a drain begins. */
const LAST_LEASES = 1_000;
/** Before a result is sent again that the server could not take. */
const PAUSE = 1_000;
/** setTimeout takes more for none at all. */
const MAX_TIMEOUT = 2 ** 31 - 1;
/** What servers keep of a report. */
const [MAX_CODE, MAX_TEXT, MAX_NOTE] = [128, 8 << 10, 1 << 10];
const MAX_DETAILS_BYTES = 16 << 10;
const MAX_OUTPUT_BYTES = (4 << 20) - 1024;

type Outcome = NonNullable<MessageInitShape<typeof FinishSchema>["outcome"]>;
type Warn = (message: string, ...details: unknown[]) => void;

/** Thrown by a handler: the attempt failed. */
export class Failure extends Error {
    override readonly name = "Failure";

    /**
     * `code` is a stable word, such as `smtp.refused`. `retryable` false ends the job at once; `retryAfterMs` takes the
     * place of the back-off, if it is a number from 0 on; `details`, of at most 16 KiB, go to whoever reads the
     * outcome.
     */
    constructor(
        readonly code: string,
        message: string = code,
        readonly options: { retryable?: boolean; retryAfterMs?: number; details?: unknown } = {},
    ) {
        super(message);
    }

    /** As the server takes it: a handler may put anything in here, but it has failed. */
    report(warn: Warn = () => {}): JobError {
        const { retryable = true, retryAfterMs = NaN, details } = this.options ?? {};
        const code = typeof this.code === "string" ? this.code.slice(0, MAX_CODE) : "error";
        const message = text(this.message).slice(0, MAX_TEXT);
        const report = create(JobErrorSchema, { code, message, retryable: Boolean(retryable) });
        const add = (part: string, set: () => void) => {
            try {
                set();
            } catch (error) {
                warn(`the failure ${code} is reported without its ${part}`, error);
            }
        };
        add("delay", () => {
            // Durations are made of whole milliseconds.
            const delay = Math.ceil(retryAfterMs);
            if (retryAfterMs >= 0 && Number.isSafeInteger(delay)) report.retryDelay = durationFromMs(delay);
        });
        add("details", () => {
            if (details !== undefined) report.details = small(details, "details");
        });
        return report;
    }
}

/** One attempt, as its handler sees it. */
export interface Context {
    /** The job. Its `jobId`, `run` and `attempt` serve a handler's own idempotency: it may run more than once. */
    readonly job: Job;
    /** Aborted when the job is cancelled, the attempt's time is over, the lease is lost or the worker ends. */
    readonly signal: AbortSignal;
    /** When the attempt's time is over. */
    readonly deadline: Date | undefined;
    /** The newest checkpoint, of this attempt or one before. */
    readonly checkpoint: unknown;
    /**
     * Reports how far the attempt is, from 0 to 1. Only the newest report is kept, and 1 KiB of its note. `checkpoint`
     * is a value of at most 16 KiB that is handed to the next attempt if this one fails.
     */
    progress(fraction: number, note?: string, checkpoint?: unknown): void;
}

// The payload is what the kind takes, which only its handler knows.
export type Handler = (context: Context, payload: any) => unknown;

export interface WorkerOptions extends TransportOptions {
    /** Jobs at the same time; 16 by default. */
    concurrency?: number;
    /** Empty means the queue "default". */
    queues?: string[];
    workerId?: string;
    labels?: Record<string, string>;
    /** How long a drain waits for handlers; 30 s by default. */
    drainTimeoutMs?: number;
    /** Hears of lost sessions, and of what handlers throw; `console.warn` by default. */
    onWarning?: Warn;
}

/** A lease with its work, from its arrival until its result was acknowledged. */
class Attempt implements Context {
    readonly #abort = new AbortController();
    readonly signal = this.#abort.signal;
    readonly report = create(ProgressSchema);
    reported = false;
    /** Not before a heartbeat has named the lease. */
    begun = false;
    outcome: Outcome | undefined;
    /** The server would not have the handler's own result. */
    refused = false;
    giveBack = false;

    constructor(
        readonly lease: Lease,
        private readonly tell: (attempt: Attempt) => void,
    ) {
        // A checkpoint stays with later reports that bring none.
        const details = lease.job?.progress?.details;
        if (details) this.report.details = details;
    }

    get job(): Job {
        return this.lease.job!;
    }

    get kind(): string {
        return this.job.spec?.kind ?? "";
    }

    get deadline(): Date | undefined {
        return this.lease.attemptDeadline && timestampDate(this.lease.attemptDeadline);
    }

    get checkpoint(): unknown {
        return decode(this.report.details);
    }

    progress(fraction: number, note = "", checkpoint?: unknown): void {
        if (checkpoint !== undefined) this.report.details = small(checkpoint, "checkpoint");
        // Whatever it is that JavaScript passes here: what cannot be sent would end the session, and the next one.
        this.report.fraction = Number(fraction);
        this.report.note = String(note).slice(0, MAX_NOTE);
        this.reported = true;
        this.tell(this);
    }

    cancel(why: string, giveBack = false): void {
        if (this.signal.aborted) return;
        this.giveBack = giveBack;
        this.#abort.abort(new DOMException(why, "AbortError"));
    }
}

/** Runs the jobs of the kinds that have a handler, until SIGTERM. */
export class Worker {
    readonly workerId: string;
    readonly #rpc: Rpc<typeof WorkerService>;
    readonly #options: WorkerOptions;
    readonly #handlers = new Map<string, Handler>();
    readonly #held = new Map<string, Attempt>();
    readonly #stop = new AbortController();
    readonly #hurry = new AbortController();
    #session: Session | undefined;
    #ran = false;
    /** Called when something is no longer held. */
    #released: () => void = () => {};
    readonly #listener: Listener = {
        receive: (session, message) => this.#receive(session, message),
        // A result is on its way before the heartbeat.
        held: () => [...this.#held].filter(([, attempt]) => !attempt.outcome).map(([leaseId]) => leaseId),
        named: (leaseIds) => leaseIds.forEach((leaseId) => this.#begin(leaseId)),
    };

    constructor(address = "localhost", options: WorkerOptions = {}) {
        this.#rpc = createClient(WorkerService, transport(address, options));
        if (!Array.isArray(options.queues ?? [])) throw new TypeError("queues must be a list of names");
        this.#options = options;
        this.workerId = options.workerId ?? ownId();
    }

    /**
     * Registers a function for a kind. The payload comes decoded; what is returned becomes the output. A
     * {@link Failure} says how the attempt failed; anything else that is thrown fails it as retryable, with the code
     * `error`. A handler that heeds `context.signal` ends early when its result would be for nothing.
     */
    handle(kind: string, handler: Handler): this {
        this.#handlers.set(kind, handler);
        return this;
    }

    /** Begins the drain, as SIGTERM does; called again, ends it. */
    stop(): void {
        (this.#stop.signal.aborted ? this.#hurry : this.#stop).abort();
    }

    /**
     * Works until it is told to stop, through restarts of the server. On SIGTERM or SIGINT it takes no more jobs, lets
     * those that run end, and gives the rest back uncounted; a second signal does that at once. Throws a
     * {@link JobwireError} if the server refuses this worker. A worker runs once.
     */
    async run(): Promise<void> {
        if (this.#handlers.size === 0) throw new TypeError("the worker has no handler");
        if (this.#ran) throw new Error("a worker runs once");
        this.#ran = true;
        const heard = () => this.stop();
        process.on("SIGTERM", heard).on("SIGINT", heard);
        const end = new AbortController();
        const link = this.#keepConnected(end.signal);
        try {
            await Promise.race([link, aborted(this.#stop.signal)]);
            await Promise.race([link, this.#drain()]);
        } finally {
            process.off("SIGTERM", heard).off("SIGINT", heard);
            for (const attempt of this.#held.values()) attempt.cancel("the worker ends", true);
            end.abort();
            await link.catch(() => {});
            await this.#session?.close();
        }
    }

    async #drain(): Promise<void> {
        this.#session?.post("capacity", { case: "capacity", value: { maxInFlight: 0 } });
        await this.#session?.heard(LAST_LEASES);
        await this.#idle(this.#options.drainTimeoutMs ?? 30_000, this.#hurry.signal);
        for (const attempt of this.#held.values()) attempt.cancel("the worker ends", true);
        await this.#idle(LAST_WORDS);
        for (const attempt of this.#held.values()) this.#settle(attempt, released("the handler did not end"));
        await this.#idle(LAST_WORDS);
    }

    /** Waits until nothing is held, but no longer than this. */
    async #idle(ms: number, sooner?: AbortSignal): Promise<void> {
        // No AbortSignal.timeout: Node forgets one that only AbortSignal.any knows of (nodejs/node#57736).
        const end = new AbortController();
        const stop = () => end.abort();
        const timer = setTimeout(stop, Math.min(ms, MAX_TIMEOUT));
        if (sooner) void aborted(sooner).then(stop);
        while (this.#held.size > 0 && !end.signal.aborted) {
            await Promise.race([new Promise<void>((resolve) => (this.#released = resolve)), aborted(end.signal)]);
        }
        clearTimeout(timer);
    }

    async #keepConnected(end: AbortSignal): Promise<void> {
        const backoff = new Backoff(FIRST_PAUSE, LONGEST_PAUSE);
        while (!end.aborted) {
            let opened;
            try {
                opened = await Session.open(this.#rpc, this.#hello());
            } catch (thrown) {
                const error = JobwireError.from(thrown);
                if (!error.resumable) throw error;
                this.#warn("no session with the server, trying again", error);
                await sleep(backoff.pause(error.retryDelayMs), end).catch(() => {});
                continue;
            }
            // The old one goes only now: until here it could still take results.
            const old = this.#session;
            this.#session = opened.session;
            for (const leaseId of opened.welcome.lostLeaseIds) this.#lose(leaseId);
            opened.session.start(opened.welcome, this.#listener);
            this.#resume(opened.session);
            opened.session.beat();
            await old?.close();
            const error = await Promise.race([opened.session.leaving, aborted(end)]);
            if (error) this.#warn("lost the session with the server", error);
            // A welcome alone is no success: what is sent next may be what ends every session.
            if (opened.session.useful) backoff.reset();
            await sleep(backoff.pause(error?.retryDelayMs), end).catch(() => {});
        }
    }

    #hello() {
        return {
            workerId: this.workerId,
            kinds: [...this.#handlers.keys()].sort(),
            queues: this.#options.queues ?? [],
            maxInFlight: this.#stop.signal.aborted ? 0 : (this.#options.concurrency ?? 16),
            heldLeaseIds: [...this.#held.keys()],
            labels: this.#options.labels ?? {},
            sdk: SDK,
        };
    }

    /** Brings a new session up to date with what is held. */
    #resume(session: Session): void {
        if (this.#stop.signal.aborted) session.post("capacity", { case: "capacity", value: { maxInFlight: 0 } });
        for (const attempt of this.#held.values()) {
            // Also before a result: a failure hands the checkpoint on.
            if (attempt.reported) this.#postProgress(attempt);
            if (attempt.outcome) this.#postFinish(attempt);
        }
    }

    #receive(session: Session, { message }: WorkResponse): void {
        // What a newer server may send beyond this is ignored.
        switch (message.case) {
            case "lease":
                if (message.value.sequence > session.lastSequence) session.lastSequence = message.value.sequence;
                this.#take(session, message.value);
                break;
            case "heartbeatAck":
                for (const leaseId of message.value.lostLeaseIds) this.#lose(leaseId);
                break;
            case "finishAck":
                this.#settled(message.value);
                break;
            case "revoked":
                this.#held.get(message.value.leaseId)?.cancel("the lease was revoked");
                break;
            case "drain":
                session.leave();
                break;
        }
    }

    #take(session: Session, lease: Lease): void {
        if (this.#held.has(lease.leaseId)) return;
        const attempt = new Attempt(lease, (attempt) => {
            if (!attempt.outcome) this.#postProgress(attempt);
        });
        this.#held.set(lease.leaseId, attempt);
        if (!this.#handlers.has(attempt.kind)) this.#settle(attempt, released("no handler for this kind"));
        else if (this.#stop.signal.aborted) this.#settle(attempt, released("the worker ends"));
        // An attempt that nobody confirmed does not count: a job that ends this process at once would run for ever.
        else session.beat();
    }

    /** Starts the work of a lease that a heartbeat has named. */
    #begin(leaseId: string): void {
        const attempt = this.#held.get(leaseId);
        if (!attempt || attempt.begun || attempt.outcome) return;
        attempt.begun = true;
        if (this.#stop.signal.aborted) attempt.cancel("the worker ends", true);
        const handler = this.#handlers.get(attempt.kind)!;
        void this.#work(attempt, handler)
            // Nothing that a handler throws may end the process, and the work of all others.
            .catch(() => this.#failed(new Failure("error", "the handler threw what cannot be read")))
            .then((outcome) => this.#settle(attempt, outcome));
    }

    async #work(attempt: Attempt, handler: Handler): Promise<Outcome> {
        try {
            attempt.signal.throwIfAborted();
            const payload = read(attempt.job.spec?.payload);
            return succeeded(await handler(attempt, payload));
        } catch (thrown) {
            if (attempt.giveBack) return released("the worker ends");
            if (thrown instanceof Failure) return this.#failed(thrown);
            if (attempt.signal.aborted) return this.#failed(new Failure("interrupted", "stopped before it was done"));
            this.#warn(`the handler of ${attempt.kind} failed for job ${attempt.job.jobId}`, thrown);
            return this.#failed(new Failure("error", text(thrown)));
        }
    }

    #failed(failure: Failure): Outcome {
        return { case: "failed", value: failure.report((...what) => this.#warn(...what)) };
    }

    /** Keeps a result until the server has acknowledged it. */
    #settle(attempt: Attempt, outcome: Outcome): void {
        if (attempt.outcome || this.#held.get(attempt.lease.leaseId) !== attempt) return;
        attempt.outcome = outcome;
        this.#postFinish(attempt);
    }

    #settled({ leaseId, accepted, rejection }: FinishAck): void {
        const attempt = this.#held.get(leaseId);
        if (!attempt?.outcome) return;
        const code = accepted ? undefined : rejection?.code;
        if (!accepted) this.#warn(`the server refused a result: ${rejection?.message} (${rejection?.reason})`);
        if (code === Code.Unavailable || code === Code.ResourceExhausted) {
            const pause = rejection?.retryDelay ? durationMs(rejection.retryDelay) : PAUSE;
            setTimeout(() => this.#postFinish(attempt), pause).unref();
        } else if (code === Code.InvalidArgument && !attempt.refused) {
            const outcome = insteadOf(attempt.outcome, rejection?.message ?? "");
            attempt.refused = true;
            attempt.outcome = undefined;
            this.#settle(attempt, outcome);
        } else {
            // Accepted, or too late.
            this.#forget(leaseId);
        }
    }

    #postFinish({ lease: { leaseId }, outcome }: Attempt): void {
        if (!outcome || !this.#held.has(leaseId)) return;
        this.#session?.post(`finish ${leaseId}`, { case: "finish", value: { leaseId, outcome } });
    }

    #postProgress({ lease: { leaseId }, report }: Attempt): void {
        if (!this.#held.has(leaseId)) return;
        const value = { leaseId, progress: create(ProgressSchema, { ...report }) };
        this.#session?.post(`progress ${leaseId}`, { case: "progress", value });
    }

    /**
     * The lease is somebody else's by now: its work is for nothing. A result that is there may still count, and waits
     * for its answer.
     */
    #lose(leaseId: string): void {
        const attempt = this.#held.get(leaseId);
        if (!attempt || attempt.outcome) return;
        this.#warn(`lost the lease of job ${attempt.job.jobId}`);
        attempt.cancel("the lease was lost");
        this.#forget(leaseId);
    }

    #forget(leaseId: string): void {
        this.#held.delete(leaseId);
        this.#released();
    }

    #warn(message: string, ...details: unknown[]): void {
        try {
            (this.#options.onWarning ?? console.warn)(message, ...details);
        } catch {
            // Whoever listens does not end what it is told about.
        }
    }
}

/** With a word before the name of the host, which may be one that ids must not begin with. */
function ownId(): string {
    const host = hostname().replace(/[^!-~]/g, "").slice(0, 64);
    return `node-${host}-${process.pid}-${Math.random().toString(16).slice(2, 8)}`;
}

function released(reason: string): Outcome {
    return { case: "released", value: { reason } };
}

function read(payload: Payload | undefined): unknown {
    try {
        return decode(payload);
    } catch (error) {
        throw new Failure("payload.invalid", `the payload is no JSON: ${error}`, { retryable: false });
    }
}

function write(value: unknown, what: string): Payload {
    try {
        return encode(value);
    } catch (error) {
        const why = `the ${what} cannot be written as JSON: ${text(error)}`;
        throw new Failure(`${what}.invalid`, why, { retryable: false });
    }
}

/** A document of the size that servers take beside a result. A copy: the handler may go on with its own. */
function small(value: unknown, what: string): Payload {
    const copy = fromBinary(PayloadSchema, toBinary(PayloadSchema, write(value, what)));
    // A tag and a length come before the body.
    if (toBinary(PayloadSchema, create(PayloadSchema, { body: copy.body })).length > MAX_DETAILS_BYTES + 4) {
        throw new Failure(`${what}.invalid`, `the ${what} has more than 16 KiB`, { retryable: false });
    }
    return copy;
}

function succeeded(output: unknown): Outcome {
    const value = write(output, "output");
    try {
        if (toBinary(PayloadSchema, value).length <= MAX_OUTPUT_BYTES) return { case: "succeeded", value };
        return refused("the output is larger than a message may be");
    } catch (error) {
        return refused(`the output cannot be sent: ${text(error)}`);
    }
}

/** Not everything that can be thrown has a text. */
function text(thrown: unknown): string {
    try {
        return String(thrown);
    } catch {
        return "something without a text";
    }
}

function refused(why: string): Outcome {
    return { case: "failed", value: new Failure("output.invalid", why, { retryable: false }).report() };
}

/** What is reported in place of a result that cannot be. A failure stays that failure. */
function insteadOf(outcome: Outcome, why: string): Outcome {
    if (outcome.case === "succeeded") return refused(why);
    if (outcome.case !== "failed") return released("");
    const { code, message, retryable } = create(JobErrorSchema, outcome.value);
    return { case: "failed", value: { code, message, retryable } };
}

function aborted(signal: AbortSignal): Promise<undefined> {
    return new Promise((resolve) => {
        if (signal.aborted) resolve(undefined);
        else signal.addEventListener("abort", () => resolve(undefined), { once: true });
    });
}
