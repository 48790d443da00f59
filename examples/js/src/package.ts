import { Cache, Engine, type RuntimeOptions, type Step } from "./engine.js";
import { ContextFull, UserError } from "./errors.js";
import { imageRule } from "./families/index.js";
import type { Features, Grid, ImageRule, PixelValues } from "./families/rule.js";
import { isObject, Reader, type JsonObject } from "./json.js";
import { PackageFiles, type Manifest, type Progress } from "./manifest.js";
import { upright, type Picture } from "./pictures.js";
import { Prompts, type Turn } from "./prompts.js";
import { chooseToken } from "./rules.js";
import { readRuntime, RUNTIME, type RuntimeFacts } from "./runtime.js";
import { checkSameBase, readCoefficients, strengthened, type Coefficients, type Scalars } from "./scalars.js";
import type { PackageSource } from "./source.js";

/** Why an answer stopped: the model ended it, it is as long as was asked for, the context is full, or it was aborted. */
export type Stopped = "end" | "length" | "context" | "aborted";

/** How an answer is asked for. */
export interface AnswerOptions {
    /** Tokens at most; 64 without. */
    readonly maxNewTokens?: number;
    /** Ends the answer after the token that is being made. */
    readonly signal?: AbortSignal;
    /** In place of the package's own strength: 0 the base model, 1 ScAle. */
    readonly strength?: number;
}

/** A prompt ready for the decoder. */
export interface PreparedPrompt {
    readonly ids: readonly number[];
    /** For whoever compares them; null without pictures. */
    readonly pixels: PixelValues | null;
    readonly step: Step;
    readonly nextPosition: number;
}

const ANSWER_TOKENS = 64;
const SETTINGS = [
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "processor_config.json",
    "preprocessor_config.json",
];

/** The pieces of a greedy answer, each as its text becomes certain. */
export class AnswerStream implements AsyncIterable<string> {
    /** Null until the last piece was taken. */
    stopped: Stopped | null = null;
    /** The answer's tokens so far, without the end token. */
    readonly tokens: number[] = [];

    constructor(
        private readonly made: AsyncGenerator<number, Stopped>,
        private readonly decode: (ids: readonly number[]) => string,
    ) {}

    async *[Symbol.asyncIterator](): AsyncGenerator<string> {
        let shown = "";
        let text = "";
        for (let next = await this.made.next(); ; next = await this.made.next()) {
            if (next.done) {
                this.stopped = next.value;
                break;
            }
            this.tokens.push(next.value);
            text = this.decode(this.tokens);
            if (text.startsWith(shown) && !text.endsWith("\ufffd")) {
                yield text.slice(shown.length);
                shown = text;
            }
        }
        if (text.startsWith(shown) && text !== shown) yield text.slice(shown.length);
    }

    /** The whole answer, stripped. */
    async text(): Promise<string> {
        let whole = "";
        for await (const piece of this) whole += piece;
        return whole.trim();
    }
}

/** An opened package: its files were checked, its graphs are loaded. */
export class Package {
    readonly #own: Coefficients;
    #coefficients: Coefficients;
    #strength = 1;

    private constructor(
        readonly files: PackageFiles,
        private readonly engine: Engine,
        private readonly prompts: Prompts,
        private readonly rule: ImageRule,
        private readonly facts: RuntimeFacts,
        own: Coefficients,
    ) {
        this.#own = this.#coefficients = own;
    }

    /**
     * Opens a package: reads and checks its files, then loads its graphs.
     *
     * @throws UserError where a file is missing or damaged, or something in the package is not done here.
     */
    static async open(
        source: PackageSource,
        runtime: RuntimeOptions,
        progress?: (progress: Progress) => void,
    ): Promise<Package> {
        const files = await PackageFiles.open(source);
        const facts = readRuntime(await files.json(RUNTIME), `${source.name}'s ${RUNTIME}`);
        const rule = await ruleOf(files);
        const graphs = [...facts.graphs.values()].flatMap(({ file, data }) => [file, ...data]);
        const settings = SETTINGS.filter((name) => files.has(name));
        await files.load([...settings, files.manifest.coefficients, ...graphs], progress);
        const prompts = await promptsOf(files);
        const own = readCoefficients(
            await files.bytes(files.manifest.coefficients),
            files.manifest,
            files.manifest.coefficients,
        );
        return new Package(files, await Engine.open(files, facts, runtime), prompts, rule, facts, own);
    }

