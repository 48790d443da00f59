import type {
    InferenceSession,
    InferenceSessionFactory,
    Tensor,
    TensorConstructor,
} from "onnxruntime-common";

import { ContextFull, UserError } from "./errors.js";
import type { Features, Values } from "./families/rule.js";
import { halves, singles } from "./half.js";
import type { PackageFiles } from "./manifest.js";
import type { Graph, RuntimeFacts } from "./runtime.js";
import type { Scalars } from "./scalars.js";

/** The part of an ONNX Runtime for JavaScript that is used here: onnxruntime-web, -node and -react-native have it. */
export interface Ort {
    readonly InferenceSession: InferenceSessionFactory;
    readonly Tensor: TensorConstructor;
}

/** How a host runs graphs. */
export interface RuntimeOptions {
    /** The host's runtime: `import * as ort from "onnxruntime-web"`. */
    readonly ort: Ort;
    /** Execution providers in order of preference, as `InferenceSession.create` takes them. */
    readonly executionProviders: readonly InferenceSession.ExecutionProviderConfig[];
    /** Threads of the CPU's kernels; the runtime's own choice without. */
    readonly threads?: number;
    /** Whether the cache of keys and values stays in the GPU's memory between steps. */
    readonly cacheOnGpu?: boolean;
}

/** Tokens of a prompt, or one generated token, as the decoder takes them: one row. */
export interface Step {
    /** `[T · D]` float32. */
    readonly embeds: Float32Array;
    /** `[axes][T]`. */
    readonly positions: readonly (readonly number[])[];
    /** Which of the tokens are scaled: `[T]`. */
    readonly gate: Float32Array;
    readonly groups: readonly number[] | null;
    /** Qwen3-VL: what pictures add to the first layers' outputs, `[layers][T · D]`. */
    readonly deepstack: readonly Float32Array[];
}

/** The keys and values of one conversation; `dispose` frees what lies on the GPU. */
export class Cache {
    tokens = 0;
    values: Record<string, Tensor> = {};

    dispose(): void {
        for (const tensor of Object.values(this.values)) if (tensor.location !== "cpu") tensor.dispose();
        this.values = {};
    }
}

/** The inputs of a gated decoder that a runtime must not drop. */
const GATE = ["gate", "attn_scale", "mlp_scale"] as const;

/** The graphs in the order of their opening. */
const ROLES = ["decoder", "embedding", "vision"];

function filesOf(graph: Graph): string[] {
    return [graph.file, ...graph.data];
}

/** The three graphs of a package as sessions of whatever ONNX Runtime the host has registered. */
export class Engine {
    readonly hiddenSize: number;
    readonly gated: boolean;
    readonly #cacheShapes: Map<string, { readonly dims: readonly number[]; readonly half: boolean }>;
    readonly #half: boolean;

    private constructor(
        private readonly decoder: InferenceSession,
        private readonly vision: InferenceSession | null,
        private readonly embedding: InferenceSession,
        private readonly files: PackageFiles,
        private readonly tensors: Tensors,
    ) {
        const { manifest } = files;
        this.hiddenSize = manifest.hiddenSize;
        this.gated = manifest.fold === "gate";
        const missing = GATE.filter((name) => !decoder.inputNames.includes(name));
        if (this.gated && missing.length) {
            throw new UserError(
                `the decoder of ${files.source.name} takes no ${missing.join(", ")} in this runtime, which would answer as it pleases: export the package again`,
            );
        }
        this.#half = typeOf(decoder, "inputs_embeds") === "float16";
        this.#cacheShapes = cacheShapes(decoder);
    }

    /**
     * Opens the graphs.
     *
     * @throws UserError where the runtime refuses a graph, or would drop the gate's inputs.
     */
    static async open(files: PackageFiles, facts: RuntimeFacts, options: RuntimeOptions): Promise<Engine> {
        if (facts.fold === "two-phase") {
            throw new UserError(
                `${files.source.name} is a two-phase package, which is not run here: export it with --fold gate`,
            );
        }
        const graphs = ROLES.flatMap((role) => facts.graphs.get(role) ?? []);
        const session = async (role: string) => {
            const graph = facts.graphs.get(role);
            if (!graph)
                throw new UserError(`${files.source.name} has no ${role} graph: export the package again`);
            const opened = await openSession(files, graph, options, role === "decoder");
            // A tied table lies in the decoder's file, which is read once and kept until the last graph has it.
            const later = new Set(graphs.slice(graphs.indexOf(graph) + 1).flatMap(filesOf));
            files.release(filesOf(graph).filter((file) => !later.has(file)));
            return opened;
        };
        const decoder = await session("decoder");
        const embedding = await session("embedding");
        const vision = facts.graphs.has("vision") ? await session("vision") : null;
        return new Engine(decoder, vision, embedding, files, new Tensors(options.ort));
    }

