// Where a broken watch goes on: the pure part of resuming.

import { clone } from "@bufbuild/protobuf";
import { durationFromMs, durationMs } from "@bufbuild/protobuf/wkt";

import type { JobwireError } from "./errors.js";
import {
    type WatchResultsRequest,
    WatchResultsRequestSchema,
    type WatchResultsResponse,
} from "./gen/jobwire/v1/job_service_pb.js";
import type { Job } from "./gen/jobwire/v1/types_pb.js";

/** Outcomes of a replay that are remembered to leave out repeats, should it break before its end. */
const MAX_REMEMBERED = 100_000;

/** What was asked, and how far it came. */
export class Resume {
    #cursor = "";
    /** Outcomes from before the watch are still being sent, so a cursor would skip the rest of them. */
    #replaying: boolean;
    readonly #replayed = new Set<string>();
    /** Under until_all_done: ids with an outcome. They are asked for again, because a job may be retried meanwhile. */
    readonly #seen = new Set<string>();
    readonly #asked: WatchResultsRequest;

    constructor(request: WatchResultsRequest) {
        this.#asked = clone(WatchResultsRequestSchema, request);
        this.#replaying = !request.start.case && (request.includeExisting || request.untilAllDone);
    }

    /** The request that goes on from here. `elapsedMs`: since the first one was sent. */
    request(elapsedMs: number): WatchResultsRequest {
        const request = clone(WatchResultsRequestSchema, this.#asked);
        if (this.#cursor) {
            request.start = { case: "afterCursor", value: this.#cursor };
            request.includeExisting = false;
        } else if (request.start.case === "lookback") {
            // The same moment in the past as at the first try.
            request.start.value = durationFromMs(durationMs(request.start.value) + Math.ceil(elapsedMs + 1000));
        }
        return request;
    }

    /** Notes a message. False if the caller has had it already. */
    note({ cursor, event }: WatchResultsResponse): boolean {
        let fresh = true;
        if (event.case === "finished") {
            fresh = this.#noteFinished(event.value);
        } else if (event.case === "checkpoint" && event.value.caughtUp) {
            this.#replaying = false;
            this.#replayed.clear();
        }
        if (!this.#replaying && cursor) this.#cursor = cursor;
        return fresh;
    }

    #noteFinished({ jobId, run }: Job): boolean {
        if (this.#asked.untilAllDone) this.#seen.add(jobId);
        if (!this.#replaying) return true;
        const key = `${run} ${jobId}`;
        if (this.#replayed.has(key)) return false;
        if (this.#replayed.size < MAX_REMEMBERED) this.#replayed.add(key);
        return true;
    }

    /** Asks no more for a job that was removed after its outcome came. False if the error tells of none. */
    forget({ reason, metadata }: JobwireError): boolean {
        const { filter } = this.#asked;
        const gone = metadata["job_id"];
        if (!filter || reason !== "JOB_NOT_FOUND" || !gone || !this.#seen.delete(gone)) return false;
        filter.jobIds = filter.jobIds.filter((id) => id !== gone);
        return true;
    }

    /** Nothing is left to ask for. */
    get fulfilled(): boolean {
        return this.#asked.untilAllDone && !this.#asked.filter?.jobIds.length;
    }

    /** The server ends this stream with OK when it has sent everything. */
    get ends(): boolean {
        return this.#asked.untilAllDone;
    }

    /** Longer without any message means that the connection is lost: three heartbeats. */
    get maxSilenceMs(): number {
        const asked = this.#asked.heartbeatInterval ? durationMs(this.#asked.heartbeatInterval) : 15_000;
        return 3 * Math.min(Math.max(asked, 1_000), 60_000);
    }
}
