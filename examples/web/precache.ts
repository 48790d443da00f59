/** Tells the service worker which files the site has. */
import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { join, relative, sep } from "node:path";

import type { Plugin } from "vite";

const SERVICE_WORKER = "sw.js";
/** Files of ONNX Runtime: a device uses one of the builds, and keeps that one alone. */
const RUNTIME = /ort-wasm/;

/** Puts `SITE` into the service worker: its files, and a hash of what they hold. */
export function precache(): Plugin {
    let shipped = "";
    return {
        name: "precache",
        apply: "build",
        configResolved({ publicDir }) {
            shipped = publicDir;
        },
        generateBundle: {
            order: "post",
            handler(_, bundle) {
                const worker = bundle[SERVICE_WORKER];
                if (worker?.type !== "chunk") throw new Error(`the build has no ${SERVICE_WORKER}`);
                const hash = createHash("sha256");
                const files = new Map(
                    Object.values(bundle).map((file) => [
                        file.fileName,
                        file.type === "chunk" ? file.code : file.source,
                    ]),
                );
                for (const file of filesUnder(shipped))
                    files.set(relative(shipped, file).replaceAll(sep, "/"), readFileSync(file));
                files.delete(SERVICE_WORKER);
                const names = [...files.keys()].sort();
                for (const name of names) hash.update(name).update(files.get(name)!);
                const site = {
                    version: hash.digest("hex").slice(0, 16),
                    page: names.filter((name) => !RUNTIME.test(name)),
                    used: names.filter((name) => RUNTIME.test(name)),
                };
                worker.code = `const SITE = ${JSON.stringify(site)};\n${worker.code}`;
            },
        },
    };
}

function filesUnder(folder: string): string[] {
    return readdirSync(folder, { withFileTypes: true, recursive: true })
        .filter((entry) => entry.isFile())
        .map((entry) => join(entry.parentPath, entry.name));
}