    /** What the package says of itself. */
    get manifest(): Manifest {
        return this.files.manifest;
    }

    /** Whether strength and scalars can be changed: in packages whose scalars are inputs of the graph. */
    get adjustable(): boolean {
        return this.engine.gated;
    }

    /** The scalars' strength: 0 is the base model, 1 ScAle as trained. */
    get strength(): number {
        return this.#strength;
    }

    set strength(value: number) {
        this.#strength = this.#checkedStrength(value);
    }

    /** Other scalars of the same base model: the bytes of a `scale.safetensors`; null for the package's own. */
    swapScalars(bytes: Uint8Array | null, name = "scale.safetensors"): void {
        if (bytes === null) {
            this.#coefficients = this.#own;
            return;
        }
        if (!this.adjustable) throw this.#fixed();
        const other = readCoefficients(bytes, this.manifest, name);
        checkSameBase(this.#own, other);
        this.#coefficients = other;
    }

    /** A prompt's tokens, with its pictures in their places. */
    async prepare(turns: readonly Turn[], pictures: readonly Picture[]): Promise<PreparedPrompt> {
        const rendered = this.prompts.render(turns, this.rule);
        const prepared = pictures.length
            ? this.rule.prepare(pictures.map((picture) => upright(picture)))
            : null;
        const ids = this.prompts.encode(rendered, this.rule.placeholder, prepared?.words ?? []);
        const places = ids.flatMap((id, place) => (id === this.manifest.imageTokenId ? [place] : []));
        const outputs = prepared ? await this.engine.look(prepared.feeds) : {};
        const features = prepared ? prepared.pack(outputs["image_features"]!) : new Float32Array(0);
        if (features.length !== (prepared ? places.length : 0) * this.engine.hiddenSize) {
            throw new UserError(
                `the prompt has ${places.length} places for pictures' rows, and the pictures give ${features.length / this.engine.hiddenSize}: export the package again`,
            );
        }
        const positions = this.rule.positions(ids, (prepared?.grids ?? []) as Grid[]);
        return {
            ids,
            pixels: prepared?.pixels ?? null,
            step: {
                embeds: await this.engine.embed(ids, features),
                positions,
                gate: this.#gate(ids.length),
                groups: this.rule.groups(ids),
                deepstack: prepared ? this.#deepstack(outputs, places, ids.length, prepared.pack) : [],
            },
            nextPosition:
                positions.reduce((most, axis) => axis.reduce((a, b) => Math.max(a, b), most), -1) + 1,
        };
    }

    /** Streams a greedy answer to one question. */
    ask(question: string, pictures: readonly Picture[], options: AnswerOptions = {}): AnswerStream {
        return this.chat([{ role: "user", text: question, pictures: pictures.length }], pictures, options);
    }

    /** Streams a greedy answer to a conversation whose last turn is the user's. */
    chat(turns: readonly Turn[], pictures: readonly Picture[], options: AnswerOptions = {}): AnswerStream {
        const scalars = this.#scalars(options.strength ?? this.#strength);
        return new AnswerStream(this.#tokens(turns, pictures, scalars, options), (ids) =>
            this.prompts.decode(ids),
        );
    }

    /**
     * Logits after the prompt and after each of `tokens`, fed as if they had been generated.
     *
     * @param strength in place of the package's own.
     * @param timed is told of each forward: its tokens, and how many milliseconds the decoder took.
     */
    async logits(
        prompt: PreparedPrompt,
        tokens: readonly number[],
        strength = this.#strength,
        timed: (tokens: number, milliseconds: number) => void = () => {},
    ): Promise<Float32Array[]> {
        const scalars = this.#scalars(strength);
        const cache = new Cache();
        const rows: Float32Array[] = [];
        const run = async (step: Step) => {
            const start = performance.now();
            rows.push(await this.engine.forward(cache, step, scalars));
            timed(step.gate.length, performance.now() - start);
        };
        try {
            await run(prompt.step);
            for (const [offset, token] of tokens.entries())
                await run(await this.#decodeStep(token, prompt, offset));
            return rows;
        } finally {
            cache.dispose();
        }
    }

    /** Ends the graphs' sessions. */
    async close(): Promise<void> {
        await this.engine.release();
    }

    async *#tokens(
        turns: readonly Turn[],
        pictures: readonly Picture[],
        scalars: Scalars,
        { maxNewTokens = ANSWER_TOKENS, signal }: AnswerOptions,
    ): AsyncGenerator<number, Stopped> {
        const prompt = await this.prepare(turns, pictures);
        const cache = new Cache();
        const answer: number[] = [];
        try {
            let logits = await this.engine.forward(cache, prompt.step, scalars);
            while (answer.length < maxNewTokens) {
                if (signal?.aborted) return "aborted";
                const token = chooseToken(this.facts.rules, logits, prompt.ids, answer);
                if (this.facts.rules.endTokens.includes(token)) return "end";
                yield token;
                answer.push(token);
                if (answer.length === maxNewTokens) break;
                try {
                    logits = await this.engine.forward(
                        cache,
                        await this.#decodeStep(token, prompt, answer.length - 1),
                        scalars,
                    );
                } catch (error) {
                    if (error instanceof ContextFull) return "context";
                    throw error;
                }
            }
            return "length";
        } finally {
            cache.dispose();
        }
    }

    async #decodeStep(token: number, prompt: PreparedPrompt, offset: number): Promise<Step> {
        const position = prompt.nextPosition + offset;
        return {
            embeds: await this.engine.embed([token], new Float32Array(0)),
            positions: prompt.step.positions.map(() => [position]),
            gate: Float32Array.of(1),
            groups: null,
            deepstack: [],
        };
    }

