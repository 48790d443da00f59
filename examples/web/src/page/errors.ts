/** What went wrong, in one sentence. */
import { byId } from "./dom.js";
import { Refusal, Stopped } from "./engine.js";

const alert = byId("error", HTMLParagraphElement);

/** Shows an error until `clearError`; what the person stopped is none. */
export function showError(error: unknown): void {
    if (error instanceof Stopped) return;
    const message = error instanceof Error ? error.message : String(error);
    alert.textContent =
        error instanceof Refusal
            ? `${message}.`
            : `The page failed where it should not (${message}): reload it.`;
    alert.hidden = false;
    alert.scrollIntoView({ block: "nearest" });
}

export function clearError(): void {
    alert.hidden = true;
    alert.textContent = "";
}
