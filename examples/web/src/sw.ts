/**
 * The service worker. It keeps the page and the runtime that was used, so that both come without a network, and adds the
 * headers that make the page cross-origin isolated, without which there are no threads. Packages are kept by the page.
 */
declare const self: ServiceWorkerGlobalScope;

/** Filled in by the build: the page's files, those that are kept once they were used, and a hash of them all. */
declare const SITE: {
    readonly version: string;
    readonly page: readonly string[];
    readonly used: readonly string[];
};

const PAGE = `page-${SITE.version}`;
const USED = "used";
const ISOLATION = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
};

const { scope } = self.registration;
const addresses = (names: readonly string[]) => names.map((name) => new URL(name, scope).href);
const page = new Set(addresses(SITE.page));
const used = new Set(addresses(SITE.used));

self.addEventListener("install", (event) => event.waitUntil(install()));
self.addEventListener("activate", (event) => event.waitUntil(activate()));
self.addEventListener("fetch", (event) => {
    const { request } = event;
    if (request.method === "GET" && new URL(request.url).origin === self.location.origin)
        event.respondWith(answer(request).then(isolated));
});

async function install(): Promise<void> {
    const cache = await caches.open(PAGE);
    await cache.addAll([...page].map((address) => new Request(address, { cache: "no-cache" })));
    await self.skipWaiting();
}

async function activate(): Promise<void> {
    for (const name of await caches.keys()) if (name !== PAGE && name !== USED) await caches.delete(name);
    const cache = await caches.open(USED);
    for (const request of await cache.keys()) if (!used.has(request.url)) await cache.delete(request);
    await self.clients.claim();
}

async function answer(request: Request): Promise<Response> {
    const address = new URL(request.url);
    address.search = address.hash = "";
    if (address.href === scope) address.pathname += "index.html";
    if (page.has(address.href)) {
        const cached = await (await caches.open(PAGE)).match(address.href);
        return cached ?? fetch(request);
    }
    if (!used.has(address.href)) return fetch(request);
    const cache = await caches.open(USED);
    const cached = await cache.match(address.href);
    if (cached) return cached;
    const fresh = await fetch(request);
    if (fresh.ok) await cache.put(address.href, fresh.clone());
    return fresh;
}

/** The same answer with the headers of isolation; an opaque one, or an error, has none to change. */
function isolated(response: Response): Response {
    if (response.type === "opaque" || response.type === "error" || response.type === "opaqueredirect")
        return response;
    const headers = new Headers(response.headers);
    for (const [name, value] of Object.entries(ISOLATION)) headers.set(name, value);
    const { status, statusText } = response;
    return new Response(response.body, { status, statusText, headers });
}

export {};
