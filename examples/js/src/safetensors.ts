import { UserError } from "./errors.js";
import { isObject, parseObject, type JsonObject } from "./json.js";

/** A float32 tensor of a safetensors file. */
export interface StoredTensor {
    readonly data: Float32Array;
    readonly dims: readonly number[];
}

/** A safetensors file: its float32 tensors by name, others passed over, and its metadata. */
export interface Safetensors {
    readonly tensors: ReadonlyMap<string, StoredTensor>;
    readonly metadata: JsonObject;
}

/** @throws UserError where `bytes` are no safetensors file. */
export function readSafetensors(bytes: Uint8Array, file: string): Safetensors {
    const damaged = new UserError(`${file} is no whole safetensors file: export the package again`);
    if (bytes.length < 8) throw damaged;
    const length = Number(new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true));
    if (length > bytes.length - 8) throw damaged;
    const header = parseObject(bytes.subarray(8, 8 + length), file);
    const tensors = new Map<string, StoredTensor>();
    for (const [name, entry] of Object.entries(header)) {
        if (name === "__metadata__") continue;
        if (!isObject(entry)) throw damaged;
        if (entry["dtype"] !== "F32") continue;
        const dims = entry["shape"] as readonly number[];
        const [start, end] = entry["data_offsets"] as readonly [number, number];
        const size = dims.reduce((product, axis) => product * axis, 4);
        if (end - start !== size || 8 + length + end > bytes.length) throw damaged;
        const aligned = new Uint8Array(size); // Node's Buffer.slice would be a view
        aligned.set(bytes.subarray(8 + length + start, 8 + length + end));
        tensors.set(name, { data: new Float32Array(aligned.buffer), dims });
    }
    const metadata = header["__metadata__"];
    return { tensors, metadata: isObject(metadata) ? metadata : {} };
}
