/** The worker: calls come in one by one, aborts at once. */
import { UserError } from "@scale-export/core";

import type { Call, Calls, Reply, Request } from "../protocol.js";
import { Host } from "./host.js";
import { forget, list } from "./kept.js";

type Handlers = {
    [K in Call]: (
        asked: Calls[K]["asked"],
        told: (value: Calls[K]["told"]) => void,
        signal: AbortSignal,
    ) => Promise<Calls[K]["answered"]>;
};

const host = new Host();
const handlers: Handlers = {
    open: (asked, told) => host.open(asked, told),
    ask: (asked, told, signal) => host.ask(asked, told, signal),
    test: (asked, told) => host.test(asked, told),
    list: () => list(),
    forget: async ({ id }) => (await forget(id), null),
};

const stops = new Map<number, AbortController>();
/** Calls that wait, one behind the other: a session runs one thing at a time. */
let last: Promise<void> = Promise.resolve();

self.addEventListener("message", ({ data }: MessageEvent<Request>) => {
    if (data.call === "abort") {
        stops.get(data.id)?.abort();
        return;
    }
    const stop = new AbortController();
    stops.set(data.id, stop);
    last = last.then(() => answer(data, stop.signal)).finally(() => stops.delete(data.id));
});

async function answer<K extends Call>(
    request: { readonly id: number; readonly call: K; readonly asked: Calls[K]["asked"] },
    signal: AbortSignal,
): Promise<void> {
    const { id, call, asked } = request;
    try {
        const value = await handlers[call](asked, (told) => say({ id, kind: "told", value: told }), signal);
        say({ id, kind: "answered", value });
    } catch (error) {
        const message = String(error instanceof Error ? error.message : error);
        say({ id, kind: "refused", message, expected: error instanceof UserError });
    }
}

function say(reply: Reply): void {
    self.postMessage(reply);
}
