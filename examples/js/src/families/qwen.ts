import { UserError } from "../errors.js";
import type { Reader } from "../json.js";
import type { Rgb } from "../pictures.js";
import { levelSteps, normalizationOf, normalized } from "../pixels.js";
import { resize } from "../resample.js";
import {
    causal,
    roundHalfEven,
    wordOf,
    type Features,
    type Grid,
    type ImageRule,
    type Prepared,
    type RuleInputs,
    type Values,
} from "./rule.js";

/** One picture's inputs of the tower, `[places, patches of a place, width]` each. */
type Places = Readonly<Record<string, { readonly values: Values["data"]; readonly dims: readonly number[] }>>;

/** A rotary frequency of an axis, and what else a package says of its tower. */
interface Tower {
    readonly merge: number;
    readonly frequencies: readonly (readonly number[])[];
    /** Qwen2.5-VL: tokens on a window's side. */
    readonly window: number | null;
    /** Qwen3-VL: learned positions on the table's side. */
    readonly learnedSide: number | null;
}

/** The size to whole squares of patches, its pixels within bounds, its shape as near as can be. */
function fittingSize(
    picture: Rgb,
    factor: number,
    least: number,
    most: number,
): { width: number; height: number } {
    const { width, height } = picture;
    if (Math.max(width, height) / Math.min(width, height) > 200) {
        throw new UserError(
            `the model's processor takes no picture as narrow as ${width} × ${height} pixels: crop it`,
        );
    }
    const near = (edge: number) => roundHalfEven(edge / factor) * factor;
    let fitted = { width: near(width), height: near(height) };
    if (fitted.width * fitted.height > most) {
        const beta = Math.sqrt((height * width) / most);
        const below = (edge: number) => Math.max(factor, Math.floor(edge / beta / factor) * factor);
        fitted = { width: below(width), height: below(height) };
    } else if (fitted.width * fitted.height < least) {
        const beta = Math.sqrt(least / (height * width));
        const above = (edge: number) => Math.ceil((edge * beta) / factor) * factor;
        fitted = { width: above(width), height: above(height) };
    }
    return fitted;
}

/** Every place of a grid, square by square of `side × side`, row by row inside and outside. */
function squares(grid: Grid, side: number): Grid[] {
    const found: Grid[] = [];
    for (let top = 0; top < grid.rows; top += side) {
        for (let left = 0; left < grid.columns; left += side) {
            for (let inside = 0; inside < side * side; inside++) {
                found.push({ rows: top + Math.floor(inside / side), columns: left + (inside % side) });
            }
        }
    }
    return found;
}

/** The patches of normalized pixels `[3, height, width]`, each repeated for the frames that a picture has not. */
function patchify(
    pixels: Float32Array,
    grid: Grid,
    order: readonly Grid[],
    patch: number,
    frames: number,
): Float32Array {
    const width = grid.columns * patch;
    const plane = grid.rows * patch * width;
    const out = new Float32Array(order.length * 3 * frames * patch * patch);
    let at = 0;
    for (const place of order) {
        const corner = place.rows * patch * width + place.columns * patch;
        for (let channel = 0; channel < 3; channel++) {
            for (let frame = 0; frame < frames; frame++) {
                for (let row = 0; row < patch; row++, at += patch) {
                    const from = channel * plane + corner + row * width;
                    out.set(pixels.subarray(from, from + patch), at);
                }
            }
        }
    }
    return out;
}

/** Cosines and sines of each patch's row, then of its column: `[patches, width]`. */
function turns(
    order: readonly Grid[],
    frequencies: readonly (readonly number[])[],
): Record<"cos" | "sin", Float32Array> {
    const [rows, columns] = [frequencies[0]!, frequencies[1]!];
    const angles = order.flatMap((place) => [
        ...rows.map((frequency) => Math.fround(place.rows * Math.fround(frequency))),
        ...columns.map((frequency) => Math.fround(place.columns * Math.fround(frequency))),
    ]);
    return { cos: Float32Array.from(angles, Math.cos), sin: Float32Array.from(angles, Math.sin) };
}

/** Which two entries of a row of `side` lie around each of `length` places, and their shares, in float32. */
function between(length: number, side: number): { taps: [number, number]; shares: [number, number] }[] {
    return Array.from({ length }, (_, place) => {
        const at = Math.fround(Math.fround(place * (side - 1)) / Math.max(length - 1, 1));
        const first = Math.floor(at);
        const after = Math.fround(at - first);
        return {
            taps: [Math.min(first, side - 1), Math.min(first + 1, side - 1)],
            shares: [Math.fround(1 - after), after],
        };
    });
}

