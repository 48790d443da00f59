import { UserError } from "./errors.js";
import { Reader } from "./json.js";
import type { Package, PreparedPrompt } from "./package.js";
import type { Picture } from "./pictures.js";
import { readSafetensors, type Safetensors } from "./safetensors.js";
import { VERSION } from "./version.js";

const FOLDER = "selftest";
const SCHEMA = 2;
const ANSWER_TOKENS = 16;

/** Who runs the self-test, in words that a person reads. */
export interface Host {
    /** For example `onnxruntime-web 1.30.0`. */
    readonly runtime: string;
    /** `cpu`, `wasm`, `webgpu`, … */
    readonly provider: string;
    readonly threads: number | null;
    readonly device: string;
    readonly system: string;
}

/** One golden case on this device; the fields are those of the device's certificate (docs/runtime.md). */
export interface CaseResult {
    readonly index: number;
    readonly name: string;
    readonly strength: number;
    readonly ids_identical: boolean;
    /** max |Δlogit| / max |logit|; null where it is no finite number. */
    readonly error: number | null;
    /** The largest difference of a pixel, in 8-bit levels; null without pictures. */
    readonly pixel_levels: number | null;
    /** 1 where the scalars act as they should, 0 where the runtime drops them; null where that cannot be told. */
    readonly gate_response: number | null;
    readonly answer: string | null;
    readonly answer_expected: string | null;
}

/** What `scale-export verify PKG --device-result` takes. */
export interface DeviceResult {
    readonly schema: 1;
    readonly kind: "scale-export-device-result";
    readonly package: { readonly name: string; readonly manifest_sha256: string };
    readonly host: Host & { readonly app: string };
    readonly hashes_checked: true;
    readonly cases: readonly CaseResult[];
    readonly speed: {
        readonly prefill_tokens_per_second: number | null;
        readonly decode_tokens_per_second: number | null;
    };
}

/** The device's certificate, and what it comes to by the package's own limits. */
export interface SelftestOutcome {
    readonly result: DeviceResult;
    readonly tolerance: number;
    readonly passed: boolean;
    /** One sentence for each thing that failed. */
    readonly failures: readonly string[];
}

/** What the self-test needs of its host. */
export interface SelftestOptions {
    readonly host: Host;
    /** Decodes a picture's file as the host decodes every other. */
    readonly decode: (bytes: Uint8Array, name: string) => Promise<Picture>;
    readonly progress?: (done: number, total: number) => void;
}

interface GoldenCase {
    readonly index: number;
    readonly name: string;
    readonly images: readonly string[];
    readonly prompt: string;
    readonly ids: readonly number[];
    readonly tokens: readonly number[];
    readonly answer: string | null;
    readonly strength: number;
    readonly pixels: string | null;
}

interface Golden {
    readonly cases: readonly GoldenCase[];
    readonly tolerance: number;
    readonly response: readonly number[];
    readonly expected: Safetensors;
    readonly pixels: Safetensors | null;
}

/**
 * Asks a package its own golden cases on this device: token ids, pixels, logits at every strength, answers.
 *
 * @throws UserError where the package has no self-test, or it cannot be read.
 */
