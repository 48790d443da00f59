/** A made-up package in memory, and a runtime that plays its graphs. */
import { createHash } from "node:crypto";

import { filesSource } from "../dist/index.js";

const LAYERS = 2;
const HEADS = 2;
export const HIDDEN = 4;
const WORDS = [
    "<pad>",
    "<s>",
    "</s>",
    "<user>",
    "<assistant>",
    "<image>",
    "left",
    "right",
    "what",
    "is",
    "it",
];
export const ID = Object.fromEntries(WORDS.map((word, id) => [word, id]));

const special = (id) => ({
    id,
    content: WORDS[id],
    special: true,
    single_word: false,
    lstrip: false,
    rstrip: false,
    normalized: false,
});

const TOKENIZER = {
    version: "1.0",
    added_tokens: [0, 1, 2, 3, 4, 5].map(special),
    normalizer: null,
    pre_tokenizer: { type: "WhitespaceSplit" },
    post_processor: null,
    decoder: null,
    model: { type: "WordLevel", vocab: ID, unk_token: "<pad>" },
};

const PROCESSOR = {
    processor_class: "LlavaProcessor",
    image_token: "<image>",
    patch_size: 4,
    num_additional_image_tokens: 1,
    vision_feature_select_strategy: "default",
    image_processor: {
        image_processor_type: "CLIPImageProcessor",
        do_resize: true,
        size: { shortest_edge: 8 },
        resample: 3,
        do_center_crop: true,
        crop_size: { height: 8, width: 8 },
        do_rescale: true,
        rescale_factor: 1 / 255,
        do_normalize: true,
        image_mean: [0.5, 0.5, 0.5],
        image_std: [0.5, 0.5, 0.5],
    },
};

const TEMPLATE =
    "{{ '<s>' }}{% for m in messages %}{{ ' <' + m['role'] + '> ' }}{% for p in m['content'] %}" +
    "{{ '<image> ' if p['type'] == 'image' else p['text'] }}{% endfor %}{% endfor %}{{ ' <assistant>' }}";

export function safetensors(tensors, metadata = {}) {
    const header = { __metadata__: metadata };
    const parts = [];
    let at = 0;
    for (const [name, [values, shape]] of Object.entries(tensors)) {
        const bytes = Buffer.from(Float32Array.from(values).buffer);
        header[name] = { dtype: "F32", shape, data_offsets: [at, (at += bytes.length)] };
        parts.push(bytes);
    }
    const text = Buffer.from(JSON.stringify(header));
    const length = Buffer.alloc(8);
    length.writeBigUInt64LE(BigInt(text.length));
    return new Uint8Array(Buffer.concat([length, text, ...parts]));
}

export function coefficients(changes = {}) {
    const facts = {
        layer_indices: [1],
        scope: "last",
        model_type: "llava",
        config_sha256: "c",
        tensor_sha256: { w: "1" },
        ...changes,
    };
    const tensors = {
        head_scale: [
            [0.5, 1.5],
            [1, HEADS],
        ],
        mlp_scale: [[1.25], [1]],
    };
    return safetensors(tensors, { scale_coefficients: JSON.stringify(facts) });
}

const hex = (bytes) => createHash("sha256").update(bytes).digest("hex");
const bytesOf = (content) =>
    content instanceof Uint8Array
        ? content
        : Buffer.from(typeof content === "string" ? content : JSON.stringify(content));

/** Python's `json.dumps(sort_keys=True, indent=2)` of plain values, with its own hash. */
export function sealed(table) {
    const sorted = (value) =>
        value && typeof value === "object" && !Array.isArray(value)
            ? Object.fromEntries(
                  Object.keys(value)
                      .sort()
                      .map((key) => [key, sorted(value[key])]),
              )
            : value;
    const text = (value) => `${JSON.stringify(sorted(value), null, 2)}\n`;
    return Buffer.from(text({ ...table, manifest_sha256: hex(text(table)) }));
}

