/** The service worker: the page works without a network, and may use threads on any static host. */
const RELOADED = "reloaded-for-isolation";
const PATIENCE = 5000;

/**
 * Registers the service worker, and reloads the page once where it was loaded without the headers that threads need.
 *
 * The promise of a page that is about to reload never settles.
 */
export async function workOffline(): Promise<void> {
    if (!import.meta.env.PROD || !("serviceWorker" in navigator)) return;
    try {
        await navigator.serviceWorker.register("./sw.js");
        await controlled();
    } catch {
        return;
    }
    if (crossOriginIsolated) {
        sessionStorage.removeItem(RELOADED);
    } else if (navigator.serviceWorker.controller && !sessionStorage.getItem(RELOADED)) {
        sessionStorage.setItem(RELOADED, "yes");
        location.reload();
        await new Promise(() => {});
    }
}

/** Until the service worker answers for this page; a page that was loaded around it has none. */
async function controlled(): Promise<void> {
    if (navigator.serviceWorker.controller) return;
    await new Promise<void>((done) => {
        navigator.serviceWorker.addEventListener("controllerchange", () => done(), { once: true });
        setTimeout(done, PATIENCE);
    });
}
