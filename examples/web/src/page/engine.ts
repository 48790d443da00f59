/** The page's side of the worker that holds the package. */
import type { Call, Calls, Reply, Request } from "../protocol.js";

/** What a person can mend; the message is one sentence for them. */
export class Refusal extends Error {}

/** What the page stopped itself. */
export class Stopped extends Error {}

interface Waiting {
    readonly told: (value: unknown) => void;
    readonly answered: (value: unknown) => void;
    readonly refused: (error: Error) => void;
}

export class Engine {
    #worker = this.#started();
    #next = 0;
    readonly #waiting = new Map<number, Waiting>();

    /**
     * Calls the worker.
     *
     * @throws Refusal with a sentence for the person; Stopped after `restart`; Error for what nobody expected.
     */
    call<K extends Call>(
        call: K,
        asked: Calls[K]["asked"],
        told: (value: Calls[K]["told"]) => void = () => {},
        signal?: AbortSignal,
    ): Promise<Calls[K]["answered"]> {
        const id = this.#next++;
        signal?.addEventListener("abort", () => this.#say({ id, call: "abort" }), { once: true });
        return new Promise((answered, refused) => {
            this.#waiting.set(id, {
                told: told as Waiting["told"],
                answered: answered as Waiting["answered"],
                refused,
            });
            this.#say({ id, call, asked } as Request);
        });
    }

    /** Ends whatever the worker does, with its package; the next call starts anew. */
    restart(): void {
        this.#worker.terminate();
        this.#worker = this.#started();
        this.#refuseAll(new Stopped());
    }

    #say(request: Request): void {
        this.#worker.postMessage(request);
    }

    #started(): Worker {
        const worker = new Worker(new URL("../engine/worker.ts", import.meta.url), { type: "module" });
        worker.addEventListener("message", ({ data }: MessageEvent<Reply>) => this.#hear(data));
        worker.addEventListener("error", ({ message }) =>
            this.#refuseAll(new Error(message || "the worker could not be loaded")),
        );
        return worker;
    }

    #hear(reply: Reply): void {
        const waiting = this.#waiting.get(reply.id);
        if (!waiting) return;
        if (reply.kind === "told") {
            waiting.told(reply.value);
            return;
        }
        this.#waiting.delete(reply.id);
        if (reply.kind === "answered") waiting.answered(reply.value);
        else waiting.refused(new (reply.expected ? Refusal : Error)(reply.message));
    }

    #refuseAll(error: Error): void {
        const waiting = [...this.#waiting.values()];
        this.#waiting.clear();
        for (const { refused } of waiting) refused(error);
    }
}
