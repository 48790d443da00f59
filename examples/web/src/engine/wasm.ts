import * as ort from "onnxruntime-web/wasm";
import glue from "onnxruntime-web/ort-wasm-simd-threaded.mjs?url";
import wasm from "onnxruntime-web/ort-wasm-simd-threaded.wasm?url";

export { glue, ort, wasm };
