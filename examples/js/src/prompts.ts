import { Template } from "@huggingface/jinja";
import { Tokenizer } from "@huggingface/tokenizers";

import { UserError } from "./errors.js";
import type { ImageRule } from "./families/rule.js";
import { isObject, type JsonObject } from "./json.js";

/** One turn of a chat; pictures come before the words. */
export interface Turn {
    readonly role: "user" | "assistant";
    readonly text: string;
    readonly pictures?: number;
}

const SPECIAL = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/** A package's chat template and tokenizer. */
export class Prompts {
    readonly #tokenizer: Tokenizer;
    readonly #template: Template;
    readonly #special: Readonly<Record<string, string>>;

    /** @throws UserError where the tokenizer's files or the template cannot be read. */
    constructor(tokenizer: JsonObject, config: JsonObject, template: string, where: string) {
        try {
            this.#tokenizer = new Tokenizer(tokenizer, config);
            this.#template = new Template(template);
        } catch (error) {
            throw new UserError(
                `the tokenizer or the chat template of ${where} cannot be read here (${String(error)}): run it from Python`,
            );
        }
        const named = SPECIAL.map((name) => [name, contentOf(config[name])]).filter(
            ([, word]) => word !== null,
        );
        this.#special = Object.fromEntries(named) as Record<string, string>;
    }

    /** The conversation as the template writes it, up to where the answer begins. */
    render(turns: readonly Turn[], rule: ImageRule): string {
        const messages = turns.map(({ role, text, pictures = 0 }) => ({
            role,
            content: [
                ...Array.from({ length: pictures }, () => ({ type: "image" })),
                { type: "text", text: said(role, text, rule.reserved) },
            ],
        }));
        try {
            return this.#template.render({ ...this.#special, messages, add_generation_prompt: true });
        } catch (error) {
            throw new UserError(
                `the package's chat template fails on this conversation (${String(error)}): run it from Python`,
            );
        }
    }

    /** Token ids of a rendered prompt, each placeholder replaced by its picture's words. */
    encode(rendered: string, placeholder: string, words: readonly string[]): number[] {
        const parts = rendered.split(placeholder);
        if (words.length && parts.length !== words.length + 1) {
            throw new UserError(
                `the package's chat template has places for ${parts.length - 1} pictures, and ${words.length} were given: give as many`,
            );
        }
        const text = parts
            .map((part, index) => part + (index + 1 < parts.length ? (words[index] ?? placeholder) : ""))
            .join("");
        const begun = this.#special["bos_token"];
        const add = begun === undefined || !rendered.startsWith(begun);
        return this.#tokenizer.encode(text, { add_special_tokens: add }).ids.map(Number);
    }

    /** The text of an answer's tokens. */
    decode(ids: readonly number[]): string {
        if (!ids.length) return "";
        return this.#tokenizer.decode([...ids], {
            skip_special_tokens: true,
            clean_up_tokenization_spaces: false,
        });
    }
}

function contentOf(value: unknown): string | null {
    if (typeof value === "string") return value;
    const content = isObject(value as JsonObject) ? (value as JsonObject)["content"] : null;
    return typeof content === "string" ? content : null;
}

/** A turn's words; an answer loses words that stand for pictures, a question with one is refused. */
function said(role: Turn["role"], text: string, reserved: readonly string[]): string {
    let kept = text;
    for (let word = find(kept, reserved); word !== undefined; word = find(kept, reserved)) {
        if (role === "user") {
            throw new UserError(
                `a question cannot hold "${word}", which stands for a picture in this model's prompts: write it in other words`,
            );
        }
        kept = kept.replaceAll(word, "");
    }
    return kept;
}

function find(text: string, words: readonly string[]): string | undefined {
    return words.find((word) => text.includes(word));
}
