/** Loads one build of ONNX Runtime: that for WebGPU where the device has it, the smaller one for the processor else. */
import { UserError, type Ort } from "@scale-export/core";

import type { Choice, Loading, Runtime } from "../protocol.js";

/** More threads than that slow small graphs down. */
const MOST_THREADS = 4;

/** What is used of onnxruntime-web beyond what the core uses. */
interface Build extends Ort {
    readonly env: {
        readonly versions: { readonly web?: string };
        readonly wasm: {
            numThreads?: number;
            wasmPaths?: unknown;
            wasmBinary?: ArrayBufferLike | Uint8Array;
        };
    };
}

export interface LoadedRuntime extends Runtime {
    readonly ort: Ort;
}

/** @throws UserError where the runtime's file cannot be fetched. */
export async function loadRuntime(
    choice: Choice,
    progress: (progress: Loading) => void,
): Promise<LoadedRuntime> {
    const gpu = choice === "auto" && (await hasGpu());
    const { ort, glue, wasm } = await (gpu ? import("./webgpu.js") : import("./wasm.js"));
    const build: Build = ort;
    const threads = self.crossOriginIsolated ? Math.min(MOST_THREADS, navigator.hardwareConcurrency) : 1;
    build.env.wasm.numThreads = threads;
    build.env.wasm.wasmPaths = { mjs: new URL(glue, self.location.href).href };
    build.env.wasm.wasmBinary = await fetched(wasm, progress);
    return {
        ort: build,
        name: `onnxruntime-web ${build.env.versions.web ?? ""}`.trim(),
        provider: gpu ? "webgpu" : "wasm",
        threads,
    };
}

async function hasGpu(): Promise<boolean> {
    return navigator.gpu !== undefined && (await navigator.gpu.requestAdapter().catch(() => null)) !== null;
}

async function fetched(address: string, progress: (progress: Loading) => void): Promise<Uint8Array> {
    const answer = await fetch(address).catch(() => null);
    if (!answer?.ok || !answer.body) {
        throw new UserError(
            "ONNX Runtime cannot be fetched: connect to the network once, so that this device keeps it",
        );
    }
    const packed = answer.headers.has("content-encoding");
    const total = packed ? 0 : Number(answer.headers.get("content-length") ?? 0);
    let bytes = 0;
    const counted = new TransformStream<Uint8Array, Uint8Array>({
        transform(piece, out) {
            bytes += piece.length;
            progress({ what: "runtime", bytes, total });
            out.enqueue(piece);
        },
    });
    return new Uint8Array(await new Response(answer.body.pipeThrough(counted)).arrayBuffer());
}
