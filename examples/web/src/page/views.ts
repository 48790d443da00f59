/** Which view is shown: the one that the address names, or the first. */
export function showViews(): void {
    const links = [...document.querySelectorAll<HTMLAnchorElement>("nav a")];
    const views = [...document.querySelectorAll<HTMLElement>(".view")];
    const show = () => {
        const named = views.find((view) => `#${view.id}` === location.hash) ?? views[0];
        for (const view of views) view.hidden = view !== named;
        for (const link of links) {
            if (link.hash === `#${named?.id}`) link.setAttribute("aria-current", "page");
            else link.removeAttribute("aria-current");
        }
        scrollTo({ top: 0 });
    };
    addEventListener("hashchange", show);
    show();
}
