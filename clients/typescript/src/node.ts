// For Node: gRPC over HTTP/2, and workers.

import { Client } from "./client.js";
import { transport, type TransportOptions } from "./transport.js";

export * from "./index.js";
export type { TransportOptions } from "./transport.js";
export { type Context, type Handler, Failure, Worker, type WorkerOptions } from "./worker.js";

/** A client of the server at `http://host:port` or `host:port`; without a port, 50051. Connects when it is used. */
export function connect(address = "localhost", options: TransportOptions = {}): Client {
    return new Client(transport(address, options), transport(address, options));
}
