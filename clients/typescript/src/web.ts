// For browsers: gRPC-Web.

import { createGrpcWebTransport } from "@connectrpc/connect-web";

import { Client } from "./client.js";

export * from "./index.js";

/** A client of the server, or of the proxy before it, at this URL. It must allow the origin of the page. */
export function connect(baseUrl: string): Client {
    const transport = createGrpcWebTransport({ baseUrl });
    return new Client(transport, transport);
}
