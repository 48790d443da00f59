import { UserError } from "./errors.js";
import { Reader, type JsonObject } from "./json.js";

/** How the next token of a greedy answer is chosen, by the names of transformers' `GenerationConfig`. */
export interface GenerationRules {
    readonly endTokens: readonly number[];
    readonly repetitionPenalty: number;
    readonly noRepeatNgramSize: number;
    readonly badWords: readonly (readonly number[])[];
    readonly minLength: number;
    readonly minNewTokens: number;
    readonly suppressTokens: readonly number[];
    readonly beginSuppressTokens: readonly number[];
}

const KNOWN = [
    "repetition_penalty",
    "no_repeat_ngram_size",
    "bad_words_ids",
    "min_length",
    "min_new_tokens",
    "suppress_tokens",
    "begin_suppress_tokens",
];

/**
 * The rules that a package states: those that act beside its end tokens.
 *
 * @throws UserError for a rule that is not followed here, a value that is none, or no end token.
 */
export function rulesOf(values: JsonObject, endTokens: readonly number[], where: string): GenerationRules {
    const unknown = Object.keys(values).find((name) => !KNOWN.includes(name));
    if (unknown)
        throw new UserError(
            `${where} asks for the rule ${unknown}, which is not followed here: update this program`,
        );
    if (!endTokens.length) throw new UserError(`${where} names no end token: export the package again`);
    const reader = new Reader(values, where);
    const words = values["bad_words_ids"] === undefined ? [] : reader.table("bad_words_ids");
    return {
        endTokens,
        repetitionPenalty: reader.number("repetition_penalty", 1),
        noRepeatNgramSize: reader.count("no_repeat_ngram_size", 0),
        badWords: words,
        minLength: reader.count("min_length", 0),
        minNewTokens: reader.count("min_new_tokens", 0),
        suppressTokens: reader.numbers("suppress_tokens", []),
        beginSuppressTokens: reader.numbers("begin_suppress_tokens", []),
    };
}

/** The next token after `prompt` and the `answer` so far, by the raw logits, which stay as they are. */
export function chooseToken(
    rules: GenerationRules,
    logits: Float32Array,
    prompt: readonly number[],
    answer: readonly number[],
): number {
    const said = [...prompt, ...answer];
    const scores = logits.slice();
    if (rules.repetitionPenalty !== 1) {
        const penalty = Math.fround(rules.repetitionPenalty);
        for (const token of new Set(said)) {
            const value = scores[token]!;
            scores[token] = value < 0 ? value * penalty : value / penalty;
        }
    }
    const banned = [...rules.suppressTokens, ...repeating(said, rules.noRepeatNgramSize)];
    for (const word of rules.badWords) if (endsWith(said, word.slice(0, -1))) banned.push(word.at(-1)!);
    if (!answer.length) banned.push(...rules.beginSuppressTokens);
    if (said.length < rules.minLength || answer.length < rules.minNewTokens) banned.push(...rules.endTokens);
    for (const token of banned) if (token >= 0 && token < scores.length) scores[token] = -Infinity;
    let best = 0;
    for (let token = 1; token < scores.length; token++) if (scores[token]! > scores[best]!) best = token;
    return best;
}

/** The tokens that would complete a sequence of `size` tokens a second time. */
function repeating(said: readonly number[], size: number): number[] {
    if (size === 0 || said.length < size) return [];
    const begun = said.slice(said.length - size + 1);
    const found: number[] = [];
    for (let start = 0; start + size <= said.length; start++) {
        if (begun.every((token, index) => said[start + index] === token)) found.push(said[start + size - 1]!);
    }
    return found;
}

function endsWith(said: readonly number[], word: readonly number[]): boolean {
    const start = said.length - word.length;
    return start >= 0 && word.every((token, index) => said[start + index] === token);
}