    /** Scope `last` scales the last token of a forward, scope `all` every one. */
    #gate(tokens: number): Float32Array {
        const gate = new Float32Array(tokens).fill(this.facts.scope === "all" ? 1 : 0);
        gate[tokens - 1] = 1;
        return gate;
    }

    #scalars(strength: number): Scalars {
        return strengthened(this.#coefficients, this.#checkedStrength(strength));
    }

    #checkedStrength(strength: number): number {
        if (!(strength >= 0 && strength <= 1)) {
            throw new UserError(
                `strength ${strength} is refused: give a number between 0 (base model) and 1 (ScAle)`,
            );
        }
        if (strength !== 1 && !this.adjustable) throw this.#fixed();
        return strength;
    }

    #fixed(): UserError {
        return new UserError(
            `the scalars of this package are in its weights (fold mode ${this.manifest.fold}): export it again with --fold gate to change them`,
        );
    }

    #deepstack(
        outputs: Readonly<Record<string, Features>>,
        places: readonly number[],
        tokens: number,
        pack: (features: Features) => Float32Array,
    ): Float32Array[] {
        const number = (name: string) => Number(name.split("_").at(-1));
        const names = Object.keys(outputs).filter((name) => name.startsWith("deepstack_"));
        const width = this.engine.hiddenSize;
        return names
            .sort((a, b) => number(a) - number(b))
            .map((name) => {
                const rows = pack(outputs[name]!);
                const spread = new Float32Array(tokens * width);
                places.forEach((place, row) =>
                    spread.set(rows.subarray(row * width, (row + 1) * width), place * width),
                );
                return spread;
            });
    }
}

/** How the package's pictures enter; refused before a graph is loaded. */
async function ruleOf(files: PackageFiles): Promise<ImageRule> {
    const { manifest, source } = files;
    const optional = async (name: string): Promise<JsonObject> => (files.has(name) ? files.json(name) : {});
    const processor = await optional("processor_config.json");
    const images = processor["image_processor"];
    const settings = isObject(images) ? images : await optional("preprocessor_config.json");
    const inputs = {
        modelType: manifest.modelType,
        processor: new Reader(processor, `${source.name}'s processor_config.json`),
        images: new Reader(settings, `the image processor's settings in ${source.name}`),
        tokenizer: new Reader(
            await files.json("tokenizer_config.json"),
            `${source.name}'s tokenizer_config.json`,
        ),
        extras: manifest.extras,
        imageTokenId: manifest.imageTokenId,
    };
    return imageRule(inputs, manifest.generic);
}

async function promptsOf(files: PackageFiles): Promise<Prompts> {
    const config = await files.json("tokenizer_config.json");
    const apart = "chat_template.jinja";
    const template = files.has(apart) ? await files.text(apart) : config["chat_template"];
    if (typeof template !== "string") {
        throw new UserError(
            `${files.source.name} has no chat template to ask with: add a ${apart} to the model and export it again`,
        );
    }
    return new Prompts(await files.json("tokenizer.json"), config, template, files.source.name);
}

/** Opens a package; see {@link Package.open}. */
export const openPackage = Package.open.bind(Package);