/** Which learned positions each patch mixes, and how much of each: `[patches, 4]`. */
function learned(
    grid: Grid,
    order: readonly Grid[],
    side: number,
): { taps: Int32Array; shares: Float32Array } {
    const rows = between(grid.rows, side);
    const columns = between(grid.columns, side);
    const pairs = [
        [0, 0],
        [0, 1],
        [1, 0],
        [1, 1],
    ] as const;
    const mixed = <T>(mix: (row: (typeof rows)[0], column: (typeof rows)[0], a: 0 | 1, b: 0 | 1) => T) =>
        order.flatMap((place) =>
            pairs.map(([a, b]) => mix(rows[place.rows]!, columns[place.columns]!, a, b)),
        );
    return {
        taps: Int32Array.from(mixed((row, column, a, b) => row.taps[a] * side + column.taps[b])),
        shares: Float32Array.from(mixed((row, column, a, b) => row.shares[a] * column.shares[b])),
    };
}

/** Tokens in the order of their windows, and each token's window from 1, in reading order. */
function byWindow(tokens: Grid, side: number): { order: number[]; window: number[] } {
    const across = Math.ceil(tokens.columns / side);
    const window = Array.from({ length: tokens.rows * tokens.columns }, (_, token) => {
        const [row, column] = [Math.floor(token / tokens.columns), token % tokens.columns];
        return Math.floor(row / side) * across + Math.floor(column / side) + 1;
    });
    const order = window.map((_, token) => token).sort((a, b) => window[a]! - window[b]! || a - b);
    return { order, window };
}

/** Rows of `width` values in another order, filled up with zeros to whole groups of `group` rows. */
function inPlaces<T extends Values["data"]>(
    values: T,
    width: number,
    order: readonly number[],
    group: number,
): T {
    const make = values.constructor as new (length: number) => T;
    const out = new make(Math.ceil(order.length / group) * group * width);
    order.forEach((from, to) => out.set(values.subarray(from * width, (from + 1) * width), to * width));
    return out;
}

/** One picture's patches as the processor lays them, its inputs of the tower, and its grid of tokens. */
interface Picture {
    readonly patches: Float32Array;
    readonly places: Places;
    readonly tokens: Grid;
}

function placesOf(picture: Rgb, { images }: RuleInputs, tower: Tower): Picture {
    const patch = images.count("patch_size", 14, 1);
    const square = tower.merge ** 2;
    const size = images.has("size") ? images.object("size") : null;
    const bound = (edge: string, old: string, otherwise: number) =>
        images.has(old) ? images.count(old) : (size?.count(edge) ?? otherwise);
    const { width, height } = fittingSize(
        picture,
        patch * images.count("merge_size", 2, 1),
        bound("shortest_edge", "min_pixels", 56 * 56),
        bound("longest_edge", "max_pixels", 28 * 28 * 1280),
    );
    const grid = { rows: height / patch, columns: width / patch };
    const tokens = { rows: grid.rows / tower.merge, columns: grid.columns / tower.merge };
    const order = squares(grid, tower.merge);
    const resized = resize(picture, width, height, images.count("resample", 3));
    const pixels = normalized([resized], normalizationOf(withClipValues(images)));
    const patches = patchify(pixels, grid, order, patch, images.count("temporal_patch_size", 2, 1));
    const whole: Record<string, Values["data"]> = { patches, ...turns(order, tower.frequencies) };
    if (tower.learnedSide !== null) Object.assign(whole, learned(grid, order, tower.learnedSide));
    const count = tokens.rows * tokens.columns;
    const group = tower.window === null ? 1 : tower.window ** 2;
    const windows = tower.window === null ? null : byWindow(tokens, tower.window);
    if (windows)
        whole["window"] = Int32Array.from(
            { length: count * square },
            (_, at) => windows.window[Math.floor(at / square)]!,
        );
    const byPlace = windows?.order ?? Array.from({ length: count }, (_, token) => token);
    const places: Record<string, Places[string]> = {};
    for (const [name, values] of Object.entries(whole)) {
        const width = values.length / count;
        const wide = width / square;
        const put = inPlaces(values, width, byPlace, group);
        const dims = [put.length / width / group, group * square, ...(name === "window" ? [] : [wide])];
        places[name] = { values: put, dims };
    }
    if (!windows) places["valid"] = { values: new Float32Array(count).fill(1), dims: [count] };
    return { patches, places, tokens };
}

