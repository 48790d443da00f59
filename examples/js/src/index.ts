export type { Ort, RuntimeOptions } from "./engine.js";
export { ContextFull, UserError } from "./errors.js";
export { FAMILIES } from "./families/index.js";
export { MANIFEST, PackageFiles, type FileEntry, type Manifest, type Progress } from "./manifest.js";
export {
    AnswerStream,
    openPackage,
    Package,
    type AnswerOptions,
    type PreparedPrompt,
    type Stopped,
} from "./package.js";
export { LARGEST, upright, type Picture, type Rgb } from "./pictures.js";
export type { Turn } from "./prompts.js";
export { resize } from "./resample.js";
export { Sha256 } from "./sha256.js";
export { filesSource, urlSource, type PackageSource } from "./source.js";
export {
    selfTest,
    type CaseResult,
    type DeviceResult,
    type Host,
    type SelftestOptions,
    type SelftestOutcome,
} from "./selftest.js";
export { VERSION } from "./version.js";