export async function selfTest(pkg: Package, options: SelftestOptions): Promise<SelftestOutcome> {
    const golden = await readGolden(pkg);
    const clock = new Clock();
    const measured: Float32Array[] = [];
    const cases: CaseResult[] = [];
    for (const own of golden.cases) {
        options.progress?.(own.index, golden.cases.length);
        const pictures: Picture[] = [];
        for (const name of own.images) {
            pictures.push(await options.decode(await pkg.files.bytes(`${FOLDER}/${name}`), name));
        }
        const turn = { role: "user", text: own.prompt, pictures: pictures.length } as const;
        const prompt = await pkg.prepare([turn], pictures);
        const logits = flat(await pkg.logits(prompt, own.tokens, own.strength, clock.tell));
        clock.next();
        measured.push(logits);
        const asked = { strength: own.strength, maxNewTokens: ANSWER_TOKENS };
        cases.push({
            index: own.index,
            name: own.name,
            strength: own.strength,
            ids_identical: same(prompt.ids, own.ids),
            error: relativeError(logits, expectedOf(golden, own)),
            pixel_levels: levelsApart(prompt, golden, own),
            gate_response: gateResponse(golden, own, measured),
            answer: own.answer === null ? null : await pkg.ask(own.prompt, pictures, asked).text(),
            answer_expected: own.answer,
        });
    }
    options.progress?.(golden.cases.length, golden.cases.length);
    const failures = failuresOf(cases, golden);
    return {
        result: {
            schema: 1,
            kind: "scale-export-device-result",
            package: { name: pkg.manifest.name, manifest_sha256: pkg.manifest.sha256 },
            host: { app: `scale-export-js ${VERSION}`, ...options.host },
            hashes_checked: true,
            cases,
            speed: clock.speed(),
        },
        tolerance: golden.tolerance,
        passed: failures.length === 0,
        failures,
    };
}

async function readGolden(pkg: Package): Promise<Golden> {
    const file = `${FOLDER}/cases.json`;
    if (!pkg.files.has(file))
        throw new UserError(`${pkg.files.source.name} has no self-test: export the package again`);
    const table = new Reader(await pkg.files.json(file), file);
    if (table.values["schema"] !== SCHEMA) {
        throw new UserError(
            `${file} does not follow schema ${SCHEMA}, the one that this version reads: update this program`,
        );
    }
    const tensors = async (name: string) => readSafetensors(await pkg.files.bytes(name), name);
    const pixels = `${FOLDER}/pixels.safetensors`;
    return {
        cases: table.objects("cases").map(caseOf),
        tolerance: table.number("tolerance"),
        response: table.numbers("gate_response"),
        expected: await tensors(`${FOLDER}/expected.safetensors`),
        pixels: pkg.files.has(pixels) ? await tensors(pixels) : null,
    };
}

function caseOf(reader: Reader, index: number): GoldenCase {
    const images = reader.values["images"];
    if (!Array.isArray(images)) throw reader.wrong("images", "a list of names");
    return {
        index,
        name: reader.text("name"),
        images: images as string[],
        prompt: reader.text("prompt"),
        ids: reader.numbers("input_ids"),
        tokens: reader.numbers("tokens"),
        answer: reader.has("answer") ? reader.text("answer") : null,
        strength: reader.number("strength"),
        pixels: reader.has("pixels") ? reader.text("pixels") : null,
    };
}

function failuresOf(cases: readonly CaseResult[], golden: Golden): string[] {
    const [least, most] = golden.response as [number, number];
    const failures = cases.length ? [] : ["the package has no golden case"];
    for (const found of cases) {
        const where = `case ${found.index} at strength ${found.strength}`;
        if (!found.ids_identical) failures.push(`${where}: the prompt has other token ids`);
        if (found.error === null || found.error > golden.tolerance) {
            failures.push(
                `${where}: the logits are ${found.error?.toExponential(1) ?? "not finite"} off, and ${golden.tolerance} is allowed`,
            );
        }
        if ((found.pixel_levels ?? 0) > 1) {
            failures.push(
                `${where}: a pixel is ${found.pixel_levels?.toFixed(1)} levels off, and 1 is allowed`,
            );
        }
        if (found.gate_response !== null && !(found.gate_response >= least && found.gate_response <= most)) {
            failures.push(
                `${where}: this runtime drops the scalars (response ${found.gate_response.toFixed(2)}, 1 is right)`,
            );
        }
    }
    return failures;
}

function expectedOf(golden: Golden, case_: GoldenCase): Float32Array {
    const found = golden.expected.tensors.get(String(case_.index));
    if (!found)
        throw new UserError(
            `${FOLDER}/expected.safetensors has no logits of case ${case_.index}: export the package again`,
        );
    return found.data;
}

