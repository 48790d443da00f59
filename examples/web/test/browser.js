/** The browser of the tests: a headless Chromium that comes from npm, or the one that CHROMIUM names. */
import { mkdir } from "node:fs/promises";
import { tmpdir } from "node:os";
import { fileURLToPath } from "node:url";

import { chromium } from "playwright-core";

/** Where the browser is unpacked, once: not in a folder that others may write to. */
const UNPACKED = fileURLToPath(new URL("../../node_modules/.cache/chromium", import.meta.url));
/** Kernels of WebGPU without a GPU. */
export const SWIFTSHADER = [
    "--enable-unsafe-webgpu",
    "--use-webgpu-adapter=swiftshader",
    "--enable-features=Vulkan",
];

/** @param {readonly string[]} args */
export async function launch(args = []) {
    const executablePath = process.env["CHROMIUM"] ?? (await unpacked());
    return chromium.launch({ executablePath, args: ["--no-sandbox", ...args] });
}

async function unpacked() {
    await mkdir(UNPACKED, { recursive: true });
    const before = tmpdir();
    process.env["TMPDIR"] = UNPACKED;
    try {
        const { default: packed } = await import("@sparticuz/chromium");
        return await packed.executablePath();
    } finally {
        process.env["TMPDIR"] = before;
    }
}
