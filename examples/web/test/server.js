/** A static server for tests: it counts what it sends, and can be ended in mid-visit. */
import { createReadStream, statSync } from "node:fs";
import { createServer } from "node:http";
import { extname, join, normalize } from "node:path";

const TYPES = /** @type {Record<string, string>} */ ({
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".json": "application/json",
    ".mjs": "text/javascript",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".wasm": "application/wasm",
    ".webmanifest": "application/manifest+json",
});

/**
 * Serves folders at paths: `{ "/": site, "/package/": package }`, the longest path first.
 *
 * No header of isolation is sent: that is the service worker's work.
 * @param {Record<string, string>} folders
 */
export async function serve(folders) {
    const paths = Object.keys(folders).sort((a, b) => b.length - a.length);
    /** @type {Map<string, number>} */
    const sent = new Map();
    const server = createServer((request, response) => {
        const asked = decodeURIComponent(new URL(request.url ?? "/", "http://127.0.0.1").pathname);
        const path = asked.endsWith("/") ? `${asked}index.html` : asked;
        const under = paths.find((start) => path.startsWith(start)) ?? "/";
        const file = join(folders[under] ?? "", normalize(path.slice(under.length)));
        const size = statSync(file, { throwIfNoEntry: false })?.size;
        if (size === undefined) {
            response.writeHead(404).end();
            return;
        }
        sent.set(path, (sent.get(path) ?? 0) + size);
        response.writeHead(200, {
            "content-type": TYPES[extname(file)] ?? "application/octet-stream",
            "content-length": size,
        });
        createReadStream(file).pipe(response);
    });
    await new Promise((ready) => server.listen(0, "127.0.0.1", () => ready(undefined)));
    const address = server.address();
    const port = typeof address === "object" ? address?.port : 0;
    return {
        address: `http://127.0.0.1:${port}/`,
        /** Bytes that were sent, by path. */
        sent,
        /** Ends it, and every connection. */
        async close() {
            server.closeAllConnections();
            await new Promise((done) => server.close(done));
        },
    };
}