    /** What the vision graph says of prepared pictures, output by output, float32. */
    async look(feeds: Readonly<Record<string, Values>>): Promise<Record<string, Features>> {
        if (!this.vision) throw new UserError(`${this.files.source.name} takes no pictures: ask without one`);
        const inputs = Object.entries(feeds).map(([name, { data, dims }]) => [
            name,
            this.tensors.of(data, dims),
        ]);
        const outputs = await this.#run(this.vision, Object.fromEntries(inputs));
        const found = Object.entries(outputs).map(([name, tensor]) => [
            name,
            { data: floats(tensor), dims: tensor.dims },
        ]);
        return Object.fromEntries(found);
    }

    /** Token ids as rows `[T · D]`, the pictures' rows in the places of image tokens. */
    async embed(ids: readonly number[], rows: Float32Array): Promise<Float32Array> {
        const feeds = {
            input_ids: this.tensors.longs(ids, [1, ids.length]),
            image_features: this.tensors.of(rows, [rows.length / this.hiddenSize, this.hiddenSize]),
        };
        const outputs = await this.#run(this.embedding, feeds);
        return floats(Object.values(outputs)[0]!);
    }

    /**
     * Runs the decoder over more tokens of one row; the logits `[V]` after the last.
     *
     * @throws ContextFull where the cache has no room for them.
     */
    async forward(cache: Cache, step: Step, scalars: Scalars | null): Promise<Float32Array> {
        const { manifest } = this.files;
        const tokens = step.gate.length;
        const total = cache.tokens + tokens;
        if (total > manifest.contextLength) {
            throw new ContextFull(
                `the conversation has ${total} tokens, and this package's context has ${manifest.contextLength}: ask less at once`,
            );
        }
        const outputs = await this.#run(this.decoder, this.#feeds(cache, step, scalars, total));
        cache.dispose();
        for (const name of this.#cacheShapes.keys()) cache.values[name] = outputs[presentOf(name)]!;
        cache.tokens = total;
        const logits = floats(outputs["logits"]!);
        return logits.slice(logits.length - outputs["logits"]!.dims.at(-1)!);
    }

    #feeds(cache: Cache, step: Step, scalars: Scalars | null, total: number): Record<string, Tensor> {
        const { layers, heads } = this.files.manifest;
        const { tensors } = this;
        const tokens = step.gate.length;
        const wide = [1, tokens, this.hiddenSize];
        const several = step.positions.length > 1;
        const all: Record<string, () => Tensor> = {
            inputs_embeds: () => tensors.floats(step.embeds, wide, this.#half),
            attention_mask: () => tensors.of(new BigInt64Array(total).fill(1n), [1, total]),
            position_ids: () => tensors.longs(step.positions.flat(), [...(several ? [3] : []), 1, tokens]),
            gate: () => tensors.of(step.gate, [1, tokens]),
            attn_scale: () => tensors.of(scalars!.attn, [layers, heads]),
            mlp_scale: () => tensors.of(scalars!.mlp, [layers]),
            attention_group: () => tensors.longs(step.groups ?? Array.from(step.gate, () => -1), [1, tokens]),
        };
        const feeds: Record<string, Tensor> = {};
        for (const name of this.decoder.inputNames) {
            const shape = this.#cacheShapes.get(name);
            if (shape) {
                feeds[name] =
                    cache.values[name] ?? tensors.floats(new Float32Array(0), shape.dims, shape.half);
            } else if (name.startsWith("deepstack.")) {
                const layer = Number(name.slice("deepstack.".length));
                feeds[name] = tensors.floats(
                    step.deepstack[layer] ?? new Float32Array(step.embeds.length),
                    wide,
                    this.#half,
                );
            } else if (all[name]) {
                feeds[name] = all[name]();
            } else {
                throw new UserError(
                    `the decoder of ${this.files.source.name} asks for ${name}, which this version does not know: update it`,
                );
            }
        }
        return feeds;
    }

    async #run(session: InferenceSession, feeds: Record<string, Tensor>): Promise<Record<string, Tensor>> {
        try {
            return (await session.run(feeds)) as Record<string, Tensor>;
        } catch (error) {
            throw runtimeRefusal(error, `${this.files.source.name} cannot be run`);
        }
    }

