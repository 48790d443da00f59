import { UserError } from "../errors.js";
import { qwen } from "./qwen.js";
import type { ImageRule, RuleInputs } from "./rule.js";
import { gemma3, llava } from "./squares.js";
import { idefics3, internvl } from "./tiles.js";

interface Family {
    /** Image processors, by Hugging Face's names, whose arithmetic is done here. */
    readonly processors: readonly string[];
    readonly rule: (inputs: RuleInputs) => ImageRule;
    /** Settings that change a picture and are not done here → the values that do nothing. */
    readonly idle?: Readonly<Record<string, unknown>>;
}

const CLIP = ["CLIPImageProcessor", "SiglipImageProcessor"];
const QWEN: Family = { processors: ["Qwen2VLImageProcessor"], rule: qwen };

/** The families whose pictures are prepared here, by the manifest's `model_type`. */
export const FAMILIES: Readonly<Record<string, Family>> = {
    llava: { processors: CLIP, rule: llava, idle: { do_pad: false } },
    gemma3: { processors: ["Gemma3ImageProcessor"], rule: gemma3, idle: { do_pan_and_scan: false } },
    idefics3: { processors: ["Idefics3ImageProcessor"], rule: idefics3 },
    smolvlm: { processors: ["SmolVLMImageProcessor"], rule: idefics3 },
    internvl: { processors: ["GotOcr2ImageProcessor"], rule: internvl },
    qwen2_vl: QWEN,
    qwen2_5_vl: QWEN,
    qwen3_vl: QWEN,
};

/**
 * How pictures and positions enter a model.
 *
 * @throws UserError naming a family, an image processor or a setting that is not done here.
 */
export function imageRule(inputs: RuleInputs, generic: boolean): ImageRule {
    const known = Object.keys(FAMILIES).join(", ");
    const family = generic ? undefined : FAMILIES[inputs.modelType];
    if (!family) {
        throw new UserError(
            `this package is of the family ${inputs.modelType}, whose pictures are not prepared here (only those of ${known}): run it from Python`,
        );
    }
    const name = inputs.images.text("image_processor_type", family.processors[0]).replace(/(Fast|Pil)$/, "");
    if (!family.processors.includes(name)) {
        throw new UserError(
            `this package's pictures are prepared by ${name}, which is not done here: run it from Python`,
        );
    }
    for (const [setting, idle] of Object.entries(family.idle ?? {})) {
        if ((inputs.images.values[setting] ?? idle) !== idle) {
            throw new UserError(
                `this package's image processor sets ${setting}, which is not done here: run it from Python`,
            );
        }
    }
    return family.rule(inputs);
}
