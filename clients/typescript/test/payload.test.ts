// Values on their way into a payload and out again.

import { create } from "@bufbuild/protobuf";
import assert from "node:assert/strict";
import { test } from "node:test";

import { decode, encode, PayloadSchema } from "../src/index.js";

test("values come back as they were", () => {
    for (const value of [null, true, 1, 1.5, "é", [1, "two"], { a: { b: null } }, new Uint8Array([0, 255])]) {
        assert.deepEqual(decode(encode(value)), value);
    }
});

test("what a server sends", () => {
    const value = { kind: { case: "numberValue", value: 3 } } as const;
    assert.equal(decode(create(PayloadSchema, { body: { case: "json", value } })), 3);
    assert.equal(decode(undefined), undefined);
    assert.equal(decode(create(PayloadSchema)), undefined);
    const text = (contentType: string) => create(PayloadSchema, { contentType, body: { case: "text", value: "[1]" } });
    assert.equal(decode(text("text/plain")), "[1]");
    assert.deepEqual(decode(text("application/problem+json; charset=utf-8")), [1]);
    const data = create(PayloadSchema, {
        contentType: "text/csv",
        body: { case: "data", value: new TextEncoder().encode("a,b") },
    });
    assert.equal(decode(data), "a,b");
    assert.equal(encode(data), data);
});

test("a body that was left out is not undefined", () => {
    const payload = create(PayloadSchema, { omitted: true, sizeBytes: 70_000n, contentType: "application/json" });
    assert.throws(() => decode(payload), /the body of 70000 bytes was left out/);
});

test("what has no JSON is refused", () => {
    assert.throws(() => encode(() => {}), TypeError);
    assert.throws(() => encode(1n), TypeError);
});
