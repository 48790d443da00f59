import assert from "node:assert/strict";
import { test } from "node:test";

import { openPackage, selfTest, UserError } from "../dist/index.js";
import { coefficients, fakeOrt, HIDDEN, ID, packageFiles, packageSource } from "./helpers.js";

const opened = (options = {}, changes = {}, facts = {}) =>
    openPackage(packageSource(changes, facts), { ort: fakeOrt(options), executionProviders: ["cpu"] });

/** The one sentence with which an action is refused. */
async function refusal(action) {
    let caught = null;
    try {
        await action();
    } catch (error) {
        caught = error;
    }
    assert.ok(caught instanceof UserError, `not refused: ${caught}`);
    assert.ok(!caught.message.includes("\n"));
    return caught.message;
}

const picture = { width: 4, height: 2, data: new Uint8Array(4 * 8).fill(200) };

test("an answer streams, and says why it stopped", async () => {
    const answer = (await opened()).ask("what is it", [picture]);
    assert.equal(await answer.text(), "left");
    assert.equal(answer.stopped, "end");
    const long = (await opened({ endless: true })).ask("what is it", [], { maxNewTokens: 3 });
    assert.equal(await long.text(), "left left left");
    assert.equal(long.stopped, "length");
});

test("an answer ends with the context, and a prompt that is longer is refused", async () => {
    const full = (await opened({ endless: true })).ask("what is it", [], { maxNewTokens: 64 });
    assert.equal((await full.text()).split(" ").length, 11); // 16 less 6 of the prompt, and the one that didn't fit
    assert.equal(full.stopped, "context");
    const pkg = await opened();
    assert.match(await refusal(() => pkg.ask("what ".repeat(30), []).text()), /33 tokens.*context has 16/);
});

test("an aborted answer ends after the token that was being made", async () => {
    const stop = new AbortController();
    const answer = (await opened({ endless: true })).ask("what is it", [], { signal: stop.signal });
    let pieces = 0;
    for await (const piece of answer) if (piece && ++pieces === 2) stop.abort();
    assert.equal(answer.stopped, "aborted");
    assert.equal(pieces, 2);
});

test("the decoder is fed the prompt with its gate, then token by token", async () => {
    const told = [];
    await (await opened({ told })).ask("what is it", [picture]).text();
    const [prompt, step] = told;
    const tokens = 6 + 4; // the picture's four
    assert.deepEqual([...prompt.gate.data], [...Array(tokens - 1).fill(0), 1]);
    assert.deepEqual(prompt.inputs_embeds.dims, [1, tokens, HIDDEN]);
    assert.deepEqual(prompt["past_key_values.0.key"].dims, [1, 1, 0, 4]);
    assert.deepEqual([...step.gate.data], [1]);
    assert.deepEqual([...step.position_ids.data], [BigInt(tokens)]);
    assert.equal(step.attention_mask.data.length, tokens + 1);
});

test("scope all gates every token", async () => {
    const told = [];
    const runtime = JSON.parse(packageFiles().get("runtime.json"));
    await (
        await opened({ told }, { "runtime.json": { ...runtime, scope: "all" } })
    )
        .ask("what is it", [])
        .text();
    assert.deepEqual([...told[0].gate.data], Array(6).fill(1));
});

test("strength is mixed into the scalars, and other scalars can be put in", async () => {
    const told = [];
    const pkg = await opened({ told });
    for (const strength of [0, 0.5, 1]) await pkg.ask("what is it", [], { strength, maxNewTokens: 1 }).text();
    assert.deepEqual(
        told.map((feeds) => [...feeds.attn_scale.data]),
        [
            [1, 1, 1, 1],
            [1, 1, 0.75, 1.25],
            [1, 1, 0.5, 1.5],
        ],
    );
    assert.deepEqual([...told[1].mlp_scale.data], [1, 1.125]);
    pkg.swapScalars(coefficients({ layer_indices: [0] }));
    await pkg.ask("what is it", [], { maxNewTokens: 1 }).text();
    assert.deepEqual([...told[3].attn_scale.data], [0.5, 1.5, 1, 1]);
    assert.match(
        await refusal(async () => pkg.swapScalars(coefficients({ config_sha256: "d" }))),
        /another base model/,
    );
    assert.match(
        await refusal(async () => pkg.swapScalars(coefficients({ tensor_sha256: { w: "2" } }))),
        /w differs/,
    );
    assert.match(await refusal(async () => pkg.swapScalars(coefficients({ scope: "all" }))), /scope "all"/);
    assert.match(
        await refusal(async () => pkg.swapScalars(coefficients({ layer_indices: [7] }))),
        /decoder of 2 layers/,
    );
    assert.match(await refusal(async () => (pkg.strength = 1.5)), /between 0/);
});

