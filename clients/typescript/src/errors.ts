// What a call can end with instead of a reply.

import { Code, ConnectError } from "@connectrpc/connect";
import { durationMs } from "@bufbuild/protobuf/wkt";

import { BadRequestSchema, ErrorInfoSchema, RetryInfoSchema } from "./gen/google/rpc/error_details_pb.js";

/** The domain of the errors that jobwire itself gives. Others come from libraries and proxies. */
const DOMAIN = "jobwire.v1";

/** What jobwire adds to a status. */
export interface Details {
    /** The reason of the contract, such as `JOB_NOT_FOUND`. Missing if the error is not jobwire's own. */
    reason?: string;
    /** What belongs to the reason, such as a limit that was exceeded. */
    metadata?: Record<string, string>;
    /** Fields of the request that were refused. */
    fields?: { path: string; why: string }[];
    /** When the server wants to be asked again, in milliseconds. */
    retryDelayMs?: number;
}

/** Why a call, or a stream, failed. */
export class JobwireError extends Error {
    override readonly name = "JobwireError";
    readonly reason: string | undefined;
    readonly metadata: Record<string, string>;
    readonly fields: { path: string; why: string }[];
    readonly retryDelayMs: number | undefined;

    /** `code`: libraries and proxies use the same codes; tell causes apart by `reason`. */
    constructor(
        readonly code: Code,
        message: string,
        details: Details = {},
        cause?: unknown,
    ) {
        super(`${message} (${details.reason ?? Code[code]})`, { cause });
        this.reason = details.reason;
        this.metadata = details.metadata ?? {};
        this.fields = details.fields ?? [];
        this.retryDelayMs = details.retryDelayMs;
    }

    /** Reads what a call threw. */
    static from(thrown: unknown): JobwireError {
        if (thrown instanceof JobwireError) return thrown;
        const error = ConnectError.from(thrown);
        const details: Details = {};
        const info = error.findDetails(ErrorInfoSchema).find((info) => info.domain === DOMAIN);
        if (info) {
            details.reason = info.reason;
            details.metadata = info.metadata;
        }
        details.fields = error
            .findDetails(BadRequestSchema)
            .flatMap((bad) => bad.fieldViolations.map(({ field, description }) => ({ path: field, why: description })));
        const delay = error.findDetails(RetryInfoSchema)[0]?.retryDelay;
        if (delay) details.retryDelayMs = durationMs(delay);
        return new JobwireError(code(error), error.rawMessage, details, error);
    }

    /** Whether the same request may be sent again. `harmless`: twice does no more than once. */
    repeatable(harmless: boolean): boolean {
        if (this.code === Code.Unavailable || this.late) return harmless;
        // A plain refusal: nothing was done.
        return this.code === Code.ResourceExhausted && this.reason !== undefined && this.retryDelayMs !== undefined;
    }

    /** Whether no answer came in the time of one try. Where the server says so itself, it has tried. */
    get late(): boolean {
        return this.code === Code.DeadlineExceeded && this.reason === undefined;
    }

    /**
     * Whether a new stream may bring what this error cut off. Codes alone do not tell: proxies make UNKNOWN, INTERNAL
     * and CANCELLED of a broken connection, and then there is no reason of the contract.
     */
    get resumable(): boolean {
        switch (this.code) {
            case Code.Unavailable:
            case Code.DeadlineExceeded:
                return true;
            case Code.ResourceExhausted:
                return this.reason !== undefined;
            case Code.Unknown:
            case Code.Internal:
            case Code.Canceled:
                return this.reason === undefined;
            default:
                return false;
        }
    }
}

/** The code as the gRPC specification has it: libraries call a connection that broke ABORTED, INTERNAL or UNKNOWN. */
function code(error: ConnectError): Code {
    if (error.metadata.has("grpc-status") || error.metadata.has("grpc-status-details-bin")) return error.code;
    // These are INTERNAL as well, but another try would only repeat them.
    if (error.rawMessage.startsWith("serialize binary: ")) return Code.InvalidArgument;
    if (error.rawMessage.startsWith("parse binary: ")) return Code.DataLoss;
    const broke = [Code.Aborted, Code.Internal, Code.Unknown, Code.Canceled].includes(error.code);
    return broke ? Code.Unavailable : error.code;
}
