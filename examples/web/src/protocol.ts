/** What the page and its worker say to each other. */
import type { SelftestOutcome, Stopped } from "@scale-export/core";

/** Which kernels are asked for: WebGPU where the device has it, or the processor's. */
export type Choice = "auto" | "wasm";

/** Where a package comes from. */
export type Place =
    | { readonly kind: "address"; readonly address: string }
    | { readonly kind: "files"; readonly name: string; readonly files: ReadonlyMap<string, Blob> }
    | { readonly kind: "kept"; readonly id: string };

/** What runs the graphs on this device. */
export interface Runtime {
    readonly name: string;
    readonly provider: "webgpu" | "wasm";
    readonly threads: number;
}

/** An opened package, as the page shows it. */
export interface Opened {
    readonly id: string;
    readonly name: string;
    readonly modelType: string;
    readonly precision: string;
    /** Whether strength can be changed: the scalars are inputs of the graph. */
    readonly adjustable: boolean;
    /** Whether the package will be here without a network. */
    readonly kept: boolean;
    readonly runtime: Runtime;
}

/** A package on this device. */
export interface Kept {
    readonly id: string;
    readonly name: string;
    readonly bytes: number;
}

/** How far an opening has come, in bytes; `total` is 0 where nobody says. */
export interface Loading {
    readonly what: "runtime" | "package";
    readonly bytes: number;
    readonly total: number;
}

/** How an answer went. */
export interface Answered {
    readonly stopped: Stopped | null;
    readonly tokens: number;
    /** From the question to the first word, and to the last, in milliseconds. */
    readonly first: number;
    readonly whole: number;
}

/** Each call by its name: what is asked, what is told on the way, what is answered. */
export interface Calls {
    open: {
        asked: { readonly place: Place; readonly choice: Choice };
        told: Loading;
        answered: Opened;
    };
    ask: {
        asked: { readonly question: string; readonly picture: Blob | null; readonly strength: number };
        told: string;
        answered: Answered;
    };
    test: {
        asked: { readonly device: string; readonly system: string };
        told: { readonly done: number; readonly total: number };
        answered: SelftestOutcome;
    };
    list: { asked: null; told: never; answered: readonly Kept[] };
    forget: { asked: { readonly id: string }; told: never; answered: null };
}

export type Call = keyof Calls;

/** From the page. */
export type Request =
    | { [K in Call]: { readonly id: number; readonly call: K; readonly asked: Calls[K]["asked"] } }[Call]
    | { readonly id: number; readonly call: "abort" };

/** From the worker. `expected` says that a person can mend it, and the sentence is for them. */
export type Reply =
    | { readonly id: number; readonly kind: "told"; readonly value: unknown }
    | { readonly id: number; readonly kind: "answered"; readonly value: unknown }
    | { readonly id: number; readonly kind: "refused"; readonly message: string; readonly expected: boolean };
