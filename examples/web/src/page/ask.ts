/** The view that asks: picture, question, strength, answers. */
import type { Opened } from "../protocol.js";
import { AnswerCard } from "./answers.js";
import { byId, make } from "./dom.js";
import type { Engine } from "./engine.js";
import { clearError, showError } from "./errors.js";
import { PictureChoice, type Chosen } from "./picture.js";
import { loadScenes, rightAnswer } from "./scenes.js";
import { StrengthChoice } from "./strength.js";

export class AskView {
    readonly picture = new PictureChoice((chosen) => this.#suggest(chosen));
    readonly #strength = new StrengthChoice(() => this.#askAgain());
    readonly #form = byId("form", HTMLFormElement);
    readonly #question = byId("question", HTMLInputElement);
    readonly #send = byId("send", HTMLButtonElement);
    readonly #stop = byId("stop", HTMLButtonElement);
    readonly #suggestions = byId("suggestions", HTMLUListElement);
    readonly #answers = byId("answers", HTMLDivElement);
    #running: AbortController | null = null;
    /** What the answers that are shown were asked. */
    #asked: { readonly question: string; readonly chosen: Chosen | null } | null = null;

    constructor(private readonly engine: Engine) {
        this.#form.addEventListener("submit", (event) => {
            event.preventDefault();
            void this.#ask(this.#question.value.trim(), this.picture.chosen);
        });
        this.#stop.addEventListener("click", () => this.#running?.abort());
    }

    /** Offers the shipped scenes, and shows the first. */
    async start(): Promise<void> {
        const scenes = await loadScenes();
        this.picture.offer(scenes);
        const [first] = scenes;
        if (!first || this.picture.chosen) return;
        await this.picture.takeScene(first);
        this.#question.value = first.questions[0]?.question ?? "";
    }

    /** A package was opened, or closed. */
    show(opened: Opened | null): void {
        this.#running?.abort();
        this.#send.disabled = opened === null;
        this.#asked = null;
        this.#answers.replaceChildren();
        this.#strength.allow(opened?.adjustable ?? true);
    }

    #suggest(chosen: Chosen | null): void {
        const known = chosen?.scene?.questions ?? [];
        this.#suggestions.replaceChildren(
            ...known.map(({ question }) => {
                const button = make("button", { type: "button", textContent: question });
                button.addEventListener("click", () => {
                    this.#question.value = question;
                    if (!this.#send.disabled) this.#form.requestSubmit();
                });
                return make("li", {}, button);
            }),
        );
        this.#suggestions.hidden = known.length === 0;
    }

    #askAgain(): void {
        if (this.#asked) void this.#ask(this.#asked.question, this.#asked.chosen);
    }

    async #ask(question: string, chosen: Chosen | null): Promise<void> {
        if (!question) return;
        this.#running?.abort();
        const running = (this.#running = new AbortController());
        this.#asked = { question, chosen };
        clearError();
        this.#stop.hidden = false;
        const right = rightAnswer(chosen?.scene ?? null, question);
        const asked = this.#strength.chosen.map((strength) => ({
            strength,
            card: new AnswerCard(strength, right),
        }));
        this.#answers.replaceChildren(...asked.map(({ card }) => card.element));
        this.#answers.ariaBusy = "true";
        this.#answers.scrollIntoView({ block: "nearest" });
        for (const { strength, card } of asked) {
            if (running.signal.aborted) card.fail();
            else
                await this.#fill(card, { question, picture: chosen?.blob ?? null, strength }, running.signal);
        }
        if (running !== this.#running) return;
        this.#running = null;
        this.#answers.ariaBusy = "false";
        this.#stop.hidden = true;
    }

    async #fill(
        card: AnswerCard,
        asked: { readonly question: string; readonly picture: Blob | null; readonly strength: number },
        signal: AbortSignal,
    ): Promise<void> {
        try {
            card.end(await this.engine.call("ask", asked, (piece) => card.add(piece), signal));
        } catch (error) {
            card.fail();
            showError(error);
        }
    }
}
