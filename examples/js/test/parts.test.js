import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { roundHalfEven } from "../dist/families/rule.js";
import { halves, singles } from "../dist/half.js";
import { filesSource, resize, Sha256, upright, urlSource, UserError, VERSION } from "../dist/index.js";
import { centreCrop } from "../dist/pixels.js";
import { chooseToken, rulesOf } from "../dist/rules.js";
import { readSafetensors } from "../dist/safetensors.js";
import { safetensors } from "./helpers.js";

test("SHA-256 is that of the system, however the bytes come", () => {
    const bytes = Uint8Array.from({ length: 300 }, (_, index) => (index * 37) % 256);
    for (const length of [0, 1, 55, 56, 63, 64, 65, 119, 128, 300]) {
        const part = bytes.subarray(0, length);
        const whole = new Sha256().update(part.subarray(0, length >> 1)).update(part.subarray(length >> 1));
        assert.equal(whole.hex(), createHash("sha256").update(part).digest("hex"));
    }
});

const grid = (width, height) => ({
    width,
    height,
    data: Uint8Array.from({ length: 4 * width * height }, (_, at) => (at % 4 === 3 ? 255 : at >> 2)),
});
const reds = ({ data }) => Array.from(data.filter((_, at) => at % 3 === 0));

test("a picture is turned as its EXIF orientation says", () => {
    const turned = {
        1: [0, 1, 2, 3, 4, 5],
        2: [2, 1, 0, 5, 4, 3],
        3: [5, 4, 3, 2, 1, 0],
        4: [3, 4, 5, 0, 1, 2],
        5: [0, 3, 1, 4, 2, 5],
        6: [3, 0, 4, 1, 5, 2],
        7: [5, 2, 4, 1, 3, 0],
        8: [2, 5, 1, 4, 0, 3],
    };
    for (const [orientation, expected] of Object.entries(turned)) {
        const found = upright({ ...grid(3, 2), orientation: Number(orientation) });
        assert.deepEqual(reds(found), expected, orientation);
        assert.deepEqual([found.width, found.height], Number(orientation) > 4 ? [2, 3] : [3, 2]);
    }
});

test("alpha is left out; the one transparent colour of a palette becomes white", () => {
    const see = { width: 2, height: 1, data: Uint8Array.of(10, 20, 30, 0, 40, 50, 60, 255) };
    assert.deepEqual([...upright(see).data], [10, 20, 30, 40, 50, 60]);
    assert.deepEqual([...upright({ ...see, keyed: true }).data], [255, 255, 255, 40, 50, 60]);
});

test("a picture without pixels, too large, or of other bytes is refused", () => {
    assert.throws(() => upright({ width: 0, height: 1, data: new Uint8Array(0) }), /no pixels/);
    assert.throws(() => upright({ width: 9000, height: 9000, data: new Uint8Array(4) }), /81 megapixels/);
    assert.throws(() => upright({ width: 2, height: 2, data: new Uint8Array(4) }), UserError);
});

test("resizing keeps one colour, and mixes two", () => {
    const flat = { width: 5, height: 7, data: new Uint8Array(105).fill(77) };
    for (const filter of [1, 2, 3, 4, 5])
        assert.ok(resize(flat, 3, 9, filter).data.every((value) => value === 77));
    const two = { width: 2, height: 1, data: Uint8Array.of(0, 0, 0, 255, 255, 255) };
    assert.deepEqual(reds(resize(two, 1, 1, 2)), [128]);
    assert.throws(() => resize(two, 1, 1, 0), /filter 0/);
});

test("the middle is cropped, or framed in black", () => {
    const picture = { width: 3, height: 1, data: Uint8Array.of(1, 1, 1, 2, 2, 2, 3, 3, 3) };
    assert.deepEqual(reds(centreCrop(picture, 1, 1)), [2]);
    assert.deepEqual(reds(centreCrop(picture, 4, 2)), [0, 0, 0, 0, 0, 1, 2, 3]);
});

