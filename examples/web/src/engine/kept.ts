/** Packages that this device keeps, in the origin private file system: one folder each, named by its manifest's hash. */
import { MANIFEST, Sha256, UserError, type PackageSource } from "@scale-export/core";

import type { Kept } from "../protocol.js";

const ROOT = "packages";
const FILES = "files";
const ABOUT = "about.json";

interface About {
    readonly name: string;
    /** Where the package came from; null for picked files. */
    readonly address: string | null;
}

/** A source whose files stay on this device as they are read. */
export interface KeepingSource extends PackageSource {
    readonly id: string;
    /** Whether all files that were read are kept: there may be no room for them. */
    readonly kept: boolean;
}

/**
 * A source that reads what is kept first, and keeps what it has to read from `source`.
 *
 * @throws UserError where `source` has no manifest.
 */
export async function keeping(source: PackageSource, address: string | null): Promise<KeepingSource> {
    const manifest = await source.read(MANIFEST);
    const id = new Sha256().update(manifest).hex();
    const { name = source.name, sizes } = told(manifest);
    const about: About = { name, address };
    const folder = await folderOf(id, true);
    let kept = folder !== null && (await written(folder, ABOUT, encoded(about)));
    const files = kept ? await folder!.getDirectoryHandle(FILES, { create: true }) : null;
    return {
        id,
        name: source.name,
        get kept() {
            return kept;
        },
        async read(file, progress) {
            const held = files && (await read(files, encodeURIComponent(file)));
            if (held && held.length === sizes.get(file)) {
                progress?.(held.length);
                return held;
            }
            const bytes = file === MANIFEST ? manifest : await source.read(file, progress);
            kept &&= await written(files!, encodeURIComponent(file), bytes);
            return bytes;
        },
    };
}

/**
 * A package that is kept.
 *
 * @throws UserError where it isn't.
 */
export async function keptSource(id: string): Promise<KeepingSource> {
    const folder = await folderOf(id, false);
    const about = folder && (await aboutOf(folder));
    if (!folder || !about) throw new UserError("that package is not on this device any more: load it again");
    const files = await folder.getDirectoryHandle(FILES, { create: true });
    return {
        id,
        name: about.name,
        kept: true,
        async read(file, progress) {
            const bytes = await read(files, encodeURIComponent(file));
            if (!bytes)
                throw new UserError(`${about.name} was not kept whole, ${file} is missing: load it again`);
            progress?.(bytes.length);
            return bytes;
        },
    };
}

/** The package that came from an address; null where none is kept. */
export async function keptFrom(address: string): Promise<string | null> {
    for await (const [id, about] of all()) if (about.address === address) return id;
    return null;
}

/** Every package on this device. */
export async function list(): Promise<readonly Kept[]> {
    const found: Kept[] = [];
    for await (const [id, about, folder] of all())
        found.push({ id, name: about.name, bytes: await size(folder) });
    return found;
}

/** Removes a package. */
export async function forget(id: string): Promise<void> {
    const root = await rootFolder(false);
    await root?.removeEntry(id, { recursive: true }).catch(() => {});
}

/** Removes the other packages that came from an address: it holds a newer one. */
export async function forgetOlder(address: string, newest: string): Promise<void> {
    const older: string[] = [];
    for await (const [id, about] of all()) if (about.address === address && id !== newest) older.push(id);
    for (const id of older) await forget(id);
}

async function* all(): AsyncGenerator<[string, About, FileSystemDirectoryHandle]> {
    const root = await rootFolder(false);
    if (!root) return;
    for await (const [id, folder] of root.entries()) {
        const about = folder.kind === "directory" ? await aboutOf(folder as FileSystemDirectoryHandle) : null;
        if (about) yield [id, about, folder as FileSystemDirectoryHandle];
    }
}

/** Null where the browser has no such file system, as in some private windows. */
async function rootFolder(create: boolean): Promise<FileSystemDirectoryHandle | null> {
    try {
        return await (await navigator.storage.getDirectory()).getDirectoryHandle(ROOT, { create });
    } catch {
        return null;
    }
}

async function folderOf(id: string, create: boolean): Promise<FileSystemDirectoryHandle | null> {
    const root = await rootFolder(create);
    return (await root?.getDirectoryHandle(id, { create }).catch(() => null)) ?? null;
}

async function aboutOf(folder: FileSystemDirectoryHandle): Promise<About | null> {
    const bytes = await read(folder, ABOUT);
    return bytes ? (JSON.parse(new TextDecoder().decode(bytes)) as About) : null;
}

async function size(folder: FileSystemDirectoryHandle): Promise<number> {
    let bytes = 0;
    const files = await folder.getDirectoryHandle(FILES, { create: true });
    for await (const file of files.values())
        if (file.kind === "file") bytes += (await (file as FileSystemFileHandle).getFile()).size;
    return bytes;
}

async function read(folder: FileSystemDirectoryHandle, name: string): Promise<Uint8Array | null> {
    const handle = await folder.getFileHandle(name).catch(() => null);
    return handle && new Uint8Array(await (await handle.getFile()).arrayBuffer());
}

/** Writes a file; whether there was room. A file that a closed page left unfinished has another size. */
async function written(folder: FileSystemDirectoryHandle, name: string, bytes: Uint8Array): Promise<boolean> {
    try {
        const handle = await folder.getFileHandle(name, { create: true });
        const access = await handle.createSyncAccessHandle();
        try {
            access.truncate(0);
            access.write(bytes as Uint8Array<ArrayBuffer>);
            access.flush();
        } finally {
            access.close();
        }
        return true;
    } catch {
        await folder.removeEntry(name).catch(() => {});
        return false;
    }
}

/** The package's name and its files' sizes, so that unfinished ones are read anew; the core checks the manifest. */
function told(manifest: Uint8Array): { readonly name?: string; readonly sizes: ReadonlyMap<string, number> } {
    try {
        const { name, files } = JSON.parse(new TextDecoder().decode(manifest)) as {
            name: string;
            files: Record<string, { size: number }>;
        };
        return { name, sizes: new Map(Object.entries(files).map(([file, { size }]) => [file, size])) };
    } catch {
        return { sizes: new Map() };
    }
}

function encoded(about: About): Uint8Array {
    return new TextEncoder().encode(JSON.stringify(about));
}
