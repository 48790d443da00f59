import { fileURLToPath } from "node:url";

import { defineConfig } from "vite";

import { precache } from "./precache.ts";

const here = (name: string) => fileURLToPath(new URL(name, import.meta.url));
/** What threads need; the service worker gives them where a server doesn't. */
const isolation = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
};

export default defineConfig({
    base: "./",
    // A file that is not there is an error, never the page in its place.
    appType: "mpa",
    plugins: [precache()],
    resolve: { conditions: ["onnxruntime-web-use-extern-wasm", "module", "browser", "import", "default"] },
    worker: { format: "es" },
    server: { headers: isolation },
    build: {
        target: "es2022",
        assetsInlineLimit: 0,
        modulePreload: { polyfill: false },
        rolldownOptions: {
            input: { page: here("index.html"), sw: here("src/sw.ts") },
            output: {
                entryFileNames: ({ name }) => (name === "sw" ? "sw.js" : "assets/[name]-[hash].js"),
                assetFileNames: "assets/[name]-[hash][extname]",
            },
        },
    },
});
