import type { Reader } from "../json.js";
import type { Rgb } from "../pictures.js";

/** Values of a tensor with their shape. */
export interface Values {
    readonly data: Float32Array | Int32Array;
    readonly dims: readonly number[];
}

/** The output of a vision graph, float32. */
export interface Features {
    readonly data: Float32Array;
    readonly dims: readonly number[];
}

/** Rows and columns, of patches or of tokens. */
export interface Grid {
    readonly rows: number;
    readonly columns: number;
}

/** Pixel values as Hugging Face's processor lays them out. */
export interface PixelValues {
    readonly data: Float32Array;
    /** How many values of one channel follow one another, before the next of the three begins. */
    readonly plane: number;
    /** For each channel, how far apart two neighbouring 8-bit levels are. */
    readonly step: readonly number[];
}

/** The pictures of one prompt, ready for the vision graph. */
export interface Prepared {
    readonly pixels: PixelValues;
    /** The vision graph's inputs by name. */
    readonly feeds: Readonly<Record<string, Values>>;
    /** For each picture, the text that stands in its placeholder's place. */
    readonly words: readonly string[];
    /** For each picture, its grid of tokens, where positions follow it. */
    readonly grids: readonly Grid[];
    /** The graph's rows `[image tokens, D]` in the order of the prompt's image tokens. */
    pack(features: Features): Float32Array;
}

/** How pictures and positions enter one family of models. */
export interface ImageRule {
    /** The word of the chat template that stands for one picture. */
    readonly placeholder: string;
    /** Words that a question cannot hold, the placeholder among them. */
    readonly reserved: readonly string[];
    prepare(pictures: readonly Rgb[]): Prepared;
    /** Position ids of a prompt, `[axes][T]`: one axis, or three for time, row and column. */
    positions(ids: readonly number[], grids: readonly Grid[]): readonly (readonly number[])[];
    /** The group in which each token of a prompt sees the others, −1 for none; null where no graph asks. */
    groups(ids: readonly number[]): readonly number[] | null;
}

/** What a rule is made from: a package's own files. */
export interface RuleInputs {
    readonly modelType: string;
    /** `processor_config.json`. */
    readonly processor: Reader;
    /** The image processor's settings: its part of that file, or `preprocessor_config.json`. */
    readonly images: Reader;
    /** `tokenizer_config.json`. */
    readonly tokenizer: Reader;
    /** The manifest's `extras`. */
    readonly extras: Reader;
    readonly imageTokenId: number;
}

/** Rows of all tiles, one after the other. */
export function allRows(features: Features): Float32Array {
    return features.data;
}

/** One axis of positions that counts the tokens. */
export function counted(ids: readonly number[]): number[][] {
    return [ids.map((_, place) => place)];
}

/** No token sees a later one. */
export function causal(): null {
    return null;
}

/** `round` as Python has it: halves go to the even neighbour. */
export function roundHalfEven(value: number): number {
    const below = Math.floor(value);
    const part = value - below;
    return part > 0.5 || (part === 0.5 && below % 2 !== 0) ? below + 1 : below;
}

/** A word by which a tokenizer's settings call a token: a plain text, or an object with its `content`. */
export function wordOf(tokenizer: Reader, name: string, otherwise?: string): string {
    const nested =
        tokenizer.values["extra_special_tokens"] ?? tokenizer.values["model_specific_special_tokens"];
    const own =
        tokenizer.values[name] ?? (nested as Record<string, unknown> | undefined)?.[name] ?? otherwise;
    if (typeof own === "string") return own;
    const content = (own as { content?: unknown } | undefined)?.content;
    if (typeof content === "string") return content;
    throw tokenizer.wrong(name, "a word");
}
