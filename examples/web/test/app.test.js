import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import { devices } from "playwright-core";

import { answers, ask, laidJson, opened, scene, visit } from "./page.js";

/** @type {Awaited<ReturnType<typeof visit>>} */
let site;
const QUESTION = "which object is at the bottom right?";

before(async () => {
    site = await visit({ context: devices["Pixel 7"] });
    await opened(site.page);
});
after(() => site.end());

test("the shipped question is answered right with ScAle, wrong by the base model", async () => {
    const { page } = site;
    assert.equal(await page.inputValue("#question"), QUESTION);
    const { 1: scale } = await ask(page, QUESTION);
    assert.deepEqual(scale, { text: "the moon", verdict: "✓ Right" });
    await page.check("#both");
    const both = await answers(page);
    assert.deepEqual(both, {
        0: { text: "the fish", verdict: "✗ Wrong: it is “the moon”" },
        1: { text: "the moon", verdict: "✓ Right" },
    });
    await page.uncheck("#both");
});

test("the slider and the switch ask again, at their strength", async () => {
    const { page } = site;
    const slider = page.getByRole("slider", { name: "Strength" });
    const expected = laidJson("strengths.json");
    for (const { question, answers: wanted } of expected) {
        for (const [strength, text] of Object.entries(wanted)) {
            await slider.fill(strength);
            assert.equal((await ask(page, question))[strength]?.text, text, `${question} at ${strength}`);
        }
    }
    assert.ok(expected.some((/** @type {any} */ { answers: all }) => all["0"] !== all["1"]));
    await page.getByRole("switch", { name: "ScAle" }).check();
    assert.equal(await slider.inputValue(), "0.5");
    await page.getByRole("switch", { name: "ScAle" }).uncheck();
    assert.deepEqual(Object.keys(await answers(page)), ["0"]);
    await page.getByRole("switch", { name: "ScAle" }).check();
    assert.deepEqual(Object.keys(await answers(page)), ["1"]);
});

test("own pictures are asked about: turned by EXIF, with colours under alpha, none at all", async () => {
    const { page } = site;
    for (const name of laidJson("pictures.json")) {
        await page.setInputFiles("#pick", { name, mimeType: "image/*", buffer: await read(name) });
        const found = (await ask(page, QUESTION))["1"];
        assert.deepEqual(found, { text: "the moon", verdict: "" }, name);
    }
    await page.click("#clear");
    assert.notEqual((await ask(page, QUESTION))["1"]?.text, "the moon");
    await page.locator("#scenes button").first().click();
});

test("a picture that is none is refused in one sentence", async () => {
    const { page } = site;
    await page.setInputFiles("#pick", {
        name: "x.png",
        mimeType: "image/png",
        buffer: Buffer.from("no picture"),
    });
    await page.click("#send");
    await page.locator("#error:not([hidden])").waitFor();
    assert.match((await page.textContent("#error")) ?? "", /^the picture cannot be read .*file\.$/);
    await page.locator("#scenes button").first().click();
    await ask(page, QUESTION);
    assert.equal(await page.locator("#error:visible").count(), 0);
});

test("an answer can be stopped", async () => {
    const { page } = site;
    await page.fill("#question", "where is the flag?");
    await page.evaluate(() => {
        document.getElementById("send")?.click();
        document.getElementById("stop")?.click();
    });
    await page.locator("#stop").waitFor({ state: "hidden" });
    assert.match(await page.innerText(".answer .timing"), /stopped/);
    assert.equal((await ask(page, "where is the flag?"))["1"]?.verdict, "✓ Right");
});

test("it uses threads, loads one build of the runtime, and a package below 2 MB", async () => {
    const { page, server } = site;
    assert.equal(await page.evaluate(() => crossOriginIsolated), true);
    assert.match((await page.textContent("#status")) ?? "", /^tiny, processor, \d threads$/);
    const sent = [...server.sent];
    const runtime = sent.filter(([path]) => path.endsWith(".wasm"));
    assert.equal(runtime.length, 1);
    const sum = (/** @type {[string, number][]} */ files) =>
        files.reduce((bytes, [, size]) => bytes + size, 0);
    const inPackage = sum(sent.filter(([path]) => path.startsWith("/package/")));
    assert.ok(inPackage > 1e6 && inPackage <= 2e6, `${inPackage} bytes of the package`);
    assert.ok(sum(runtime) < 15e6 && sum(sent) - sum(runtime) - inPackage < 1e6, `${sum(sent)} bytes in all`);
});

test("it answers again when the server is gone, on a page that is loaded anew", async () => {
    const { page, server, problems } = site;
    await server.close();
    await assert.rejects(fetch(server.address));
    await page.reload();
    await opened(page);
    assert.equal(await page.evaluate(() => crossOriginIsolated), true);
    assert.equal((await ask(page, QUESTION))["1"]?.text, "the moon");
    await page.locator("nav a").nth(2).click();
    await page.click("#test");
    await page.locator("#save:visible").waitFor();
    assert.match((await page.textContent("#verdict")) ?? "", /Passed/);
    // What the browser itself says of a request that failed; the page took the kept package.
    assert.deepEqual(
        problems.filter((text) => !/ERR_CONNECTION_REFUSED/.test(text)),
        [],
    );
});

/** @param {string} name */
async function read(name) {
    const { readFile } = await import("node:fs/promises");
    return readFile(name.startsWith("scene") ? scene(name) : `${process.env["WEB_FIXTURES"]}/${name}`);
}