test("scalars that are in the weights can't be changed", async () => {
    const runtime = JSON.parse(packageFiles().get("runtime.json"));
    const pkg = await opened({}, { "runtime.json": { ...runtime, fold: "weights" } }, { fold: "weights" });
    assert.match(await refusal(async () => (pkg.strength = 0)), /export it again with --fold gate/);
    const two = opened({}, { "runtime.json": { ...runtime, fold: "two-phase" } }, { fold: "two-phase" });
    assert.match(await refusal(() => two), /two-phase/);
});

test("a runtime that drops the gate is refused by name", async () => {
    assert.match(await refusal(() => opened({ dropped: ["gate"] })), /takes no gate in this runtime/);
    assert.match(
        await refusal(() => opened({ dropped: ["attn_scale", "mlp_scale"] })),
        /attn_scale, mlp_scale/,
    );
});

const host = { runtime: "fake 1", provider: "cpu", threads: 1, device: "desk", system: "none" };

test("no memory is one sentence, as a graph is loaded and as it runs", async () => {
    const words = [
        "std::bad_alloc",
        "Can't create a session. ERROR_CODE: 6, ERROR_MESSAGE: Failed to allocate memory for requested buffer of size 8",
        "RangeError: Array buffer allocation failed",
        "RuntimeError: memory access out of bounds",
        "Out of memory",
    ];
    const sentence =
        /^[^\n]*: there is not enough memory on this device; close other pages[^\n]*smaller package$/;
    for (const saying of words) {
        assert.match(await refusal(() => opened({ failing: "decoder", saying })), sentence);
        const pkg = await opened({ failing: "decoder", saying, runs: true });
        assert.match(await refusal(() => pkg.ask("what", [picture]).text()), sentence);
    }
    const other = await refusal(() => opened({ failing: "vision", saying: "Protobuf parsing failed." }));
    assert.match(other, /cannot load vision\.onnx of tiny \(Protobuf parsing failed\.\)/);
});

test("the self-test passes, and fails on a runtime that ignores the scalars", async () => {
    const right = await selfTest(await opened(), { host, decode: async () => picture });
    assert.deepEqual(right.failures, []);
    assert.equal(right.result.cases.length, 3);
    assert.ok(right.result.cases.slice(1).every((found) => Math.abs(found.gate_response - 1) < 1e-5));
    const wrong = await selfTest(await opened({ ignoring: true }), { host, decode: async () => picture });
    assert.equal(wrong.passed, false);
    assert.deepEqual(
        wrong.result.cases.slice(1).map((found) => found.gate_response),
        [0, 0],
    );
    assert.ok(wrong.failures.some((failure) => /drops the scalars/.test(failure)));
});

