/** The browser of the tests: a headless Chromium that comes from npm, or the one that CHROMIUM names. */
import { existsSync } from "node:fs";
import { mkdir, rename, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
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
    const ready = join(UNPACKED, "chromium");
    if (existsSync(ready)) return ready;
    const part = `${UNPACKED}-${process.pid}`;
    await mkdir(part, { recursive: true });
    const before = tmpdir();
    process.env["TMPDIR"] = part;
    try {
        const { default: packed } = await import("@sparticuz/chromium");
        await packed.executablePath();
    } finally {
        process.env["TMPDIR"] = before;
    }
    // Whole or not at all, whoever else unpacks it.
    await rename(part, UNPACKED).catch(() => rm(part, { recursive: true }));
    return ready;
}
