import { UserError } from "./errors.js";
import { parseObject, Reader } from "./json.js";
import type { Manifest } from "./manifest.js";
import { readSafetensors } from "./safetensors.js";

/** ScAle's scalars of every layer: `attn` `[layers · heads]`, `mlp` `[layers]`, float32; ones are the base model. */
export interface Scalars {
    readonly attn: Float32Array;
    readonly mlp: Float32Array;
}

/** A coefficient file (docs/scale.md): the scalars, ones where a layer is not listed, and whose they are. */
export interface Coefficients extends Scalars {
    readonly scope: string;
    readonly modelType: string;
    readonly configSha256: string;
    readonly tensorSha256: Readonly<Record<string, unknown>>;
}

/** @throws UserError where `bytes` are no coefficient file for a decoder of that shape. */
export function readCoefficients(bytes: Uint8Array, manifest: Manifest, file: string): Coefficients {
    const { tensors, metadata } = readSafetensors(bytes, file);
    const text = metadata["scale_coefficients"];
    if (typeof text !== "string") {
        throw new UserError(
            `${file} is no file of ScAle coefficients: give a scale.safetensors that scale-export wrote`,
        );
    }
    const facts = new Reader(parseObject(new TextEncoder().encode(text), file), file);
    const layers = facts.numbers("layer_indices");
    const heads = tensors.get("head_scale");
    const mlps = tensors.get("mlp_scale");
    const fits =
        heads?.dims.length === 2 &&
        heads.dims[0] === layers.length &&
        heads.dims[1] === manifest.heads &&
        mlps?.dims[0] === layers.length &&
        layers.every((layer) => Number.isInteger(layer) && layer >= 0 && layer < manifest.layers);
    if (!heads || !mlps || !fits) {
        throw new UserError(
            `${file} is not for a decoder of ${manifest.layers} layers with ${manifest.heads} heads each: give this model's coefficients`,
        );
    }
    const attn = new Float32Array(manifest.layers * manifest.heads).fill(1);
    const mlp = new Float32Array(manifest.layers).fill(1);
    layers.forEach((layer, row) => {
        attn.set(
            heads.data.subarray(row * manifest.heads, (row + 1) * manifest.heads),
            layer * manifest.heads,
        );
        mlp[layer] = mlps.data[row]!;
    });
    return {
        attn,
        mlp,
        scope: facts.text("scope"),
        modelType: facts.text("model_type"),
        configSha256: facts.text("config_sha256"),
        tensorSha256: facts.object("tensor_sha256", {}).values,
    };
}

/** Refuses scalars of another base model or scope than the package's own. */
export function checkSameBase(own: Coefficients, other: Coefficients): void {
    const differs = Object.keys(own.tensorSha256).find(
        (name) => name in other.tensorSha256 && other.tensorSha256[name] !== own.tensorSha256[name],
    );
    if (own.configSha256 !== other.configSha256 || own.modelType !== other.modelType || differs) {
        throw new UserError(
            `these coefficients belong to another base model than the package's${differs ? ` (${differs} differs)` : ""}: export a package for them`,
        );
    }
    if (own.scope !== other.scope) {
        throw new UserError(
            `these coefficients have scope "${other.scope}", but the package was built for "${own.scope}": export a package for them`,
        );
    }
}

/** `1 + strength · (s − 1)`, in float32 step by step as NumPy computes it: 0 is the base model, 1 ScAle as trained. */
export function strengthened(scalars: Scalars, strength: number): Scalars {
    const part = Math.fround(strength);
    const mixed = (s: number) => Math.fround(1 + Math.fround(part * Math.fround(s - 1)));
    return { attn: scalars.attn.map(mixed), mlp: scalars.mlp.map(mixed) };
}
