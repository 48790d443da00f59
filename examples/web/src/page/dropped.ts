/** What was dropped or picked: a picture, or the files of a package by their path inside it. */
import { Refusal } from "./engine.js";

const MANIFEST = "manifest.json";

/** A package's files, and what it is called. */
export interface PickedPackage {
    readonly name: string;
    readonly files: ReadonlyMap<string, Blob>;
}

/** Takes whatever is dropped anywhere on the page. */
export function takeDrops(dropped: (files: ReadonlyMap<string, File>) => void): void {
    addEventListener("dragover", (event) => {
        event.preventDefault();
        document.body.classList.add("dropping");
    });
    addEventListener("dragleave", ({ relatedTarget }) => {
        if (relatedTarget === null) document.body.classList.remove("dropping");
    });
    addEventListener("drop", (event) => {
        event.preventDefault();
        document.body.classList.remove("dropping");
        if (event.dataTransfer) void filesOf(event.dataTransfer).then(dropped);
    });
}

/** The files that a person chose, by their path in the folder that they chose. */
export function pickedFiles(files: FileList): ReadonlyMap<string, File> {
    return new Map([...files].map((file) => [file.webkitRelativePath || file.name, file]));
}

/**
 * The package among picked files: what lies in the folder of its manifest.
 *
 * A browser that picks files without folders gives bare names; the manifest says which folder each belongs in.
 *
 * @throws Refusal where there is no manifest, or there are several.
 */
export async function packageAmong(picked: ReadonlyMap<string, File>): Promise<PickedPackage> {
    const manifests = [...picked.keys()].filter((path) => path.split("/").at(-1) === MANIFEST);
    const [path] = manifests;
    if (path === undefined || manifests.length > 1) {
        throw new Refusal(
            `the files hold ${manifests.length || "no"} ${MANIFEST}${path ? "s" : ""}: give the folder of one package, whole`,
        );
    }
    const folder = path.slice(0, -MANIFEST.length);
    const files = new Map<string, Blob>();
    for (const [name, file] of picked)
        if (name.startsWith(folder)) files.set(name.slice(folder.length), file);
    if (folder === "") {
        for (const name of await namesIn(picked.get(path)!)) {
            const bare = picked.get(name.split("/").at(-1)!);
            if (bare) files.set(name, bare);
        }
    }
    return { name: folder.split("/").at(-2) ?? "the package", files };
}

/** The files that a manifest lists; none where it is no manifest, which the core says better. */
async function namesIn(manifest: Blob): Promise<readonly string[]> {
    try {
        const { files } = JSON.parse(await manifest.text()) as { files: object };
        return Object.keys(files);
    } catch {
        return [];
    }
}

/** Folders are walked; what is no entry of a file system, such as an image dragged from a page, is a file alone. */
async function filesOf(transfer: DataTransfer): Promise<ReadonlyMap<string, File>> {
    const dropped = [...transfer.items].map((item) => item.webkitGetAsEntry() ?? item.getAsFile());
    const found = new Map<string, File>();
    for (const one of dropped) {
        if (one instanceof File) found.set(one.name, one);
        else if (one) await collect(one, found);
    }
    return found;
}

async function collect(entry: FileSystemEntry, found: Map<string, File>): Promise<void> {
    if (entry instanceof FileSystemFileEntry) {
        const file = await new Promise<File>((give, fail) => entry.file(give, fail));
        found.set(entry.fullPath.slice(1), file);
    } else if (entry instanceof FileSystemDirectoryEntry) {
        const reader = entry.createReader();
        const more = () => new Promise<FileSystemEntry[]>((give, fail) => reader.readEntries(give, fail));
        for (let part = await more(); part.length; part = await more())
            for (const inside of part) await collect(inside, found);
    }
}
