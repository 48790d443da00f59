import assert from "node:assert/strict";
import { test } from "node:test";

import { ask, laid, laidJson, opened, visit } from "./page.js";

test("held-out questions have Python's answers", async () => {
    const { page, problems, end } = await visit();
    await opened(page);
    const questions = laidJson("questions.json");
    assert.ok(questions.length >= 100);
    const found = [];
    let shown = "";
    for (const { file, prompt } of questions) {
        if (file !== shown) await page.setInputFiles("#pick", laid(file));
        shown = file;
        found.push((await ask(page, prompt))["1"]?.text);
    }
    assert.deepEqual(
        found,
        questions.map((/** @type {{ answer: string }} */ { answer }) => answer),
    );
    assert.ok(new Set(found).size > 5);
    assert.deepEqual(problems, []);
    await end();
});
