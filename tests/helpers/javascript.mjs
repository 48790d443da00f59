/** Does one job of a Python test: JSON on stdin, JSON on stdout. */
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const EXAMPLES = new URL("../../examples/", import.meta.url);
const { upright } = await import(new URL("js/dist/index.js", EXAMPLES));
const { imageRule } = await import(new URL("js/dist/families/index.js", EXAMPLES));
const { Reader } = await import(new URL("js/dist/json.js", EXAMPLES));
const { loadPicture, open, certify } = await import(new URL("node/index.js", EXAMPLES));

const loaded = (files) => Promise.all(files.map((file) => loadPicture(file)));

const JOBS = {
    /** The pixel values of each file by the processor in a folder, as float32 in a file beside it. */
    async pixels({ modelType, processor, files, extras }) {
        const read = (name) => JSON.parse(readFileSync(join(processor, name)));
        const settings = read("processor_config.json");
        const rule = imageRule(
            {
                modelType,
                processor: new Reader(settings, "processor_config.json"),
                images: new Reader(settings.image_processor, "image processor"),
                tokenizer: new Reader(read("tokenizer_config.json"), "tokenizer_config.json"),
                extras: new Reader(extras ?? {}, "extras"),
                imageTokenId: 5,
            },
            false,
        );
        for (const file of files) {
            const { data } = rule.prepare([upright(await loadPicture(file))]).pixels;
            writeFileSync(`${file}.pixels`, data);
        }
        return files.length;
    },

    /** Token ids, logits at each strength, and answers to questions. */
    async ask({ package: place, questions }) {
        const opened = await open(place, { threads: 1 });
        const found = [];
        for (const { files, prompt, tokens, strengths, maxNewTokens } of questions) {
            const pictures = await loaded(files);
            const asked = { maxNewTokens: maxNewTokens ?? 16 };
            const answer = await opened.ask(prompt, pictures, asked).text();
            if (!tokens) {
                found.push({ answer });
                continue;
            }
            const prepared = await opened.prepare([{ role: "user", text: prompt, pictures: files.length }], pictures);
            const logits = {};
            for (const strength of strengths) {
                const rows = await opened.logits(prepared, tokens, strength);
                logits[strength] = rows.map((row) => [...row]);
            }
            found.push({ ids: prepared.ids, logits, answer });
        }
        return found;
    },

    async selftest({ package: place }) {
        return certify(await open(place, { threads: 1 }), { threads: 1 });
    },
};

const job = JSON.parse(readFileSync(0));
process.stdout.write(JSON.stringify(await JOBS[job.do](job)));
