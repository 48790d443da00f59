/** Base model or ScAle: a switch, a slider between them, and both side by side. */
import { byId } from "./dom.js";

export class StrengthChoice {
    readonly #all = byId("strengths", HTMLFieldSetElement);
    readonly #fixed = byId("fixed", HTMLParagraphElement);
    readonly #scale = byId("scale", HTMLInputElement);
    readonly #slider = byId("strength", HTMLInputElement);
    readonly #shown = byId("strength-shown", HTMLOutputElement);
    readonly #both = byId("both", HTMLInputElement);

    /** @param changed is told when a person has chosen. */
    constructor(changed: () => void) {
        this.#scale.addEventListener("change", () => {
            this.#slider.value = this.#scale.checked ? "1" : "0";
            this.#show();
        });
        this.#slider.addEventListener("input", () => this.#show());
        for (const control of [this.#scale, this.#slider, this.#both]) {
            control.addEventListener("change", () => {
                this.#slider.disabled = this.#scale.disabled = this.#both.checked;
                changed();
            });
        }
    }

    /** The strengths that are asked for, side by side where there are two. */
    get chosen(): readonly number[] {
        return this.#both.checked ? [0, 1] : [Number(this.#slider.value)];
    }

    /** Whether the package lets them be chosen; one that doesn't has strength 1. */
    allow(adjustable: boolean): void {
        this.#all.disabled = !adjustable;
        this.#fixed.hidden = adjustable;
        if (adjustable) return;
        this.#both.checked = false;
        this.#slider.value = "1";
        this.#show();
    }

    #show(): void {
        this.#shown.textContent = this.#slider.value;
        this.#scale.checked = Number(this.#slider.value) > 0;
    }
}

/** What an answer of that strength is headed by. */
export function nameOf(strength: number): string {
    if (strength === 0) return "Base model";
    return strength === 1 ? "ScAle" : `ScAle at ${strength}`;
}
