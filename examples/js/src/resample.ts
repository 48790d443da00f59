import { UserError } from "./errors.js";
import type { Rgb } from "./pictures.js";

/** A filter of Pillow's `Image.resize`: its weight at a distance, and the distance where it ends. */
interface Filter {
    readonly support: number;
    weight(x: number): number;
}

function sinc(x: number): number {
    return x === 0 ? 1 : Math.sin(x * Math.PI) / (x * Math.PI);
}

const LANCZOS: Filter = { support: 3, weight: (x) => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0) };
const BILINEAR: Filter = { support: 1, weight: (x) => Math.max(0, 1 - Math.abs(x)) };
const BOX: Filter = { support: 0.5, weight: (x) => (x > -0.5 && x <= 0.5 ? 1 : 0) };
const BICUBIC: Filter = {
    support: 2,
    weight(x) {
        const a = -0.5;
        const far = Math.abs(x);
        if (far < 1) return ((a + 2) * far - (a + 3)) * far * far + 1;
        return far < 2 ? (((far - 5) * far + 8) * far - 4) * a : 0;
    },
};
const HAMMING: Filter = {
    support: 1,
    weight(x) {
        if (x === 0) return 1;
        const far = Math.abs(x) * Math.PI;
        return Math.abs(x) >= 1 ? 0 : (Math.sin(far) / far) * (0.54 + 0.46 * Math.cos(far));
    },
};

/** By Pillow's numbers; 0, the nearest neighbour, is no model's. */
const FILTERS: Readonly<Record<number, Filter>> = { 1: LANCZOS, 2: BILINEAR, 3: BICUBIC, 4: BOX, 5: HAMMING };

/** Bits after the point of a weight: 32 less 8 of a value and 2 of an overshoot, as Pillow has it for 8-bit channels. */
const PRECISION = 22;
const ONE = 2 ** PRECISION;

interface Window {
    readonly first: number;
    readonly weights: Int32Array;
}

/** For each of `size` places, which of `from` values it mixes and in which shares, in 2^-22. */
function windows(from: number, size: number, filter: Filter): Window[] {
    const scale = from / size;
    const stretch = Math.max(1, scale);
    const support = filter.support * stretch;
    return Array.from({ length: size }, (_, place) => {
        const centre = (place + 0.5) * scale;
        const first = Math.max(0, Math.trunc(centre - support + 0.5));
        const end = Math.min(from, Math.trunc(centre + support + 0.5));
        const shares = Array.from({ length: end - first }, (_, x) =>
            filter.weight((x + first - centre + 0.5) * (1 / stretch)),
        );
        const sum = shares.reduce((total, share) => total + share, 0);
        const fixed = shares.map((share) => {
            const part = (sum === 0 ? share : share / sum) * ONE;
            return Math.trunc(part < 0 ? part - 0.5 : part + 0.5);
        });
        return { first, weights: Int32Array.from(fixed) };
    });
}

/** Mixes the values of `lines` lines; neighbours in a line are `step` apart, lines begin at `begin(line)`. */
function pass(
    values: Uint8Array,
    out: Uint8Array,
    mixes: readonly Window[],
    lines: number,
    layout: { step: number; from: (line: number) => number; to: (line: number) => number },
): void {
    for (let line = 0; line < lines; line++) {
        const start = layout.from(line);
        let at = layout.to(line);
        for (const { first, weights } of mixes) {
            let sum = ONE / 2;
            for (
                let x = 0, from = start + first * layout.step;
                x < weights.length;
                x++, from += layout.step
            ) {
                sum += values[from]! * weights[x]!;
            }
            const level = Math.floor(sum / ONE);
            out[at] = level < 0 ? 0 : level > 255 ? 255 : level;
            at += layout.step;
        }
    }
}

/** Resizes rows to `width`. */
function alongRows(picture: Rgb, width: number, filter: Filter): Rgb {
    const out = new Uint8Array(3 * width * picture.height);
    const row = 3 * picture.width;
    pass(picture.data, out, windows(picture.width, width, filter), 3 * picture.height, {
        step: 3,
        from: (line) => Math.floor(line / 3) * row + (line % 3),
        to: (line) => Math.floor(line / 3) * 3 * width + (line % 3),
    });
    return { width, height: picture.height, data: out };
}

/** Resizes columns to `height`. */
function alongColumns(picture: Rgb, height: number, filter: Filter): Rgb {
    const step = 3 * picture.width;
    const out = new Uint8Array(step * height);
    const same = (line: number) => line;
    pass(picture.data, out, windows(picture.height, height, filter), step, { step, from: same, to: same });
    return { width: picture.width, height, data: out };
}

/**
 * A picture at another size, to the bit as Pillow 13's `Image.resize` makes it: along rows, then along columns, in fixed
 * point, each pass rounded to 8 bits. A picture that loses more than twice as much height as width is resized along its
 * columns first (measured; earlier versions of Pillow never do, and such pictures come out up to one level different).
 *
 * @param filter Pillow's number: 1 Lanczos, 2 bilinear, 3 bicubic, 4 box, 5 Hamming.
 * @throws UserError for another filter.
 */
export function resize(picture: Rgb, width: number, height: number, filter: number): Rgb {
    const chosen = FILTERS[filter];
    if (!chosen) {
        throw new UserError(
            `the package's pictures are resized by Pillow's filter ${filter}, which is not done here`,
        );
    }
    const lost = picture.height - height;
    const rows = (from: Rgb) => (width === from.width ? from : alongRows(from, width, chosen));
    const columns = (from: Rgb) => (height === from.height ? from : alongColumns(from, height, chosen));
    return lost > Math.max(0, 2 * (picture.width - width)) ? rows(columns(picture)) : columns(rows(picture));
}
