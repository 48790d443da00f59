/** The picture that is asked about: chosen, photographed, pasted, dropped, or a shipped scene. */
import { byId, make } from "./dom.js";
import { addressOf, type Scene } from "./scenes.js";

export interface Chosen {
    readonly blob: Blob;
    readonly scene: Scene | null;
}

/** Pictures with so few pixels are drawn with sharp edges. */
const SMALL = 256;

export class PictureChoice {
    #chosen: Chosen | null = null;
    readonly #stage = byId("stage", HTMLElement);
    readonly #shown = byId("shown", HTMLImageElement);
    readonly #caption = byId("caption", HTMLElement);
    readonly #clear = byId("clear", HTMLButtonElement);
    readonly #buttons = new Map<Scene, HTMLButtonElement>();

    /** @param changed is told whenever another picture is chosen, or none. */
    constructor(private readonly changed: (chosen: Chosen | null) => void) {
        for (const id of ["pick", "camera"]) {
            const input = byId(id, HTMLInputElement);
            input.addEventListener("change", () => {
                const [file] = input.files ?? [];
                if (file) this.take(file);
                input.value = "";
            });
        }
        addEventListener("paste", ({ clipboardData }) => {
            const file = [...(clipboardData?.files ?? [])].find(({ type }) => type.startsWith("image/"));
            if (file) this.take(file);
        });
        this.#clear.addEventListener("click", () => {
            this.#show(null, "Drop a picture here, or choose one.");
            byId("pick", HTMLInputElement).focus();
        });
        this.#shown.addEventListener("load", () => {
            const { naturalWidth, naturalHeight } = this.#shown;
            this.#shown.classList.toggle("small", Math.max(naturalWidth, naturalHeight) <= SMALL);
        });
    }

    get chosen(): Chosen | null {
        return this.#chosen;
    }

    /** Takes a person's own picture. */
    take(file: File): void {
        this.#show({ blob: file, scene: null }, file.name);
    }

    /** Takes a shipped scene. */
    async takeScene(scene: Scene): Promise<void> {
        const blob = await (await fetch(addressOf(scene))).blob();
        this.#show({ blob, scene }, scene.describes);
    }

    /** Offers shipped scenes. */
    offer(scenes: readonly Scene[]): void {
        const strip = document.querySelector("#scenes .strip")!;
        for (const scene of scenes) {
            const button = make(
                "button",
                { type: "button", ariaPressed: "false" },
                make("img", { src: addressOf(scene), alt: scene.describes }),
            );
            button.addEventListener("click", () => void this.takeScene(scene));
            this.#buttons.set(scene, button);
            strip.append(button);
        }
        byId("scenes", HTMLFieldSetElement).hidden = scenes.length === 0;
    }

    #show(chosen: Chosen | null, describes: string): void {
        this.#chosen = chosen;
        URL.revokeObjectURL(this.#shown.src);
        if (chosen) {
            this.#shown.src = URL.createObjectURL(chosen.blob);
            this.#shown.alt = `The picture: ${describes}`;
        } else {
            this.#shown.removeAttribute("src");
        }
        this.#shown.hidden = this.#clear.hidden = chosen === null;
        this.#stage.classList.toggle("filled", chosen !== null);
        this.#caption.textContent = describes;
        for (const [scene, button] of this.#buttons) button.ariaPressed = String(scene === chosen?.scene);
        this.changed(chosen);
    }
}
