import { compressionGzip, createGrpcTransport } from "@connectrpc/connect-node";
import type { Transport } from "@connectrpc/connect";

import { baseUrl } from "./address.js";

export interface TransportOptions {
    /** Compresses requests from 1 KiB on. A server takes them only if its `http2.accept_gzip` is set. */
    gzip?: boolean;
}

/** A connection of its own, that is made when it is used. */
export function transport(address: string, { gzip = false }: TransportOptions): Transport {
    return createGrpcTransport({
        baseUrl: baseUrl(address),
        readMaxBytes: 4 << 20,
        writeMaxBytes: 4 << 20,
        ...(gzip ? { sendCompression: compressionGzip } : {}),
        // Faster pings than this are not promised to be welcome.
        pingIntervalMs: 30_000,
        pingTimeoutMs: 10_000,
    });
}
