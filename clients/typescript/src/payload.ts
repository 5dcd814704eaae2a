// JavaScript values as the documents that jobs take and give.

import { create, isMessage, toJson } from "@bufbuild/protobuf";
import { ValueSchema } from "@bufbuild/protobuf/wkt";

import { type Payload, PayloadSchema } from "./gen/jobwire/v1/types_pb.js";

const JSON_TYPE = "application/json";

/** A value as a payload: bytes as they are, everything else as JSON. A Payload is passed through. */
export function encode(value: unknown): Payload {
    if (isMessage(value, PayloadSchema)) return value;
    if (value instanceof Uint8Array) return create(PayloadSchema, { body: { case: "data", value } });
    const text = JSON.stringify(value ?? null);
    if (text === undefined) throw new TypeError("this value cannot be written as JSON");
    return create(PayloadSchema, { body: { case: "text", value: text }, contentType: JSON_TYPE });
}

/**
 * The value in a payload: JSON as what it means, other text as a string, the rest as bytes. No document is undefined.
 * Integers beyond 2^53 lose digits; read the text of the payload where they matter. Throws if the server has left the
 * body out.
 */
export function decode(payload: Payload | undefined): any {
    if (payload?.omitted) {
        throw new Error(`the body of ${payload.sizeBytes} bytes was left out: get() or result() has it`);
    }
    const body = payload?.body;
    if (!payload || !body?.case) return undefined;
    if (body.case === "json") return toJson(ValueSchema, body.value);
    const type = payload.contentType.split(";")[0]!.trim().toLowerCase();
    const utf8 = new TextDecoder("utf-8", { fatal: true });
    const text = () => (body.case === "text" ? body.value : utf8.decode(body.value));
    if (type === JSON_TYPE || type.endsWith("+json")) return JSON.parse(text());
    return body.case === "text" || type.startsWith("text/") ? text() : body.value;
}