/** The files of a package; `changes` replace files, `facts` the manifest's values. */
export function packageFiles(changes = {}, facts = {}) {
    const golden = (strength, index) => ({
        name: `case ${index}`,
        images: [],
        prompt: "what is it",
        input_ids: [1, 3, 8, 9, 10, 4],
        tokens: [6],
        answer: strength === 1 ? "left" : null,
        strength,
        pixels: null,
    });
    const contents = {
        "decoder.onnx": "decoder",
        "vision.onnx": "vision",
        "embedding.onnx": "embedding",
        "scale.safetensors": coefficients(),
        "tokenizer.json": TOKENIZER,
        "tokenizer_config.json": { bos_token: "<s>", eos_token: "</s>", image_token: "<image>" },
        "chat_template.jinja": TEMPLATE,
        "processor_config.json": PROCESSOR,
        "runtime.json": {
            schema: 2,
            fold: "gate",
            scope: "last",
            eos_token_ids: [2],
            generation: {},
            graphs: Object.fromEntries(
                ["decoder", "vision", "embedding"].map((role) => [
                    role,
                    { file: `${role}.onnx`, size: 1, data: [] },
                ]),
            ),
        },
        "selftest/cases.json": {
            schema: 2,
            tolerance: 0.01,
            gate_response: [0.5, 1.5],
            cases: [1, 0, 0.5].map(golden),
        },
        "selftest/expected.safetensors": safetensors(
            Object.fromEntries(
                [1, 0, 0.5].map((strength, index) => [
                    String(index),
                    [
                        [...logitsOf(6, strength), ...logitsOf(2, strength)],
                        [2, WORDS.length],
                    ],
                ]),
            ),
        ),
        ...changes,
    };
    const files = new Map(Object.entries(contents).map(([name, content]) => [name, bytesOf(content)]));
    const table = {
        schema: 2,
        backend: "onnxruntime",
        name: "tiny",
        model_type: "llava",
        generic: false,
        target: "cpu",
        fold: "gate",
        precision: "float32",
        context_length: 16,
        image_token_id: ID["<image>"],
        coefficients: "scale.safetensors",
        extras: {},
        decoder: { num_layers: LAYERS, num_heads: HEADS, hidden_size: HIDDEN },
        files: Object.fromEntries(
            [...files].map(([name, bytes]) => [name, { size: bytes.length, sha256: hex(bytes) }]),
        ),
        ...facts,
    };
    return files.set("manifest.json", sealed(table));
}

export const packageSource = (changes, facts) => filesSource(packageFiles(changes, facts), "tiny");

/** Logits that name the next token, larger the stronger the scalars act: by how far they are from ones. */
function logitsOf(token, strength) {
    const logits = new Float32Array(WORDS.length).fill(0.1);
    logits[token] = 1 + strength;
    logits[0] = 0.5 * strength;
    return logits;
}

class FakeTensor {
    location = "cpu";
    constructor(type, data, dims) {
        Object.assign(this, { type, data, dims });
    }
    dispose() {
        this.location = "none";
    }
}

const DECODER = ["inputs_embeds", "attention_mask", "position_ids", "gate", "attn_scale", "mlp_scale"];
const CACHE = [0, 1].flatMap((layer) => ["key", "value"].map((part) => `past_key_values.${layer}.${part}`));

/**
 * A runtime: the decoder says "left" after a prompt and then ends, or goes on for ever where `endless`; `dropped` are
 * inputs that it does not know; `failing` names the graph that throws, `saying` what, as it is loaded or as it `runs`.
 */
export function fakeOrt({
    dropped = [],
    endless = false,
    ignoring = false,
    told = [],
    failing = null,
    saying = "",
    runs = false,
} = {}) {
    const float = (shape) => ({ isTensor: true, type: "float32", shape });
    const run = {
        decoder(feeds) {
            told.push(feeds);
            const scale = ignoring ? 1.5 : feeds.attn_scale.data[3];
            const tokens = feeds.gate.data.length;
            const token = tokens > 1 || endless ? ID.left : ID["</s>"];
            const present = CACHE.map((name) => [
                name.replace("past_key_values", "present"),
                new FakeTensor("float32", new Float32Array(4), [1, 1, 1, 4]),
            ]);
            const logits = logitsOf(token, (scale - 1) / 0.5);
            return {
                logits: new FakeTensor("float32", logits, [1, 1, logits.length]),
                ...Object.fromEntries(present),
            };
        },
        vision: (feeds) => ({
            image_features: new FakeTensor(
                "float32",
                new Float32Array(4 * feeds.pixel_values.dims[0] * HIDDEN),
                [feeds.pixel_values.dims[0], 4, HIDDEN],
            ),
        }),
        embedding: (feeds) => ({
            inputs_embeds: new FakeTensor("float32", new Float32Array(feeds.input_ids.data.length * HIDDEN), [
                1,
                feeds.input_ids.data.length,
                HIDDEN,
            ]),
        }),
    };
    const inputs = {
        decoder: [...DECODER, ...CACHE].filter((name) => !dropped.includes(name)),
        vision: ["pixel_values"],
        embedding: ["input_ids", "image_features"],
    };
    return {
        Tensor: FakeTensor,
        InferenceSession: {
            async create(bytes) {
                const role = Buffer.from(bytes).toString();
                const fail = () => {
                    throw new Error(saying);
                };
                if (failing === role && !runs) fail();
                return {
                    inputNames: inputs[role],
                    inputMetadata: inputs[role].map((name) => ({ name, ...float(["batch", 1, "past", 4]) })),
                    run: async (feeds) => (failing === role ? fail() : run[role](feeds)),
                    release: async () => {},
                };
            },
        },
    };
}
