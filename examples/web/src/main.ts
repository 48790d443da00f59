import { AskView } from "./page/ask.js";
import { takeDrops } from "./page/dropped.js";
import { Engine } from "./page/engine.js";
import { showError } from "./page/errors.js";
import { workOffline } from "./page/offline.js";
import { PackageView } from "./page/package.js";
import { SelfTestView } from "./page/selftest.js";
import { showViews } from "./page/views.js";

async function main(): Promise<void> {
    showViews();
    await workOffline();
    const engine = new Engine();
    const ask = new AskView(engine);
    const packages = new PackageView(engine, (opened) => {
        ask.show(opened);
        test.show(opened);
    });
    const test = new SelfTestView(engine, () => void packages.openAgain());
    takeDrops((files) => {
        const [only] = files.values();
        if (files.size === 1 && only?.type.startsWith("image/")) {
            ask.picture.take(only);
            location.hash = "ask";
        } else void packages.take(files);
    });
    await Promise.all([ask.start(), packages.start()]);
}

main().catch(showError);
