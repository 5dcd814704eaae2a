// One stream of WorkerService.Work: what goes out on it, and when it counts as lost.

import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { durationMs } from "@bufbuild/protobuf/wkt";
import { Code, type Client as Rpc } from "@connectrpc/connect";

import { JobwireError } from "./errors.js";
import {
    type WorkerHelloSchema,
    type WorkerService,
    type WorkerWelcome,
    type WorkRequest,
    WorkRequestSchema,
    type WorkResponse,
} from "./gen/jobwire/v1/worker_service_pb.js";
import { sleep } from "./pause.js";

const WELCOME_TIMEOUT = 15_000;
const GOODBYE_TIMEOUT = 1_000;

/** What a session tells its worker. */
export interface Listener {
    receive(session: Session, message: WorkResponse): void;
    /** Leases for the heartbeat. */
    held(): string[];
    /** Heard once a heartbeat that names these leases is written. */
    named(leaseIds: string[]): void;
}

export class Session {
    /** Settles when this stream has ended, or is about to. Why, if it has. */
    readonly leaving: Promise<JobwireError | undefined>;
    lastSequence = 0n;
    readonly #stop = new AbortController();
    readonly #responses: AsyncIterator<WorkResponse>;
    /** One message for each key, the newest: what is not sent yet is replaced, so it is bounded by what is held. */
    readonly #outbox = new Map<string, WorkRequest>();
    #wake: () => void = () => {};
    #listener: Listener | undefined;
    #beatDue = false;
    /** Heartbeats that were sent, and that were answered. */
    #beats = 0;
    #answers = 0;
    #answered: () => void = () => {};
    #closing = false;
    #leave!: (error?: JobwireError) => void;
    #sent!: () => void;
    readonly #allSent: Promise<void>;
    #timer: ReturnType<typeof setInterval> | undefined;

    private constructor(rpc: Rpc<typeof WorkerService>) {
        this.leaving = new Promise((resolve) => (this.#leave = resolve));
        this.#allSent = new Promise((resolve) => (this.#sent = resolve));
        this.#responses = rpc.work(this.#requests(), { signal: this.#stop.signal })[Symbol.asyncIterator]();
    }

    /** Begins a session. Throws a JobwireError if the server does not welcome it. */
    static async open(
        rpc: Rpc<typeof WorkerService>,
        hello: MessageInitShape<typeof WorkerHelloSchema>,
    ): Promise<{ session: Session; welcome: WorkerWelcome }> {
        const session = new Session(rpc);
        session.post("hello", { case: "hello", value: hello });
        try {
            const first = await session.#next(WELCOME_TIMEOUT);
            if (first.message.case === "welcome") return { session, welcome: first.message.value };
            throw new JobwireError(Code.Unavailable, "the server began the session without its welcome");
        } catch (thrown) {
            session.#stop.abort();
            throw JobwireError.from(thrown);
        }
    }

    /** Begins to beat, and to hand messages on. */
    start(welcome: WorkerWelcome, listener: Listener): void {
        const interval = (welcome.heartbeatInterval && durationMs(welcome.heartbeatInterval)) || 5_000;
        this.#listener = listener;
        this.#timer = setInterval(() => this.beat(), interval);
        void this.#receive(3 * interval, listener);
    }

    /** Sends a message soon, in order, in place of an unsent one with the same key. */
    post(key: string, message: MessageInitShape<typeof WorkRequestSchema>["message"] & object): void {
        this.#outbox.set(key, create(WorkRequestSchema, { message }));
        this.#wake();
    }

    /** Sends a heartbeat soon. */
    beat(): void {
        this.#beatDue = true;
        this.#wake();
    }

    /** Whether the server has taken what was sent: all that is held comes before the first heartbeat. */
    get useful(): boolean {
        return this.#answers > 0;
    }

    /** Waits until the server has answered a heartbeat that follows all that was posted, but no longer than this. */
    async heard(ms: number): Promise<void> {
        const wanted = this.#beats + 1;
        const answered = new Promise<void>((resolve) => {
            this.#answered = () => this.#answers >= wanted && resolve();
        });
        this.beat();
        const timeout = new AbortController();
        const late = sleep(ms, timeout.signal).catch(() => {});
        await Promise.race([answered, this.leaving, late]);
        timeout.abort();
    }

    /** The server says that it is going away: another session should take over. */
    leave(): void {
        this.#leave();
    }

    /** Says goodbye: what was posted is sent first, if the stream still takes it. */
    async close(): Promise<void> {
        clearInterval(this.#timer);
        this.#closing = true;
        this.#wake();
        const timeout = new AbortController();
        const late = sleep(GOODBYE_TIMEOUT, timeout.signal).catch(() => {});
        await Promise.race([this.#allSent, late]);
        timeout.abort();
        this.#stop.abort();
    }

    async *#requests(): AsyncGenerator<WorkRequest> {
        try {
            for (;;) {
                if (this.#beatDue && this.#listener) {
                    this.#beatDue = false;
                    // Last: it does not name a lease whose result waits here, and must not overtake that.
                    this.#outbox.delete("heartbeat");
                    const value = { leaseIds: this.#listener.held(), lastLeaseSequence: this.lastSequence };
                    this.post("heartbeat", { case: "heartbeat", value });
                }
                const [next] = this.#outbox;
                if (next) {
                    const [key, request] = next;
                    this.#outbox.delete(key);
                    if (request.message.case === "heartbeat") this.#beats++;
                    yield request; // Comes back when it is written.
                    if (request.message.case === "heartbeat") this.#listener?.named(request.message.value.leaseIds);
                } else if (this.#closing || this.#stop.signal.aborted) {
                    return;
                } else {
                    await new Promise<void>((resolve) => (this.#wake = resolve));
                }
            }
        } finally {
            this.#sent();
        }
    }

    async #receive(silence: number, listener: Listener): Promise<void> {
        try {
            for (;;) {
                const response = await this.#next(silence);
                listener.receive(this, response);
                if (response.message.case === "heartbeatAck") {
                    this.#answers++;
                    this.#answered();
                }
            }
        } catch (thrown) {
            this.#leave(JobwireError.from(thrown));
        } finally {
            clearInterval(this.#timer);
            this.#stop.abort();
            this.#wake();
        }
    }

    async #next(silence: number): Promise<WorkResponse> {
        let silent = false;
        const timer = setTimeout(() => {
            silent = true;
            this.#stop.abort();
        }, silence);
        try {
            const { done, value } = await this.#responses.next();
            if (!done) return value;
        } catch (thrown) {
            if (!silent) throw thrown;
        } finally {
            clearTimeout(timer);
        }
        if (silent) throw new JobwireError(Code.DeadlineExceeded, `the server has been silent for ${silence} ms`);
        throw new JobwireError(Code.Unavailable, "the server ended the session");
    }
}
