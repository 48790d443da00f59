import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import { laid, load, opened, show, visit } from "./page.js";

/** @type {Awaited<ReturnType<typeof visit>>} */
let site;

before(async () => {
    site = await visit();
    await opened(site.page);
});
after(() => site.end());

async function tested() {
    await show(site.page, "self-test");
    await site.page.click("#test");
    await site.page.locator("#save:visible").waitFor({ timeout: 120_000 });
}

for (const name of ["tiny", "float32", "small"]) {
    test(`the self-test passes, and its result can be saved: ${name}`, async () => {
        const { page, problems } = site;
        await load(site, name);
        await opened(page);
        await tested();
        assert.match(await page.innerText("#verdict"), /^✓ Passed: \d+ golden cases/);
        assert.equal(await page.locator("#failures").isVisible(), false);
        const [download] = await Promise.all([page.waitForEvent("download"), page.click("#save")]);
        assert.equal(download.suggestedFilename(), `${name}-device-result.json`);
        await download.saveAs(laid(`${name}.json`));
        assert.deepEqual(problems, []);
    });
}

test("a graph that ignores the gate fails", async () => {
    const { page } = site;
    await load(site, "ignoring");
    await opened(page);
    await tested();
    assert.match(await page.innerText("#verdict"), /^✗ Failed/);
    const failures = await page.locator("#failures li").allInnerTexts();
    for (const strength of ["0", "0\\.5"]) {
        const dropped = new RegExp(
            `at strength ${strength}: this runtime drops the scalars \\(response 0\\.00`,
        );
        assert.ok(failures.some((text) => dropped.test(text)));
    }
});

test("a test that is stopped closes nothing", async () => {
    const { page } = site;
    await page.click("#test");
    await page.click("#test-stop");
    await opened(page);
    assert.equal(await page.locator("#error:visible, #save:visible").count(), 0);
});
