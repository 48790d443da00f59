import { UserError } from "./errors.js";

/** Any JSON value. */
export type Json = null | boolean | number | string | readonly Json[] | JsonObject;
/** A JSON object. */
export interface JsonObject {
    readonly [key: string]: Json | undefined;
}

/** The object that `bytes` hold in UTF-8; `file` names it in the refusal. */
export function parseObject(bytes: Uint8Array, file: string): JsonObject {
    let value: Json;
    try {
        value = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes)) as Json;
    } catch {
        throw new UserError(`${file} is not valid JSON: export the package again`);
    }
    if (!isObject(value)) throw new UserError(`${file} is not a JSON object: export the package again`);
    return value;
}

/** Whether a value is an object, not a list and not null. */
export function isObject(value: Json | undefined): value is JsonObject {
    return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** Reads the values of one JSON object by name; each refusal says which value of which file is wrong. */
export class Reader {
    constructor(
        readonly values: JsonObject,
        readonly where: string,
    ) {}

    /** Whether the value is there and not null. */
    has(name: string): boolean {
        return this.values[name] !== undefined && this.values[name] !== null;
    }

    /** A finite number; `otherwise` where the value is missing. */
    number(name: string, otherwise?: number): number {
        const value = this.values[name] ?? otherwise;
        if (typeof value !== "number" || !Number.isFinite(value)) throw this.wrong(name, "a number");
        return value;
    }

    /** A whole number from `least` on. */
    count(name: string, otherwise?: number, least = 0): number {
        const value = this.number(name, otherwise);
        if (!Number.isInteger(value) || value < least)
            throw this.wrong(name, `a whole number from ${least} on`);
        return value;
    }

    /** True or false. */
    flag(name: string, otherwise?: boolean): boolean {
        const value = this.values[name] ?? otherwise;
        if (typeof value !== "boolean") throw this.wrong(name, "true or false");
        return value;
    }

    /** A text. */
    text(name: string, otherwise?: string): string {
        const value = this.values[name] ?? otherwise;
        if (typeof value !== "string") throw this.wrong(name, "a text");
        return value;
    }

    /** A list of finite numbers. */
    numbers(name: string, otherwise?: readonly number[]): readonly number[] {
        const value = this.values[name] ?? otherwise;
        if (!Array.isArray(value) || !value.every((item) => typeof item === "number")) {
            throw this.wrong(name, "a list of numbers");
        }
        return value as number[];
    }

    /** Rows of numbers. */
    table(name: string): readonly (readonly number[])[] {
        const value = this.values[name];
        const fits = (row: Json) => Array.isArray(row) && row.every((item) => typeof item === "number");
        if (!Array.isArray(value) || !value.every(fits)) throw this.wrong(name, "a table of numbers");
        return value as number[][];
    }

    /** A list of JSON objects. */
    objects(name: string): readonly Reader[] {
        const value = this.values[name];
        if (!Array.isArray(value) || !value.every(isObject)) throw this.wrong(name, "a list of objects");
        return value.map((item) => new Reader(item as JsonObject, `${this.where}: ${name}`));
    }

    /** A JSON object. */
    object(name: string, otherwise?: JsonObject): Reader {
        const value = this.values[name] ?? otherwise;
        if (!isObject(value)) throw this.wrong(name, "an object");
        return new Reader(value, `${this.where}: ${name}`);
    }

    /** The refusal of a value. */
    wrong(name: string, what: string): UserError {
        return new UserError(
            `${this.where} should give ${name} as ${what}, and does not: export the package again`,
        );
    }
}
