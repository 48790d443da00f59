/** Small things that the page remembers from visit to visit; a browser that keeps nothing remembers none. */

/** What was remembered; null for nothing. */
export function recall(key: string): string | null {
    try {
        return localStorage.getItem(key);
    } catch {
        return null;
    }
}

/** Remembers a text; null forgets it. */
export function remember(key: string, text: string | null): void {
    try {
        if (text === null) localStorage.removeItem(key);
        else localStorage.setItem(key, text);
    } catch {
        // Nothing is kept then, and nothing depends on it.
    }
}
