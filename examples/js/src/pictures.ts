import { UserError } from "./errors.js";

/**
 * A decoded picture, as a host gives it: 8 bits per channel, red, green, blue and alpha, not multiplied by alpha.
 *
 * `keyed` says that transparency is a colour of the file, not a channel: a GIF's, a palette's. Such places become white,
 * as transformers' processors make them, where they all have one colour. `orientation` is the file's EXIF orientation, 1 to 8, where the host's decoder has not turned the picture already.
 */
export interface Picture {
    readonly width: number;
    readonly height: number;
    readonly data: Uint8Array | Uint8ClampedArray;
    readonly keyed?: boolean;
    readonly orientation?: number;
}

/** A picture in RGB, row by row, three bytes a pixel. */
export interface Rgb {
    readonly width: number;
    readonly height: number;
    readonly data: Uint8Array;
}

/** Pixels of the largest picture that is taken. */
export const LARGEST = 50_000_000;

/**
 * The picture upright and without alpha, as the Python package takes it: colours stay as they are stored.
 *
 * @throws UserError for no pixels, too many, or bytes that do not fit the size.
 */
export function upright(picture: Picture, name = "the picture"): Rgb {
    const { width, height, data, orientation = 1 } = picture;
    const pixels = width * height;
    if (!pixels) throw new UserError(`${name} has no pixels: give another picture`);
    if (pixels > LARGEST) {
        throw new UserError(
            `${name} has ${Math.round(pixels / 1e6)} megapixels, and at most ${LARGEST / 1e6} are taken here: make it smaller first`,
        );
    }
    if (data.length !== 4 * pixels) {
        throw new UserError(
            `${name} has ${data.length} bytes, and ${width} × ${height} pixels in RGBA have ${4 * pixels}`,
        );
    }
    const key = picture.keyed ? keyOf(data) : null;
    const lies = orientation >= 5 && orientation <= 8;
    const outWidth = lies ? height : width;
    const outHeight = lies ? width : height;
    const out = new Uint8Array(3 * pixels);
    let at = 0;
    for (let y = 0; y < outHeight; y++) {
        for (let x = 0; x < outWidth; x++) {
            const from = 4 * storedAt(x, y, width, height, orientation);
            const white = key !== null && colourAt(data, from) === key;
            out[at++] = white ? 255 : data[from]!;
            out[at++] = white ? 255 : data[from + 1]!;
            out[at++] = white ? 255 : data[from + 2]!;
        }
    }
    return { width: outWidth, height: outHeight, data: out };
}

/** Which stored pixel an upright one comes from (EXIF 2.32, tag 0x0112). */
function storedAt(x: number, y: number, width: number, height: number, orientation: number): number {
    const right = width - 1;
    const bottom = height - 1;
    switch (orientation) {
        case 2:
            return y * width + right - x;
        case 3:
            return (bottom - y) * width + right - x;
        case 4:
            return (bottom - y) * width + x;
        case 5:
            return x * width + y;
        case 6:
            return (bottom - x) * width + y;
        case 7:
            return (bottom - x) * width + right - y;
        case 8:
            return x * width + right - y;
        default:
            return y * width + x;
    }
}

function colourAt(data: Picture["data"], at: number): number {
    return (data[at]! << 16) | (data[at + 1]! << 8) | data[at + 2]!;
}

/** The one colour of all transparent pixels; null where there is none, or several. */
function keyOf(data: Picture["data"]): number | null {
    let key: number | null = null;
    for (let at = 0; at < data.length; at += 4) {
        if (data[at + 3] !== 0) continue;
        const colour = colourAt(data, at);
        if (key !== null && key !== colour) return null;
        key = colour;
    }
    return key;
}