    /** Ends the sessions. */
    async release(): Promise<void> {
        for (const session of [this.decoder, this.vision, this.embedding]) await session?.release();
    }
}

async function openSession(
    files: PackageFiles,
    graph: Graph,
    options: RuntimeOptions,
    isDecoder: boolean,
): Promise<InferenceSession> {
    const bytes = await files.bytes(graph.file);
    const externalData: { path: string; data: Uint8Array }[] = [];
    for (const file of graph.data)
        externalData.push({ path: file.split("/").at(-1)!, data: await files.bytes(file) });
    const settings: InferenceSession.SessionOptions = {
        executionProviders: options.executionProviders,
        logSeverityLevel: 3,
        ...(options.threads ? { intraOpNumThreads: options.threads } : {}),
        ...(externalData.length ? { externalData } : {}),
    };
    try {
        return await options.ort.InferenceSession.create(bytes, {
            ...settings,
            ...(isDecoder && options.cacheOnGpu ? { preferredOutputLocation: gpuPlaces(files) } : {}),
        });
    } catch (error) {
        throw runtimeRefusal(error, `ONNX Runtime cannot load ${graph.file} of ${files.source.name}`);
    }
}

/** Logits come back to the host; what only the next step reads stays where it is. */
function gpuPlaces(files: PackageFiles): Record<string, Tensor.DataLocation> {
    const places: Record<string, Tensor.DataLocation> = { logits: "cpu" };
    for (let layer = 0; layer < files.manifest.layers; layer++) {
        for (const part of ["key", "value"]) places[`present.${layer}.${part}`] = "gpu-buffer";
    }
    return places;
}

/** How runtimes and hosts say that memory ran out: ONNX Runtime on every provider, WebAssembly, V8. */
const NO_MEMORY =
    /out of memory|bad_alloc|allocation failed|memory access|(could not|failed to|cannot) allocate|invalid (typed )?array( buffer)? length/i;

function runtimeRefusal(error: unknown, what: string): UserError {
    const reason = String(error instanceof Error ? error.message : error).split("\n")[0]!;
    if (NO_MEMORY.test(reason)) {
        return new UserError(
            `${what}: there is not enough memory on this device; close other pages and apps, or take a smaller package`,
        );
    }
    return new UserError(`${what} (${reason}): load the package again, or update the runtime`);
}

function metadataOf(session: InferenceSession, name: string): InferenceSession.TensorValueMetadata | null {
    const found = session.inputMetadata.find((value) => value.name === name);
    return found?.isTensor ? found : null;
}

function typeOf(session: InferenceSession, name: string): Tensor.Type | undefined {
    return metadataOf(session, name)?.type;
}

function cacheShapes(decoder: InferenceSession): Map<string, { dims: readonly number[]; half: boolean }> {
    const shapes = new Map<string, { dims: readonly number[]; half: boolean }>();
    for (const name of decoder.inputNames) {
        if (!name.startsWith("past_key_values.")) continue;
        const { shape, type } = metadataOf(decoder, name)!;
        shapes.set(name, { dims: [1, Number(shape[1]), 0, Number(shape[3])], half: type === "float16" });
    }
    return shapes;
}

function presentOf(name: string): string {
    return name.replace("past_key_values", "present");
}

function floats(tensor: Tensor): Float32Array {
    return tensor.type === "float16" ? singles(tensor.data as Uint16Array) : (tensor.data as Float32Array);
}

/** Makes tensors of the host's runtime. */
class Tensors {
    constructor(private readonly ort: Ort) {}

    of(data: Float32Array | Int32Array | BigInt64Array, dims: readonly number[]): Tensor {
        const type =
            data instanceof Float32Array ? "float32" : data instanceof Int32Array ? "int32" : "int64";
        return new this.ort.Tensor(type, data as Float32Array, dims) as Tensor;
    }

    /** float32 values, in float16 where a graph wants them so. */
    floats(values: Float32Array, dims: readonly number[], half: boolean): Tensor {
        return half
            ? (new this.ort.Tensor("float16", halves(values), dims) as Tensor)
            : this.of(values, dims);
    }

    longs(values: readonly number[], dims: readonly number[]): Tensor {
        return this.of(BigInt64Array.from(values, BigInt), dims);
    }
}
