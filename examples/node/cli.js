#!/usr/bin/env node
// @ts-check
import { readFile, writeFile } from "node:fs/promises";
import { parseArgs } from "node:util";

import { UserError } from "@scale-export/core";

import { certify, loadPicture, open } from "./index.js";

const USAGE = `Asks a package that scale-export wrote, or lets it test itself on this machine.

    scale-export-node PACKAGE "what is left of the cup?" --image photo.jpg
    scale-export-node PACKAGE --self-test result.json

PACKAGE is a folder, or the address of one.

    --image FILE       a picture; may be given several times
    --strength NUMBER  0 is the base model, 1 ScAle (1)
    --scalars FILE     another scale.safetensors of the same base model
    --tokens NUMBER    at most so many tokens (64)
    --threads NUMBER   of the CPU's kernels
    --self-test FILE   ask the golden cases, and write this machine's certificate`;

const OPTIONS = /** @type {const} */ ({
    image: { type: "string", multiple: true },
    strength: { type: "string" },
    scalars: { type: "string" },
    tokens: { type: "string" },
    threads: { type: "string" },
    "self-test": { type: "string" },
    help: { type: "boolean", short: "h" },
});

/** @param {string[]} words */
function read(words) {
    try {
        return parseArgs({ args: words, allowPositionals: true, options: OPTIONS });
    } catch (error) {
        throw new UserError(`${error instanceof Error ? error.message : error}; --help shows what there is`);
    }
}

/**
 * @param {unknown} value
 * @param {string} option
 */
function number(value, option) {
    if (value === undefined) return undefined;
    if (typeof value !== "string" || value.trim() === "" || !Number.isFinite(Number(value))) {
        throw new UserError(`${option} ${value} is no number: give one`);
    }
    return Number(value);
}

/** @param {string[]} words */
async function main(words) {
    const { values, positionals } = read(words);
    const [place, question] = positionals;
    if (values.help || !place) {
        console.log(USAGE);
        return place || values.help ? 0 : 2;
    }
    const threads = number(values.threads, "--threads");
    const settings = threads === undefined ? {} : { threads };
    const opened = await open(place, settings);
    const file = values["self-test"];
    if (typeof file === "string") {
        const { result, passed, failures } = await certify(opened, settings);
        await writeFile(file, `${JSON.stringify(result, null, 2)}\n`);
        for (const failure of failures) console.error(failure);
        console.log(`${result.cases.length} cases ${passed ? "passed" : "failed"}: ${file}`);
        return passed ? 0 : 1;
    }
    if (question === undefined) throw new UserError("no question was given: write one behind the package");
    if (typeof values.scalars === "string") {
        opened.swapScalars(await readFile(values.scalars), values.scalars);
    }
    const strength = number(values.strength, "--strength");
    if (strength !== undefined) opened.strength = strength;
    const images = values.image ?? [];
    const pictures = await Promise.all(images.map((image) => loadPicture(image)));
    const most = number(values.tokens, "--tokens");
    const answer = opened.ask(question, pictures, most === undefined ? {} : { maxNewTokens: most });
    for await (const piece of answer) process.stdout.write(piece);
    process.stdout.write("\n");
    if (answer.stopped === "context") console.error("the context is full: the answer may be cut");
    return 0;
}

try {
    process.exitCode = await main(process.argv.slice(2));
} catch (error) {
    if (!(error instanceof UserError)) throw error;
    console.error(`error: ${error.message}`);
    process.exitCode = 2;
}
