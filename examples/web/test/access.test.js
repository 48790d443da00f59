import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import axe from "axe-core";

import { ask, opened, show, visit } from "./page.js";

/** @type {Awaited<ReturnType<typeof visit>>} */
let site;

before(async () => {
    // The page's own policy allows no script of a test.
    site = await visit({ context: { bypassCSP: true } });
    await opened(site.page);
    await site.page.check("#both");
    await ask(site.page, "which object is at the bottom right?");
    await show(site.page, "self-test");
    await site.page.click("#test");
    await site.page.locator("#save:visible").waitFor({ timeout: 60_000 });
});
after(() => site.end());

const VIEWS = /** @type {const} */ (["ask", "package", "self-test"]);

for (const colorScheme of /** @type {const} */ (["light", "dark"])) {
    test(`labels, roles and contrast are right in every view: ${colorScheme}`, async () => {
        const { page } = site;
        await page.emulateMedia({ colorScheme });
        await page.addScriptTag({ content: axe.source });
        for (const view of VIEWS) {
            await show(page, view);
            const violations = await page.evaluate(async () => {
                // @ts-expect-error axe is what the script tag put there
                const { violations: found, passes } = await globalThis.axe.run();
                const checked = passes.some((/** @type {any} */ { id }) => id === "color-contrast");
                return checked
                    ? found.map((/** @type {any} */ { id, nodes }) => [
                          id,
                          nodes.map((/** @type {any} */ { html }) => html),
                      ])
                    : ["contrast was not checked"];
            });
            assert.deepEqual(violations, [], view);
        }
    });
}

test("the keyboard reaches everything, in the order in which it is read", async () => {
    const { page } = site;
    await show(page, "ask");
    await page.locator(".skip").focus();
    const reached = /** @type {(string | null | undefined)[]} */ (["#views"]);
    for (let presses = 0; presses < 40; presses++) {
        await page.keyboard.press("Tab");
        const at = await page.evaluate(() => {
            const element = document.activeElement;
            if (!element || element === document.body) return null;
            const outlined = [element, element.closest("label.button")].some(
                (one) => one && getComputedStyle(one).outlineStyle !== "none",
            );
            return {
                name: element.id || element.getAttribute("href") || element.closest("[id]")?.id,
                outlined,
            };
        });
        if (!at) break;
        assert.ok(at.outlined, `the focus on ${at.name} is seen`);
        if (at.name !== reached.at(-1)) reached.push(at.name);
    }
    assert.deepEqual(reached, [
        "#views",
        "#ask",
        "#package",
        "#self-test",
        "pick",
        "camera",
        "clear",
        "scenes",
        "question",
        "send",
        "suggestions",
        "both",
    ]);
});

test("a phone's page is as wide as the phone", async () => {
    const { page } = site;
    await page.setViewportSize({ width: 360, height: 740 });
    for (const view of VIEWS) {
        await show(page, view);
        assert.equal(await page.evaluate(() => document.documentElement.scrollWidth), 360, view);
    }
});

test("it can be installed", async () => {
    const { page, server } = site;
    const link = (await page.getAttribute("link[rel=manifest]", "href")) ?? "";
    const manifest = await (await fetch(new URL(link, server.address))).json();
    assert.equal(manifest.display, "standalone");
    const sizes = [];
    for (const { src, sizes: size, purpose } of manifest.icons) {
        assert.equal((await fetch(new URL(src, new URL(link, server.address)))).status, 200, src);
        sizes.push(`${size} ${purpose ?? "any"}`);
    }
    for (const needed of ["192x192 any", "512x512 any", "512x512 maskable"])
        assert.ok(sizes.includes(needed));
});
