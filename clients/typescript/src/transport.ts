import { createGrpcTransport } from "@connectrpc/connect-node";
import type { Transport } from "@connectrpc/connect";

import { baseUrl } from "./address.js";

/** A connection of its own, that is made when it is used. */
export function transport(address: string): Transport {
    return createGrpcTransport({
        baseUrl: baseUrl(address),
        readMaxBytes: 4 << 20,
        writeMaxBytes: 4 << 20,
        // Faster pings than this are not promised to be welcome.
        pingIntervalMs: 30_000,
        pingTimeoutMs: 10_000,
    });
}
