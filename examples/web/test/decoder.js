/** What the pictures' test bundles: the page's decoder, and the core's way to upright RGB. */
export { upright } from "@scale-export/core";
export { decode } from "../src/engine/pictures.ts";
