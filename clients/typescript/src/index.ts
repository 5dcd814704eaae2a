// What Node and browsers share: messages of the contract, the client, errors, payloads.

export { durationFromMs, durationMs } from "@bufbuild/protobuf/wkt";
export { Code } from "@connectrpc/connect";
export { Client, type Options } from "./client.js";
export { type Details, JobwireError } from "./errors.js";
export * from "./gen/jobwire/v1/admin_service_pb.js";
export * from "./gen/jobwire/v1/job_service_pb.js";
export * from "./gen/jobwire/v1/types_pb.js";
export * from "./gen/jobwire/v1/worker_service_pb.js";
export { decode, encode } from "./payload.js";