function withClipValues(images: Reader): Reader {
    const clip = {
        image_mean: [0.48145466, 0.4578275, 0.40821073],
        image_std: [0.26862954, 0.26130258, 0.27577711],
    };
    return Object.assign(Object.create(images), { values: { ...clip, ...images.values } }) as Reader;
}

function joined(parts: readonly Float32Array[]): Float32Array {
    const whole = new Float32Array(parts.reduce((sum, part) => sum + part.length, 0));
    let at = 0;
    for (const part of parts) {
        whole.set(part, at);
        at += part.length;
    }
    return whole;
}

/** Pictures side by side, zeros after the last place of the smaller ones. */
function stacked(pictures: readonly Places[]): Record<string, Values> {
    const names = Object.keys(pictures[0]!);
    return Object.fromEntries(
        names.map((name) => {
            const most = Math.max(...pictures.map((picture) => picture[name]!.dims[0]!));
            const [, ...rest] = pictures[0]![name]!.dims;
            const width = rest.reduce((product, length) => product * length, 1);
            const make = pictures[0]![name]!.values.constructor as new (length: number) => Values["data"];
            const data = new make(pictures.length * most * width);
            pictures.forEach((picture, index) =>
                data.set(picture[name]!.values as never, index * most * width),
            );
            return [name, { data, dims: [pictures.length, most, ...rest] }];
        }),
    );
}

/** Rows of the tower's output without what fills up, tokens in reading order. */
function unpacked(features: Features, grids: readonly Grid[], window: number | null): Float32Array {
    const width = features.dims.at(-1)!;
    const perPicture = features.data.length / grids.length;
    const total = grids.reduce((sum, grid) => sum + grid.rows * grid.columns, 0);
    const out = new Float32Array(total * width);
    let start = 0;
    grids.forEach((grid, picture) => {
        const count = grid.rows * grid.columns;
        const order = window === null ? null : byWindow(grid, window).order;
        for (let row = 0; row < count; row++) {
            const from = picture * perPicture + row * width;
            out.set(features.data.subarray(from, from + width), (start + (order?.[row] ?? row)) * width);
        }
        start += count;
    });
    return out;
}

/** Qwen2-VL, Qwen2.5-VL and Qwen3-VL: a picture's own grid of patches, positions by time, row and column. */
export function qwen(inputs: RuleInputs): ImageRule {
    const { extras, tokenizer, imageTokenId, modelType } = inputs;
    const image = wordOf(tokenizer, "image_token", "<|image_pad|>");
    const tower: Tower = {
        merge: extras.count("merge", undefined, 1),
        frequencies: extras.table("frequencies"),
        window: modelType === "qwen2_5_vl" ? extras.count("window", undefined, 1) : null,
        learnedSide: modelType === "qwen3_vl" ? extras.count("learned_side", undefined, 1) : null,
    };
    return {
        placeholder: image,
        reserved: [
            image,
            wordOf(tokenizer, "video_token", "<|video_pad|>"),
            wordOf(tokenizer, "vision_start_token", "<|vision_start|>"),
            wordOf(tokenizer, "vision_end_token", "<|vision_end|>"),
        ],
        prepare(pictures): Prepared {
            const all = pictures.map((picture) => placesOf(picture, inputs, tower));
            const grids = all.map(({ tokens }) => tokens);
            const how = normalizationOf(withClipValues(inputs.images));
            const frames = inputs.images.count("temporal_patch_size", 2, 1);
            return {
                pixels: {
                    data: joined(all.map(({ patches }) => patches)),
                    plane: frames * inputs.images.count("patch_size", 14, 1) ** 2,
                    step: levelSteps(how),
                },
                feeds: stacked(all.map(({ places }) => places)),
                words: grids.map(({ rows, columns }) => image.repeat(rows * columns)),
                grids,
                pack: (features) => unpacked(features, grids, tower.window),
            };
        },
        positions: (ids, grids) => placedTokens(ids, grids, imageTokenId),
        groups: causal,
    };
}

function placedTokens(ids: readonly number[], grids: readonly Grid[], imageTokenId: number): number[][] {
    const axes: [number[], number[], number[]] = [[], [], []];
    const put = (time: number, row: number, column: number) => {
        axes[0].push(time);
        axes[1].push(row);
        axes[2].push(column);
    };
    let next = 0;
    for (const { rows, columns } of grids) {
        for (let token = axes[0].length; ids[token] !== imageTokenId; token++, next++) put(next, next, next);
        for (let row = 0; row < rows; row++) {
            for (let column = 0; column < columns; column++) put(next, next + row, next + column);
        }
        next += Math.max(rows, columns);
    }
    for (let token = axes[0].length; token < ids.length; token++, next++) put(next, next, next);
    return axes;
}
