/** One answer as it comes in: its text, whether it is right, how long it took. */
import type { Answered } from "../protocol.js";
import { make } from "./dom.js";
import { isRight } from "./scenes.js";
import { nameOf } from "./strength.js";

const ENDS: Readonly<Record<string, string>> = {
    length: "cut at 64 tokens",
    context: "cut: the context is full",
    aborted: "stopped",
};

export class AnswerCard {
    readonly element: HTMLElement;
    readonly #text = make("p", { className: "text" });
    readonly #verdict = make("p", { className: "verdict" });
    readonly #timing = make("p", { className: "timing", textContent: "…" });

    constructor(
        strength: number,
        private readonly right: string | null,
    ) {
        const heading = make("h3", { textContent: nameOf(strength) });
        this.element = make(
            "article",
            { className: "answer" },
            heading,
            this.#text,
            this.#verdict,
            this.#timing,
        );
        this.element.dataset["strength"] = String(strength);
    }

    add(piece: string): void {
        this.#text.append(piece);
    }

    /** The answer is whole, or was stopped. */
    end({ stopped, tokens, first, whole }: Answered): void {
        const answer = (this.#text.textContent ?? "").trim();
        this.#text.textContent = answer || "(no words)";
        const cut = ENDS[stopped ?? ""];
        const seconds = (milliseconds: number) => `${(milliseconds / 1000).toFixed(2)} s`;
        const times = [`first word after ${seconds(first)}`, `${tokens} tokens in ${seconds(whole)}`];
        this.#timing.textContent = [...(tokens ? times : []), ...(cut ? [cut] : [])].join(", ");
        if (this.right === null || stopped !== "end") return;
        const right = isRight(answer, this.right);
        this.#verdict.textContent = right ? "✓ Right" : `✗ Wrong: it is “${this.right}”`;
        this.#verdict.classList.add(right ? "right" : "wrong");
    }

    /** There will be no answer. */
    fail(): void {
        this.element.remove();
    }
}