test("halves round to the nearest even, and come back", () => {
    const values = Float32Array.of(
        0,
        -0,
        1,
        -2.5,
        65504,
        1e6,
        2 ** -24,
        2 ** -26,
        1 + 2 ** -11,
        1 + 3 * 2 ** -11,
        0.1,
    );
    const back = singles(halves(values));
    assert.deepEqual([...back.slice(0, 9)], [0, -0, 1, -2.5, 65504, Infinity, 2 ** -24, 0, 1]);
    assert.equal(back[9], 1 + 2 ** -9);
    assert.ok(Math.abs(back[10] - 0.1) < 5e-5);
});

test("Python's rounding", () =>
    assert.deepEqual([0.5, 1.5, 2.5, 2.4, 2.6].map(roundHalfEven), [0, 2, 2, 2, 3]));

const rules = (values) => rulesOf(values, [2], "runtime.json");
const best = (values, logits, prompt, answer) =>
    chooseToken(rules(values), Float32Array.from(logits), prompt, answer);

test("tokens are chosen by the model's rules", () => {
    assert.equal(best({}, [1, 3, 3], [0], []), 1);
    assert.equal(best({ repetition_penalty: 2 }, [2, 3, 1], [1], []), 0);
    assert.equal(best({ repetition_penalty: 2 }, [-1, -0.8, -3], [1], []), 0);
    assert.equal(best({ no_repeat_ngram_size: 2 }, [0, 5, 1], [0, 1, 0], []), 2);
    assert.equal(best({ bad_words_ids: [[0, 1]] }, [0, 5, 1], [0], []), 2);
    assert.equal(best({ bad_words_ids: [[0, 1]] }, [0, 5, 1], [2], []), 1);
    assert.equal(best({ suppress_tokens: [1] }, [0, 5, 1], [0], []), 2);
    assert.equal(best({ begin_suppress_tokens: [1] }, [0, 5, 1], [0], []), 2);
    assert.equal(best({ begin_suppress_tokens: [1] }, [0, 5, 1], [0], [0]), 1);
    assert.equal(best({ min_new_tokens: 1 }, [0, 1, 5], [0], []), 1);
    assert.equal(best({ min_length: 3 }, [0, 1, 5], [0, 0], [0]), 2);
    assert.throws(() => rules({ num_beams: 4 }), /rule num_beams/);
    assert.throws(() => rulesOf({}, [], "runtime.json"), /no end token/);
});

test("tensors are read wherever they lie in memory", () => {
    const bytes = safetensors({ a: [[1, 2, 3], [3]], b: [[-1], [1]] });
    const shifted = new Uint8Array(bytes.length + 3);
    shifted.set(bytes, 3);
    const { tensors } = readSafetensors(shifted.subarray(3), "file");
    assert.deepEqual([...tensors.get("a").data, ...tensors.get("b").data], [1, 2, 3, -1]);
    assert.throws(() => readSafetensors(bytes.subarray(0, bytes.length - 2), "file"), /no whole safetensors/);
});

test("files come from an address piece by piece, or from what was picked", async () => {
    const asked = [];
    const fetcher = async (address) => (
        asked.push(address),
        new Response(address.endsWith("no") ? null : "abcdef", { status: address.endsWith("no") ? 404 : 200 })
    );
    const source = urlSource("https://x.org/p", fetcher);
    const seen = [];
    assert.equal(Buffer.from(await source.read("a b/c", (bytes) => seen.push(bytes))).toString(), "abcdef");
    assert.deepEqual(asked, ["https://x.org/p/a%20b/c"]);
    assert.equal(seen.at(-1), 6);
    await assert.rejects(source.read("no"), /cannot be fetched \(404\)/);
    await assert.rejects(
        urlSource("https://x.org", () => Promise.reject(new TypeError())).read("a"),
        /check the address/,
    );
    const picked = filesSource(new Map([["a", new Blob(["xyz"])]]));
    assert.equal(Buffer.from(await picked.read("a")).toString(), "xyz");
    await assert.rejects(picked.read("b"), /lacks the file b/);
});

test("the version is the package's", () => {
    assert.equal(VERSION, JSON.parse(readFileSync(new URL("../package.json", import.meta.url))).version);
});