test("a damaged, missing or foreign file is named", async () => {
    const files = packageFiles();
    const source = (change) => {
        const changed = new Map(files);
        change(changed);
        return openPackage(
            { name: "tiny", read: async (name) => changed.get(name) ?? assert.fail(name) },
            { ort: fakeOrt(), executionProviders: [] },
        );
    };
    const flipped = Buffer.from(files.get("decoder.onnx"));
    flipped[0] ^= 1;
    assert.match(
        await refusal(() => source((all) => all.set("decoder.onnx", flipped))),
        /decoder\.onnx of tiny is damaged/,
    );
    assert.match(
        await refusal(() => source((all) => all.set("vision.onnx", Buffer.from("x")))),
        /has 1 bytes, not 6/,
    );
    const manifest = Buffer.from(files.get("manifest.json").toString().replace('"tiny"', '"tidy"'));
    assert.match(
        await refusal(() => source((all) => all.set("manifest.json", manifest))),
        /changed after it was written/,
    );
    assert.match(await refusal(() => opened({}, {}, { schema: 1 })), /older scale-export/);
    assert.match(await refusal(() => opened({}, {}, { backend: "coreml" })), /package for coreml/);
    assert.match(
        await refusal(() => opened({}, {}, { files: { "../x": { size: 0, sha256: "" } } })),
        /leads out of the package/,
    );
});

test("what is not done here is refused by name", async () => {
    assert.match(await refusal(() => opened({}, {}, { model_type: "paligemma" })), /family paligemma/);
    assert.match(await refusal(() => opened({}, {}, { generic: true })), /family llava/);
    const processor = JSON.parse(packageFiles().get("processor_config.json"));
    const images = (changes) => ({
        ...processor,
        image_processor: { ...processor.image_processor, ...changes },
    });
    assert.match(
        await refusal(() =>
            opened({}, { "processor_config.json": images({ image_processor_type: "ViTImageProcessor" }) }),
        ),
        /ViTImageProcessor/,
    );
    assert.match(
        await refusal(() => opened({}, { "processor_config.json": images({ do_pad: true }) })),
        /sets do_pad/,
    );
    const pkg = await opened({}, { "processor_config.json": images({ resample: 0 }) });
    assert.match(await refusal(() => pkg.ask("what", [picture]).text()), /filter 0/);
    const runtime = JSON.parse(packageFiles().get("runtime.json"));
    assert.match(
        await refusal(() =>
            opened({}, { "runtime.json": { ...runtime, generation: { stop_strings: ["x"] } } }),
        ),
        /rule stop_strings/,
    );
});

test("a word that stands for a picture is no part of a question, and is taken out of an answer", async () => {
    const pkg = await opened();
    assert.match(await refusal(() => pkg.ask("what <image> is it", []).text()), /cannot hold "<image>"/);
    const told = await pkg.prepare(
        [
            { role: "user", text: "what" },
            { role: "assistant", text: "<image> left" },
            { role: "user", text: "is" },
        ],
        [],
    );
    assert.ok(!told.ids.includes(ID["<image>"]));
});

test("a file that two graphs read is read once", async () => {
    const graph = (role, ...data) => [
        role,
        { file: `${role}.onnx`, size: 1, data: data.map((file) => ({ file, size: 4 })) },
    ];
    const whole = JSON.parse(Buffer.from(packageFiles().get("runtime.json")));
    const graphs = Object.fromEntries([
        graph("decoder", "decoder.onnx.data"),
        graph("vision", "vision.onnx.data"),
        graph("embedding", "decoder.onnx.data"),
    ]);
    const source = packageSource({
        "runtime.json": { ...whole, graphs },
        "decoder.onnx.data": "codes",
        "vision.onnx.data": "tower",
    });
    const reads = [];
    const counted = {
        ...source,
        name: source.name,
        read: (name, told) => (reads.push(name), source.read(name, told)),
    };
    const ort = fakeOrt();
    const given = [];
    const create = ort.InferenceSession.create;
    ort.InferenceSession.create = (bytes, options) => {
        given.push((options.externalData ?? []).map(({ path, data }) => `${path}: ${Buffer.from(data)}`));
        return create(bytes);
    };
    await openPackage(counted, { ort, executionProviders: ["cpu"] });
    assert.deepEqual(given, [
        ["decoder.onnx.data: codes"],
        ["decoder.onnx.data: codes"],
        ["vision.onnx.data: tower"],
    ]);
    for (const name of ["decoder.onnx.data", "vision.onnx.data"])
        assert.equal(reads.filter((read) => read === name).length, 1);
});
