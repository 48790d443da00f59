/** The view that opens packages, and the device's memory of them. */
import type { Choice, Kept, Loading, Opened, Place } from "../protocol.js";
import { byId, make, megabytes } from "./dom.js";
import { packageAmong, pickedFiles } from "./dropped.js";
import type { Engine } from "./engine.js";
import { clearError, showError } from "./errors.js";
import { recall, remember } from "./memory.js";

/** The package beside the page. */
const SHIPPED = new URL("./package", document.baseURI).href;
const LAST = "last-package";
const KERNELS = "kernels";

export class PackageView {
    readonly #loading = byId("loading", HTMLElement);
    readonly #bar = this.#loading.querySelector("progress")!;
    readonly #text = byId("loading-text", HTMLParagraphElement);
    readonly #opened = byId("opened", HTMLParagraphElement);
    readonly #status = byId("status", HTMLParagraphElement);
    readonly #kept = byId("kept", HTMLUListElement);
    #choice: Choice = recall(KERNELS) === "wasm" ? "wasm" : "auto";
    #place: Place | null = null;

    /** @param changed is told when a package was opened, and by null when one is no longer. */
    constructor(
        private readonly engine: Engine,
        private readonly changed: (opened: Opened | null) => void,
    ) {
        for (const id of ["folder", "files"]) {
            const input = byId(id, HTMLInputElement);
            input.addEventListener("change", () => {
                const picked = input.files ? pickedFiles(input.files) : new Map<string, File>();
                input.value = "";
                if (picked.size) void this.take(picked);
            });
        }
        byId("fetch", HTMLFormElement).addEventListener("submit", (event) => {
            event.preventDefault();
            void this.open({ kind: "address", address: byId("address", HTMLInputElement).value });
        });
        byId("loading-stop", HTMLButtonElement).addEventListener("click", () => this.#stop());
        for (const radio of document.querySelectorAll<HTMLInputElement>("#kernels input")) {
            radio.checked = radio.value === this.#choice;
            radio.addEventListener("change", () => this.#choose(radio.value as Choice));
        }
    }

    /** Opens the package of last time, or the one beside the page. */
    async start(): Promise<void> {
        const last = recall(LAST);
        const kept = last === null ? [] : await this.engine.call("list", null);
        const here = kept.some(({ id }) => id === last);
        await this.open(here ? { kind: "kept", id: last! } : { kind: "address", address: SHIPPED });
    }

    /** Opens a package from picked or dropped files. */
    async take(picked: ReadonlyMap<string, File>): Promise<void> {
        clearError();
        try {
            await this.open({ kind: "files", ...(await packageAmong(picked)) });
        } catch (error) {
            showError(error);
        }
    }

    /** Opens a package; what is wrong with it is shown. */
    async open(place: Place): Promise<void> {
        clearError();
        this.#place = place;
        this.#show(null);
        this.#loading.hidden = false;
        this.#bar.removeAttribute("value");
        this.#text.textContent = "";
        try {
            const asked = { place, choice: this.#choice };
            const opened = await this.engine.call("open", asked, (progress) => this.#progress(progress));
            this.#remember(place, opened);
            this.#show(opened);
        } catch (error) {
            if (place.kind === "kept") remember(LAST, null);
            showError(error);
        }
        this.#loading.hidden = true;
        await this.#list();
    }

    /** Opens what was open, after its worker was ended. */
    async openAgain(): Promise<void> {
        if (this.#place) await this.open(this.#place);
    }

    /** The package beside the page is looked for anew each time, so that a newer one is found. */
    #remember(place: Place, { id }: Opened): void {
        const shipped = place.kind === "address" && place.address === SHIPPED;
        remember(LAST, shipped ? null : id);
    }

    #progress({ what, bytes, total }: Loading): void {
        if (total) this.#bar.value = bytes / total;
        else this.#bar.removeAttribute("value");
        const name = what === "runtime" ? "ONNX Runtime" : "The package";
        this.#text.textContent = `${name}: ${megabytes(bytes)}${total ? ` of ${megabytes(total)}` : ""}`;
    }

    #show(opened: Opened | null): void {
        this.#opened.textContent = opened
            ? `Open: ${opened.name}, a ${opened.modelType} in ${opened.precision}${opened.kept ? "." : ", not kept: this browser gives no room for it."}`
            : "No package is open.";
        const { runtime } = opened ?? {};
        this.#status.textContent = runtime
            ? `${opened!.name}, ${runtime.provider === "webgpu" ? "GPU" : `processor, ${runtime.threads} thread${runtime.threads > 1 ? "s" : ""}`}`
            : "";
        this.changed(opened);
    }

    #stop(): void {
        this.engine.restart();
        this.#loading.hidden = true;
    }

    #choose(choice: Choice): void {
        this.#choice = choice;
        remember(KERNELS, choice);
        this.engine.restart();
        void this.openAgain();
    }

    async #list(): Promise<void> {
        try {
            const kept = await this.engine.call("list", null);
            this.#kept.replaceChildren(...kept.map((one) => this.#row(one)));
            if (kept.length === 0) this.#kept.append(make("li", { textContent: "None." }));
        } catch (error) {
            showError(error);
        }
    }

    #row({ id, name, bytes }: Kept): HTMLLIElement {
        const open = make("button", { type: "button", textContent: "Open", ariaLabel: `Open ${name}` });
        open.addEventListener("click", () => void this.open({ kind: "kept", id }));
        const remove = make("button", { type: "button", textContent: "Remove", ariaLabel: `Remove ${name}` });
        remove.addEventListener("click", () => void this.#forget(id));
        return make("li", {}, make("span", { textContent: `${name}, ${megabytes(bytes)}` }), open, remove);
    }

    async #forget(id: string): Promise<void> {
        try {
            await this.engine.call("forget", { id });
        } catch (error) {
            showError(error);
        }
        await this.#list();
    }
}
