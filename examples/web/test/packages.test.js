import assert from "node:assert/strict";
import { readdirSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { after, before, test } from "node:test";

import { ask, laid, load, opened, refusal, show, visit } from "./page.js";

/** @type {Awaited<ReturnType<typeof visit>>} */
let site;

before(async () => {
    site = await visit();
    await opened(site.page);
});
after(() => site.end());

const REFUSED = {
    damaged: /^decoder\.onnx\.data of .*damaged is damaged: its SHA-256 differs .*load the package again\.$/,
    family: /^.*family paligemma.*\.$/,
    dropped: /takes no .*gate.* in this runtime.*export the package again\.$/,
    older: /older scale-export.*\.$/,
    missing: /cannot be fetched \(404\): give a package's folder\.$/,
};

for (const [name, expected] of Object.entries(REFUSED)) {
    test(`a package is refused in one sentence: ${name}`, async () => {
        await load(site, name);
        const said = await refusal(site.page);
        assert.match(said, expected);
        assert.doesNotMatch(said, /\n|failed where it should not/);
        assert.equal(await site.page.locator("#send:enabled").count(), 0);
        assert.equal(await site.page.locator("#kept li").count(), 1);
    });
}

test("a package is loaded from an address, and kept", async () => {
    await load(site, "other");
    await opened(site.page);
    assert.match(await site.page.innerText("#opened"), /^Open: other, a llava in int4\.$/);
    assert.deepEqual(
        (await site.page.locator("#kept span").allInnerTexts()).map((text) => text.split(",")[0]).sort(),
        ["other", "tiny"],
    );
    await site.page.reload();
    await opened(site.page);
    assert.match((await site.page.textContent("#opened")) ?? "", /other/);
});

test("a package is loaded from a folder, from its files, and by a drop", async () => {
    const { page } = site;
    await show(page, "package");
    await page.setInputFiles("#folder", laid("tiny"));
    await isOpen("tiny");
    await page.setInputFiles("#files", filesUnder(laid("other")));
    await isOpen("other");
    await drop(filesUnder(laid("tiny")));
    await isOpen("tiny");
    await show(page, "ask");
    assert.equal((await ask(page, "which object is at the bottom right?"))["1"]?.text, "the moon");
});

test("files without a manifest are refused; a dropped picture is asked about", async () => {
    const { page } = site;
    await drop([join(laid("tiny"), "runtime.json")]);
    assert.match(await refusal(page), /^the files hold no manifest\.json: .*\.$/);
    await drop([new URL("../public/scenes/scene-3.png", import.meta.url).pathname]);
    await page.getByText("scene-3.png").waitFor();
});

test("a kept package is opened, and removed", async () => {
    const { page } = site;
    await show(page, "package");
    await page.getByRole("button", { name: "Open other" }).click();
    await isOpen("other");
    await page.getByRole("button", { name: "Remove other" }).click();
    await page.getByRole("button", { name: "Remove other" }).waitFor({ state: "detached" });
    assert.equal(await page.locator("#kept li").count(), 1);
});

test("loading can be stopped, and begun again", async () => {
    const { page } = site;
    await page.evaluate(() => {
        /** @type {HTMLElement} */ (document.querySelector("#kept li button")).click();
        document.getElementById("loading-stop")?.click();
    });
    await page.locator("#loading").waitFor({ state: "hidden" });
    assert.equal(await page.innerText("#opened"), "No package is open.");
    assert.equal(await page.locator("#error:visible").count(), 0);
    await page.getByRole("button", { name: "Open tiny" }).click();
    await isOpen("tiny");
});

test("a device without the memory for a package says so", async () => {
    const { page } = site;
    await load(site, "memory");
    await opened(page);
    await show(page, "ask");
    await page.fill("#question", "is it left?");
    await page.click("#send");
    assert.match(await refusal(page), /cannot be run: there is not enough memory on this device; .*\.$/);
    assert.equal(await page.locator(".answer").count(), 0);
});

/** @param {string} name */
async function isOpen(name) {
    await site.page.locator("#opened", { hasText: `Open: ${name}, ` }).waitFor();
}

/** @param {string} folder */
function filesUnder(folder) {
    return readdirSync(folder, { withFileTypes: true, recursive: true })
        .filter((entry) => entry.isFile())
        .map((entry) => join(entry.parentPath, entry.name));
}

/** Drops files on the page, as bare files. @param {readonly string[]} paths */
async function drop(paths) {
    const files = [];
    for (const path of paths) {
        const name = path.split("/").at(-1) ?? "";
        const type = name.endsWith(".png") ? "image/png" : "";
        files.push({ name, type, bytes: (await readFile(path)).toString("base64") });
    }
    await site.page.evaluate((given) => {
        const dataTransfer = new DataTransfer();
        for (const { name, type, bytes } of given) {
            const data = Uint8Array.from(atob(bytes), (letter) => letter.charCodeAt(0));
            dataTransfer.items.add(new File([data], name, { type }));
        }
        document.body.dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true }));
    }, files);
}
