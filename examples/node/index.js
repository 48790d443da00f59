// @ts-check
/** Opens scale-export packages with onnxruntime-node, and decodes pictures with sharp. */
import { readFile } from "node:fs/promises";
import { arch, cpus, platform, release } from "node:os";
import { basename, join } from "node:path";

import { openPackage, selfTest, urlSource, UserError } from "@scale-export/core";
import * as ort from "onnxruntime-node";
import sharp from "sharp";

/** @import { Package, PackageSource, Picture, SelftestOutcome } from "@scale-export/core" */

/**
 * A package in a folder.
 * @param {string} folder
 * @returns {PackageSource}
 */
export function directorySource(folder) {
    return {
        name: folder,
        async read(file, progress) {
            try {
                const bytes = await readFile(join(folder, file));
                progress?.(bytes.length);
                return bytes;
            } catch (error) {
                if (/allocation failed|ENOMEM|greater than 2 GiB/i.test(reasonOf(error) ?? "")) {
                    throw new UserError(
                        `there is not enough memory to read ${file} of ${folder}: end other programs, or take a smaller package`,
                    );
                }
                throw new UserError(
                    `${folder} has no readable file ${file}: give the folder that an export wrote`,
                );
            }
        },
    };
}

/**
 * Opens the package in a folder or at an address.
 * @param {string} place
 * @param {{ threads?: number }} [options]
 * @returns {Promise<Package>}
 */
export function open(place, { threads } = {}) {
    const source = /^https?:\/\//.test(place) ? urlSource(place) : directorySource(place);
    return openPackage(source, { ort, executionProviders: ["cpu"], ...(threads ? { threads } : {}) });
}

/**
 * A picture in a file, or its bytes, as the core takes it: colours as they are stored, 8 bits per channel.
 *
 * JPEG, PNG, WebP, GIF and TIFF. CMYK becomes RGB as Pillow has it, 16 bits keep their upper byte, colour profiles are
 * passed over.
 * @param {string | Uint8Array} file
 * @returns {Promise<Picture>}
 */
export async function loadPicture(file) {
    const name = typeof file === "string" ? basename(file) : "the picture";
    try {
        const bytes = typeof file === "string" ? await readFile(file) : file;
        const image = sharp(bytes, { limitInputPixels: false, ignoreIcc: true });
        const { orientation = 1, space, depth, format } = await image.metadata();
        const wide = depth === "ushort";
        if (space === "cmyk") image.pipelineColourspace("cmyk");
        const values = image.toColourspace(kept(space, wide)).raw({ depth: wide ? "ushort" : "uchar" });
        const { data, info } = await values.toBuffer({ resolveWithObject: true });
        return {
            width: info.width,
            height: info.height,
            data: rgba(wide ? upperBytes(data) : data, info.channels, space === "cmyk"),
            keyed: format === "gif" || (format === "png" && (bytes[PNG_COLOUR] ?? 0) < PNG_ALPHA),
            orientation,
        };
    } catch (error) {
        throw new UserError(
            `${name} cannot be read as a picture (${reasonOf(error)}): give a JPEG, PNG, WebP, GIF or TIFF file`,
        );
    }
}

/**
 * Asks a package its golden cases on this machine.
 * @param {Package} opened
 * @param {{ threads?: number }} [options] the threads it was opened with.
 * @returns {Promise<SelftestOutcome>}
 */
export function certify(opened, { threads } = {}) {
    return selfTest(opened, {
        decode: loadPicture,
        host: {
            runtime: `onnxruntime-node ${ort.env.versions.node ?? ort.env.versions.common}`,
            provider: "cpu",
            threads: threads ?? null,
            device: cpus()[0]?.model.trim() || arch(),
            system: `${platform()} ${release()}, Node ${process.versions.node}`,
        },
    });
}

/** Where a PNG says what its values are, and from which number on alpha is a channel. */
const PNG_COLOUR = 25;
const PNG_ALPHA = 4;

/** @param {unknown} error */
function reasonOf(error) {
    return String(error instanceof Error ? error.message : error).split("\n")[0];
}

/**
 * The colour space in which no value of the file changes.
 * @param {string | undefined} space
 * @param {boolean} wide
 */
function kept(space, wide) {
    if (space === "cmyk") return "cmyk";
    if (wide) return space === "grey16" ? "grey16" : "rgb16";
    return space === "b-w" ? "b-w" : "srgb";
}

/** @param {Buffer} data */
function upperBytes(data) {
    return Uint8Array.from(
        new Uint16Array(data.buffer, data.byteOffset, data.length / 2),
        (word) => word >> 8,
    );
}

/**
 * @param {Uint8Array} values
 * @param {number} channels 1 or 2 of grey, 3 or 4 of colour, 4 of inks; the last of 2, and of 4 colours, is alpha.
 * @param {boolean} inks
 */
function rgba(values, channels, inks) {
    const out = new Uint8Array((4 * values.length) / channels).fill(255);
    for (let from = 0, to = 0; from < values.length; from += channels, to += 4) {
        for (let channel = 0; channel < 3; channel++) {
            const value = values[from + (channels < 3 ? 0 : channel)] ?? 0;
            out[to + channel] = inks ? inked(value, values[from + 3] ?? 0) : value;
        }
        if (channels % 2 === 0 && !inks) out[to + 3] = values[from + channels - 1] ?? 255;
    }
    return out;
}

/**
 * Pillow's light of one ink under black.
 * @param {number} ink
 * @param {number} black
 */
function inked(ink, black) {
    const light = 255 - black;
    const product = ink * light + 128;
    return Math.max(0, light - (((product >> 8) + product) >> 8));
}
