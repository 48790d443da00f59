import { Reader } from "./json.js";
import type { Rgb } from "./pictures.js";

/** How bytes become a tower's values: `(byte · factor − mean) / std`, each step in float32. */
export interface Normalization {
    readonly factor: number | null;
    readonly mean: readonly number[] | null;
    readonly std: readonly number[] | null;
}

/** The settings by the names of Hugging Face's image processors. */
export function normalizationOf(settings: Reader): Normalization {
    const normalized = settings.flag("do_normalize", true);
    return {
        factor: settings.flag("do_rescale", true) ? settings.number("rescale_factor", 1 / 255) : null,
        mean: normalized ? settings.numbers("image_mean") : null,
        std: normalized ? settings.numbers("image_std") : null,
    };
}

/** What each of the 256 bytes becomes in each channel: `[3][256]` float32. */
function levels(how: Normalization): Float32Array[] {
    return [0, 1, 2].map((channel) =>
        Float32Array.from({ length: 256 }, (_, byte) => {
            const value = how.factor === null ? byte : Math.fround(byte * how.factor);
            if (how.mean === null || how.std === null) return value;
            return Math.fround(
                Math.fround(value - Math.fround(how.mean[channel]!)) / Math.fround(how.std[channel]!),
            );
        }),
    );
}

/** Pixels channel by channel, `[tiles, 3, height, width]` float32, as NumPy computes them. */
export function normalized(tiles: readonly Rgb[], how: Normalization): Float32Array {
    const table = levels(how);
    const size = tiles.reduce((sum, tile) => sum + tile.data.length, 0);
    const out = new Float32Array(size);
    let at = 0;
    for (const tile of tiles) {
        for (const [channel, level] of table.entries()) {
            for (let from = channel; from < tile.data.length; from += 3) out[at++] = level[tile.data[from]!]!;
        }
    }
    return out;
}

/** For each channel, how far apart two neighbouring bytes come out. */
export function levelSteps(how: Normalization): number[] {
    return [0, 1, 2].map((channel) => (how.factor ?? 1) / (how.std?.[channel] ?? 1));
}

/** The part of a picture; what lies outside it is black. */
export function crop(picture: Rgb, left: number, top: number, width: number, height: number): Rgb {
    const data = new Uint8Array(3 * width * height);
    const first = Math.max(0, left);
    const last = Math.min(picture.width, left + width);
    for (let y = Math.max(0, top); y < Math.min(picture.height, top + height); y++) {
        const row = picture.data.subarray(3 * (y * picture.width + first), 3 * (y * picture.width + last));
        data.set(row, 3 * ((y - top) * width + first - left));
    }
    return { width, height, data };
}

/** The middle of a picture, where smaller with black around it: transformers' `center_crop`. */
export function centreCrop(picture: Rgb, width: number, height: number): Rgb {
    const place = (own: number, wanted: number) =>
        wanted <= own ? Math.floor((own - wanted) / 2) : -Math.ceil((wanted - own) / 2);
    return crop(picture, place(picture.width, width), place(picture.height, height), width, height);
}