function relativeError(found: Float32Array, expected: Float32Array): number | null {
    if (found.length !== expected.length) return null;
    let apart = 0;
    let largest = 0;
    for (let at = 0; at < found.length; at++) {
        if (!Number.isFinite(found[at])) return null;
        apart = Math.max(apart, Math.abs(found[at]! - expected[at]!));
        largest = Math.max(largest, Math.abs(expected[at]!));
    }
    return apart / largest;
}

/** The largest difference from the golden pixels, in 8-bit levels; null where none were kept, or of another size. */
function levelsApart(prompt: PreparedPrompt, golden: Golden, case_: GoldenCase): number | null {
    const expected =
        case_.pixels === null ? undefined : golden.pixels?.tensors.get(`${case_.pixels}.pixel_values`);
    if (!expected || !prompt.pixels) return null;
    const { data, plane, step } = prompt.pixels;
    if (data.length !== expected.data.length) return Number.MAX_VALUE;
    let most = 0;
    for (let at = 0; at < data.length; at++) {
        const channel = Math.floor(at / plane) % 3;
        most = Math.max(most, Math.abs(data[at]! - expected.data[at]!) / step[channel]!);
    }
    return most;
}

/** How far logits move from strength 1 towards where they should be; see docs/runtime.md. */
function gateResponse(golden: Golden, case_: GoldenCase, measured: readonly Float32Array[]): number | null {
    if (case_.strength === 1) return null;
    const whole = golden.cases.find(
        (other) => other.strength === 1 && other.prompt === case_.prompt && same(other.tokens, case_.tokens),
    );
    if (!whole) return null;
    const [own, full] = [expectedOf(golden, case_), expectedOf(golden, whole)];
    const [ownFound, fullFound] = [measured[case_.index]!, measured[whole.index]!];
    let along = 0;
    let length = 0;
    let moved = 0;
    let largest = 0;
    for (let at = 0; at < own.length; at++) {
        const due = own[at]! - full[at]!;
        along += (ownFound[at]! - fullFound[at]!) * due;
        length += due * due;
        moved = Math.max(moved, Math.abs(due));
        largest = Math.max(largest, Math.abs(full[at]!));
    }
    if (moved <= (golden.tolerance / 10) * largest) return null;
    return Number.isFinite(along) ? along / length : null;
}

function same(found: readonly number[], expected: readonly number[]): boolean {
    return found.length === expected.length && found.every((value, index) => value === expected[index]);
}

function flat(rows: readonly Float32Array[]): Float32Array {
    const whole = new Float32Array(rows.reduce((sum, row) => sum + row.length, 0));
    let at = 0;
    for (const row of rows) {
        whole.set(row, at);
        at += row.length;
    }
    return whole;
}

/** Tokens and milliseconds of the decoder; the first case, which warms it up, does not count where there are others. */
class Clock {
    #cases: { prefill: [number, number]; decode: [number, number] }[] = [{ prefill: [0, 0], decode: [0, 0] }];

    readonly tell = (tokens: number, milliseconds: number): void => {
        const sum = this.#cases.at(-1)![tokens > 1 ? "prefill" : "decode"];
        sum[0] += tokens;
        sum[1] += milliseconds;
    };

    next(): void {
        this.#cases.push({ prefill: [0, 0], decode: [0, 0] });
    }

    speed(): DeviceResult["speed"] {
        const run = this.#cases.filter(({ prefill }) => prefill[0] > 0);
        const counted = run.length > 1 ? run.slice(1) : run;
        const rate = (part: "prefill" | "decode") => {
            const tokens = counted.reduce((sum, times) => sum + times[part][0], 0);
            const milliseconds = counted.reduce((sum, times) => sum + times[part][1], 0);
            return milliseconds > 0 && tokens > 0 ? (1000 * tokens) / milliseconds : null;
        };
        return { prefill_tokens_per_second: rate("prefill"), decode_tokens_per_second: rate("decode") };
    }
}
