import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";

import { build } from "vite";

import { laid, laidJson, opened, visit } from "./page.js";

/** @type {Awaited<ReturnType<typeof visit>>} */
let site;

before(async () => {
    await build({
        configFile: false,
        publicDir: false,
        logLevel: "error",
        build: {
            outDir: laid("decoder"),
            lib: {
                entry: fileURLToPath(new URL("decoder.js", import.meta.url)),
                formats: ["es"],
                fileName: () => "decoder.js",
            },
        },
    });
    site = await visit();
    await opened(site.page);
});
after(() => site.end());

test("pictures have Python's pixels, to the bit", async () => {
    const { pixels, refused } = laidJson("decoded.json");
    assert.ok(pixels.length >= 24);
    const found = await site.page.evaluate(compare, [...pixels, ...refused]);
    const same = pixels.map((/** @type {string} */ name) => [name, 0]);
    assert.deepEqual(found.slice(0, pixels.length), same);
    for (const [name, said] of found.slice(pixels.length)) {
        assert.match(
            String(said),
            /cannot be read as a picture by this browser: give a JPEG, PNG, WebP or GIF file$/,
            name,
        );
    }
});

/**
 * In the page: each file's largest difference from the RGB that Python laid beside it, or why there is none.
 * @param {string[]} names
 */
async function compare(names) {
    const { decode, upright } = await import(/** @type {any} */ ("/laid/decoder/decoder.js"));
    const get = async (/** @type {string} */ name) => (await fetch(`/laid/pictures/${name}`)).blob();
    const found = /** @type {[string, number | string][]} */ ([]);
    for (const name of names) {
        try {
            const data = /** @type {Uint8Array} */ (upright(await decode(await get(name), name)).data);
            const expected = new Uint8Array(await (await get(`${name}.rgb`)).arrayBuffer());
            const apart = data.reduce(
                (most, value, at) => Math.max(most, Math.abs(value - (expected[at] ?? NaN))),
                0,
            );
            found.push([name, data.length === expected.length ? apart : "another size"]);
        } catch (error) {
            found.push([name, String(error)]);
        }
    }
    return found;
}
