/**
 * The page's self-test on WebGPU, computed by SwiftShader where there is no GPU: minutes.
 *
 *     node examples/web/test/webgpu.js PACKAGE RESULT.json
 */
import { fileURLToPath } from "node:url";

import { launch, SWIFTSHADER } from "./browser.js";
import { serve } from "./server.js";

const PATIENCE = 1_800_000;
const [folder, saved] = process.argv.slice(2);
if (!folder || !saved) throw new Error("give a package's folder, and where the result goes");

const site = fileURLToPath(new URL("../dist", import.meta.url));
const server = await serve({ "/": site, "/package/": folder });
const browser = await launch(SWIFTSHADER);
const page = await browser.newPage();
page.setDefaultTimeout(PATIENCE);
const start = performance.now();
await page.goto(`${server.address}#self-test`);
await page.locator("#test:enabled").click();
await page.locator("#save:visible").waitFor();
console.log(await page.innerText("#status"));
console.log(await page.innerText("#verdict"));
console.log(await page.innerText("#cases"));
console.log(await page.innerText("#device"));
console.log(`${((performance.now() - start) / 1000).toFixed(0)} s in all`);
const [download] = await Promise.all([page.waitForEvent("download"), page.click("#save")]);
await download.saveAs(saved);
await browser.close();
await server.close();
