/** The one opened package of the worker, and what is asked of it. */
import { filesSource, openPackage, selfTest, urlSource, UserError, type Package } from "@scale-export/core";

import type { Answered, Calls, Loading, Opened, Place } from "../protocol.js";
import * as keep from "./kept.js";
import { decode } from "./pictures.js";
import { loadRuntime, type LoadedRuntime } from "./runtime.js";

type Told<K extends keyof Calls> = (value: Calls[K]["told"]) => void;

export class Host {
    #package: Package | null = null;
    #runtime: LoadedRuntime | null = null;

    /** Opens a package in place of the one before; the runtime is loaded once. */
    async open({ place, choice }: Calls["open"]["asked"], told: Told<"open">): Promise<Opened> {
        const source = await sourceOf(place);
        await this.#package?.close();
        this.#package = null;
        try {
            this.#runtime ??= await loadRuntime(choice, told);
            const { ort, ...runtime } = this.#runtime;
            const files = (progress: Omit<Loading, "what">) => told({ ...progress, what: "package" });
            const settings = {
                ort,
                executionProviders: [runtime.provider],
                cacheOnGpu: runtime.provider === "webgpu",
            };
            const opened = await openPackage(source, settings, files);
            await keepSelfTest(opened);
            if (place.kind === "address") await keep.forgetOlder(place.address, source.id);
            this.#package = opened;
            const { name, modelType, precision } = opened.manifest;
            const { adjustable } = opened;
            return { id: source.id, name, modelType, precision, adjustable, kept: source.kept, runtime };
        } catch (error) {
            if (place.kind !== "kept") await keep.forget(source.id);
            throw error;
        }
    }

    /** Streams an answer. */
    async ask(
        { question, picture, strength }: Calls["ask"]["asked"],
        told: Told<"ask">,
        signal: AbortSignal,
    ): Promise<Answered> {
        const opened = this.#opened();
        const start = performance.now();
        let first = 0;
        const pictures = picture ? [await decode(picture)] : [];
        const answer = opened.ask(question, pictures, {
            signal,
            ...(opened.adjustable ? { strength } : {}),
        });
        for await (const piece of answer) {
            first ||= performance.now() - start;
            told(piece);
        }
        const { stopped, tokens } = answer;
        return { stopped, tokens: tokens.length, first, whole: performance.now() - start };
    }

    /** Asks the package its golden cases. */
    test(who: Calls["test"]["asked"], told: Told<"test">): Promise<Calls["test"]["answered"]> {
        const opened = this.#opened();
        const { name, provider, threads } = this.#runtime!;
        return selfTest(opened, {
            host: { runtime: name, provider, threads, ...who },
            decode: (bytes, file) => decode(new Blob([bytes as Uint8Array<ArrayBuffer>]), file),
            progress: (done, total) => told({ done, total }),
        });
    }

    #opened(): Package {
        if (!this.#package) throw new UserError("no package is open: load one first");
        return this.#package;
    }
}

/** The self-test is read when it is asked for; reading it now keeps it for then. */
async function keepSelfTest({ files }: Package): Promise<void> {
    const names = [...files.manifest.files.keys()].filter((name) => name.startsWith("selftest/"));
    await files.load(names);
    files.release(names);
}

/** Where the network is gone, an address is what was kept from it. */
async function sourceOf(place: Place): Promise<keep.KeepingSource> {
    switch (place.kind) {
        case "kept":
            return keep.keptSource(place.id);
        case "files":
            return keep.keeping(filesSource(place.files, place.name), null);
        case "address":
            try {
                return await keep.keeping(urlSource(place.address), place.address);
            } catch (error) {
                const id = await keep.keptFrom(place.address);
                if (id === null) throw error;
                return keep.keptSource(id);
            }
    }
}
