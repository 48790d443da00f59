/** The view of the self-test: golden cases on this device, and its result as a file. */
import type { CaseResult, SelftestOutcome } from "@scale-export/core";

import type { Opened } from "../protocol.js";
import { deviceName, systemName } from "./device.js";
import { byId, make } from "./dom.js";
import type { Engine } from "./engine.js";
import { clearError, showError } from "./errors.js";

export class SelfTestView {
    readonly #test = byId("test", HTMLButtonElement);
    readonly #stop = byId("test-stop", HTMLButtonElement);
    readonly #save = byId("save", HTMLButtonElement);
    readonly #progress = byId("test-progress", HTMLProgressElement);
    readonly #verdict = byId("verdict", HTMLParagraphElement);
    readonly #failures = byId("failures", HTMLUListElement);
    readonly #cases = byId("cases", HTMLDivElement);
    readonly #device = byId("device", HTMLDListElement);
    readonly #note = byId("test-note", HTMLParagraphElement);
    #outcome: SelftestOutcome | null = null;

    /** @param stopped is told when a test was stopped, which closes the package. */
    constructor(
        private readonly engine: Engine,
        stopped: () => void,
    ) {
        this.#test.addEventListener("click", () => void this.#run());
        this.#save.addEventListener("click", () => this.#saveResult());
        this.#stop.addEventListener("click", () => {
            engine.restart();
            stopped();
        });
    }

    /** A package was opened, or closed. */
    show(opened: Opened | null): void {
        this.#test.disabled = opened === null;
        this.#render(null);
    }

    async #run(): Promise<void> {
        clearError();
        this.#render(null);
        this.#test.disabled = true;
        this.#stop.hidden = this.#progress.hidden = false;
        this.#progress.value = 0;
        try {
            const who = { device: await deviceName(), system: await systemName() };
            const outcome = await this.engine.call("test", who, ({ done, total }) => {
                this.#progress.value = done / total;
            });
            this.#render(outcome);
        } catch (error) {
            showError(error);
        }
        this.#test.disabled = false;
        this.#stop.hidden = this.#progress.hidden = true;
    }

    #render(outcome: SelftestOutcome | null): void {
        this.#outcome = outcome;
        const cases = outcome?.result.cases ?? [];
        const failures = outcome?.failures ?? [];
        this.#verdict.textContent = outcome
            ? `${outcome.passed ? "✓ Passed" : "✗ Failed"}: ${cases.length} golden cases, logits within ${outcome.tolerance} allowed.`
            : "";
        this.#verdict.className = outcome ? (outcome.passed ? "right" : "wrong") : "";
        this.#failures.replaceChildren(...failures.map((text) => make("li", { textContent: text })));
        this.#failures.hidden = failures.length === 0;
        this.#cases.querySelector("tbody")!.replaceChildren(...cases.map(row));
        this.#cases.hidden = this.#save.hidden = this.#note.hidden = outcome === null;
        this.#device.replaceChildren(...(outcome ? facts(outcome) : []));
    }

    #saveResult(): void {
        const { result } = this.#outcome!;
        const blob = new Blob([`${JSON.stringify(result, null, 2)}\n`], { type: "application/json" });
        const link = make("a", {
            href: URL.createObjectURL(blob),
            download: `${result.package.name}-device-result.json`,
        });
        link.click();
        URL.revokeObjectURL(link.href);
    }
}

function row(found: CaseResult): HTMLTableRowElement {
    const cells = [
        String(found.strength),
        found.ids_identical ? "the same" : "others",
        found.error?.toExponential(1) ?? "not finite",
        found.pixel_levels === null ? "no picture" : `${found.pixel_levels.toFixed(1)} levels`,
        found.gate_response?.toFixed(3) ?? "",
        found.answer === null ? "" : answerOf(found),
    ];
    return make(
        "tr",
        {},
        make("th", { scope: "row", textContent: `${found.index}: ${found.name}` }),
        ...cells.map((textContent) => make("td", { textContent })),
    );
}

function answerOf({ answer, answer_expected }: CaseResult): string {
    return answer === answer_expected ? `${answer}` : `${answer} (not: ${answer_expected})`;
}

function facts({ result: { host, speed } }: SelftestOutcome): HTMLElement[] {
    const rate = (value: number | null) =>
        value === null ? "not measured" : `${value.toFixed(0)} tokens a second`;
    const lines = {
        Runtime: `${host.runtime}, ${host.provider}, threads: ${host.threads ?? "not said"}`,
        Device: host.device,
        System: host.system,
        Prompt: rate(speed.prefill_tokens_per_second),
        Answer: rate(speed.decode_tokens_per_second),
    };
    return Object.entries(lines).flatMap(([name, textContent]) => [
        make("dt", { textContent: name }),
        make("dd", { textContent }),
    ]);
}
