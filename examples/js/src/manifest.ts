import { UserError } from "./errors.js";
import { isObject, parseObject, Reader, type JsonObject } from "./json.js";
import { sha256 } from "./sha256.js";
import type { PackageSource } from "./source.js";

export const MANIFEST = "manifest.json";
const SCHEMA = 2;
const SEAL = /\n {2}"manifest_sha256": "([0-9a-f]{64})",/;

/** Size in bytes and lower-case hexadecimal SHA-256 of one file. */
export interface FileEntry {
    readonly size: number;
    readonly sha256: string;
}

/** What a host must know of `manifest.json` (docs/package.md). */
export interface Manifest {
    readonly sha256: string;
    readonly name: string;
    readonly modelType: string;
    readonly generic: boolean;
    readonly target: string;
    readonly fold: string;
    readonly precision: string;
    readonly contextLength: number;
    readonly imageTokenId: number;
    readonly coefficients: string;
    readonly layers: number;
    readonly heads: number;
    readonly hiddenSize: number;
    readonly extras: Reader;
    readonly files: ReadonlyMap<string, FileEntry>;
}

/**
 * A manifest whose own hash is right.
 *
 * @throws UserError where it is damaged, of another schema, or not of a package for ONNX Runtime.
 */
export async function readManifest(bytes: Uint8Array, source: string): Promise<Manifest> {
    const text = new TextDecoder().decode(bytes);
    const table = parseObject(bytes, `${source}'s ${MANIFEST}`);
    const reader = new Reader(table, `${source}'s ${MANIFEST}`);
    if (table["schema"] !== SCHEMA) {
        const older = table["schema"] === 1;
        throw new UserError(
            `${reader.where} does not follow schema ${SCHEMA}, the one that this version reads: ` +
                (older ? "it was made by an older scale-export, export it again" : "update this program"),
        );
    }
    const seal = SEAL.exec(text)?.[1];
    if (seal === undefined || seal !== (await sha256(new TextEncoder().encode(text.replace(SEAL, ""))))) {
        throw new UserError(`${reader.where} was changed after it was written: export the package again`);
    }
    const backend = reader.text("backend");
    if (backend !== "onnxruntime") {
        throw new UserError(
            `${source} is a package for ${backend}, and ONNX Runtime runs here: export for --target web or cpu`,
        );
    }
    const decoder = reader.object("decoder");
    return {
        sha256: seal,
        name: reader.text("name"),
        modelType: reader.text("model_type"),
        generic: reader.flag("generic", false),
        target: reader.text("target"),
        fold: reader.text("fold"),
        precision: reader.text("precision"),
        contextLength: reader.count("context_length", undefined, 1),
        imageTokenId: reader.count("image_token_id"),
        coefficients: reader.text("coefficients"),
        layers: decoder.count("num_layers", undefined, 1),
        heads: decoder.count("num_heads", undefined, 1),
        hiddenSize: decoder.count("hidden_size", undefined, 1),
        extras: reader.object("extras", {}),
        files: new Map(
            Object.entries(fileTable(table, reader)).map(([name, entry]) => [
                name,
                fileEntry(name, entry, reader),
            ]),
        ),
    };
}

function fileTable(table: JsonObject, reader: Reader): JsonObject {
    const files = table["files"];
    if (!isObject(files)) throw reader.wrong("files", "an object");
    return files;
}

function fileEntry(name: string, entry: unknown, reader: Reader): FileEntry {
    const parts = name.split("/");
    if (name.includes("\\") || parts.some((part) => part === "" || part === "." || part === "..")) {
        throw new UserError(
            `${reader.where} lists ${JSON.stringify(name)}, which leads out of the package: do not trust it`,
        );
    }
    const values = new Reader(entry as JsonObject, `${reader.where}: ${name}`);
    return { size: values.count("size"), sha256: values.text("sha256") };
}

/** How far a package has come: bytes of all that are to be read. */
export interface Progress {
    readonly file: string;
    readonly bytes: number;
    readonly total: number;
}

/** A package's files, each checked against the manifest as it is read, and kept until `release`. */
export class PackageFiles {
    readonly #held = new Map<string, Promise<Uint8Array>>();
    #told: (file: string, bytes: number) => void = () => {};

    private constructor(
        readonly source: PackageSource,
        readonly manifest: Manifest,
    ) {}

    /**
     * Reads and checks the manifest.
     *
     * @throws UserError where there is none, or it is refused.
     */
    static async open(source: PackageSource): Promise<PackageFiles> {
        return new PackageFiles(source, await readManifest(await source.read(MANIFEST), source.name));
    }

    /**
     * Reads and checks files.
     *
     * @throws UserError naming the file that is missing, damaged, or of another size than the manifest says.
     */
    async load(names: readonly string[], progress: (progress: Progress) => void = () => {}): Promise<void> {
        const total = names.reduce((sum, name) => sum + (this.manifest.files.get(name)?.size ?? 0), 0);
        let before = 0;
        for (const file of names) {
            this.#told = (name, bytes) => name === file && progress({ file, bytes: before + bytes, total });
            await this.bytes(file);
            before += this.manifest.files.get(file)!.size;
            progress({ file, bytes: before, total });
        }
        this.#told = () => {};
    }

    /** Whether the manifest lists a file. */
    has(name: string): boolean {
        return this.manifest.files.has(name);
    }

    /** A file's bytes, whose size and hash are the manifest's. */
    bytes(name: string): Promise<Uint8Array> {
        let held = this.#held.get(name);
        if (!held) {
            held = this.#checked(name);
            this.#held.set(name, held);
        }
        return held;
    }

    /** Forgets the bytes of files that a session has taken over. */
    release(names: readonly string[]): void {
        for (const name of names) this.#held.delete(name);
    }

    /** A JSON object. */
    async json(name: string): Promise<JsonObject> {
        return parseObject(await this.bytes(name), `${this.source.name}'s ${name}`);
    }

    /** A file's text. */
    async text(name: string): Promise<string> {
        return new TextDecoder().decode(await this.bytes(name));
    }

    async #checked(name: string): Promise<Uint8Array> {
        const entry = this.manifest.files.get(name);
        if (!entry) throw new UserError(`${this.source.name} has no file ${name}: export the package again`);
        const bytes = await this.source.read(name, (came) => this.#told(name, came));
        if (bytes.length !== entry.size) {
            throw new UserError(
                `${name} of ${this.source.name} has ${bytes.length} bytes, not ${entry.size}: load the package again`,
            );
        }
        if ((await sha256(bytes)) !== entry.sha256) {
            throw new UserError(
                `${name} of ${this.source.name} is damaged: its SHA-256 differs from the manifest's; load the package again`,
            );
        }
        return bytes;
    }
}
