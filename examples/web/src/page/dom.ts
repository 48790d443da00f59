/** The page's own elements, by id; a missing one is a fault of the page. */
export function byId<T extends HTMLElement>(id: string, type: new () => T): T {
    const found = document.getElementById(id);
    if (!(found instanceof type)) throw new Error(`the page has no ${type.name} #${id}`);
    return found;
}

/** A new element with text, and attributes or listeners by property. */
export function make<K extends keyof HTMLElementTagNameMap>(
    tag: K,
    properties: Partial<HTMLElementTagNameMap[K]> = {},
    ...children: Node[]
): HTMLElementTagNameMap[K] {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
}

/** Bytes for people. */
export function megabytes(bytes: number): string {
    return `${(bytes / 1e6).toFixed(1)} MB`;
}
