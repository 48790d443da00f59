/** A visit to the page, as a person makes one. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

import { launch } from "./browser.js";
import { serve } from "./server.js";

/** @import { Browser, BrowserContextOptions, Page } from "playwright-core" */

const SITE = fileURLToPath(new URL("../dist", import.meta.url));
const OPENED = 120_000;

/** What the Python test laid ready: packages, pictures, questions with Python's answers. */
export const LAID = process.env["WEB_FIXTURES"] ?? "";

/** @param {string} name */
export function laid(name) {
    return join(LAID, name);
}

/** @param {string} name */
export function laidJson(name) {
    return JSON.parse(readFileSync(laid(name), "utf8"));
}

/** One of the site's scenes. @param {string} file */
export function scene(file) {
    return fileURLToPath(new URL(`../public/scenes/${file}`, import.meta.url));
}

/**
 * The browser, the site with a package beside it, and one page on it.
 * @param {{ package?: string, args?: string[], context?: BrowserContextOptions }} [options]
 */
export async function visit(options = {}) {
    const server = await serve({ "/": SITE, "/package/": laid(options.package ?? "tiny"), "/laid/": LAID });
    /** @type {Browser} */
    let browser;
    try {
        browser = await launch(options.args);
    } catch (error) {
        await server.close();
        throw error;
    }
    const context = await browser.newContext(options.context);
    const page = await context.newPage();
    const problems = /** @type {string[]} */ ([]);
    watch(page, problems);
    await page.goto(server.address);
    return {
        page,
        context,
        server,
        /** Console errors, and what nobody caught. */
        problems,
        async end() {
            await browser.close();
            await server.close();
        },
    };
}

/**
 * @param {Page} page
 * @param {string[]} problems
 */
function watch(page, problems) {
    page.on("pageerror", (error) => problems.push(String(error)));
    page.on("console", (message) => {
        if (["error", "warning"].includes(message.type())) problems.push(message.text());
    });
}

/** Until a package is open. @param {Page} page */
export async function opened(page) {
    const error = page.locator("#error:not([hidden])");
    await page.locator("#send:enabled").or(error).first().waitFor({ state: "attached", timeout: OPENED });
    if (await error.count()) throw new Error(await refusal(page));
}

/** The page's one sentence. @param {Page} page */
export async function refusal(page) {
    const error = page.locator("#error:not([hidden])");
    await error.waitFor({ timeout: OPENED });
    return (await error.textContent()) ?? "";
}

/**
 * The answers to a question about the picture that is shown, by strength.
 * @param {Page} page
 * @param {string} question
 */
export async function ask(page, question) {
    await page.fill("#question", question);
    await page.click("#send");
    return answers(page);
}

/** The answers that are shown, when they are whole. @param {Page} page */
export async function answers(page) {
    await page.locator("#answers[aria-busy=false]").waitFor({ timeout: OPENED });
    const cards = await page.locator(".answer").evaluateAll((found) =>
        found.map((card) => [
            /** @type {HTMLElement} */ (card).dataset["strength"],
            {
                text: card.querySelector(".text")?.textContent,
                verdict: card.querySelector(".verdict")?.textContent,
            },
        ]),
    );
    return Object.fromEntries(cards);
}

/** @param {Page} page @param {"ask" | "package" | "self-test"} view */
export async function show(page, view) {
    await page.click(`nav a[href="#${view}"]`);
    await page.locator(`#${view}`).waitFor();
}

/**
 * Loads another of the packages that were laid ready, by its address.
 * @param {Awaited<ReturnType<typeof visit>>} site
 * @param {string} name
 */
export async function load({ page, server }, name) {
    await show(page, "package");
    await page.fill("#address", `${server.address}laid/${name}`);
    await page.click("#fetch button");
}
