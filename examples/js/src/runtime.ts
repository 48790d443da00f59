import { UserError } from "./errors.js";
import { isObject, Reader, type JsonObject } from "./json.js";
import { rulesOf, type GenerationRules } from "./rules.js";

export const RUNTIME = "runtime.json";
const SCHEMA = 2;

/** The files of one graph. */
export interface Graph {
    readonly file: string;
    readonly data: readonly string[];
}

/** What a host reads of `runtime.json` (docs/runtime.md). */
export interface RuntimeFacts {
    readonly fold: string;
    readonly scope: string;
    readonly graphs: ReadonlyMap<string, Graph>;
    readonly rules: GenerationRules;
}

/** @throws UserError where a fact is missing, or a rule of generation is not followed here. */
export function readRuntime(values: JsonObject, where: string): RuntimeFacts {
    const reader = new Reader(values, where);
    if (values["schema"] !== SCHEMA) {
        throw new UserError(
            `${where} does not follow schema ${SCHEMA}, the one that this version reads: update this program`,
        );
    }
    const graphs = reader.object("graphs");
    return {
        fold: reader.text("fold"),
        scope: reader.text("scope"),
        graphs: new Map(Object.keys(graphs.values).map((role) => [role, graphOf(graphs.object(role))])),
        rules: rulesOf(generationOf(reader), reader.numbers("eos_token_ids"), where),
    };
}

function generationOf(reader: Reader): JsonObject {
    const values = reader.values["generation"];
    if (!isObject(values)) throw reader.wrong("generation", "an object");
    return values;
}

function graphOf(graph: Reader): Graph {
    return { file: graph.text("file"), data: graph.objects("data").map((data) => data.text("file")) };
}
