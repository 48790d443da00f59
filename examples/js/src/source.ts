import { UserError } from "./errors.js";

/** Where a package's files come from. */
export interface PackageSource {
    /** What errors call the package: its folder's name or its address. */
    readonly name: string;
    /**
     * The bytes of a file, by its path inside the package with `/` between the parts.
     *
     * @param progress is told how many bytes have come so far.
     * @throws UserError where there is no such file, or it cannot be read.
     */
    read(file: string, progress?: (bytes: number) => void): Promise<Uint8Array>;
}

/** A package on a web server: `address` is its folder's. */
export function urlSource(address: string, fetcher: typeof fetch = globalThis.fetch): PackageSource {
    const folder = address.endsWith("/") ? address : `${address}/`;
    return {
        name: address,
        async read(file, progress) {
            let answer: Response;
            try {
                answer = await fetcher(folder + file.split("/").map(encodeURIComponent).join("/"));
            } catch {
                throw new UserError(
                    `${folder}${file} cannot be fetched: check the address and the connection`,
                );
            }
            if (!answer.ok) {
                throw new UserError(
                    `${folder}${file} cannot be fetched (${answer.status}): give a package's folder`,
                );
            }
            return received(answer, progress);
        },
    };
}

async function received(answer: Response, progress?: (bytes: number) => void): Promise<Uint8Array> {
    if (!answer.body || !progress) return new Uint8Array(await answer.arrayBuffer());
    const pieces: Uint8Array[] = [];
    let bytes = 0;
    const reader = answer.body.getReader();
    for (let next = await reader.read(); !next.done; next = await reader.read()) {
        pieces.push(next.value);
        progress((bytes += next.value.length));
    }
    const whole = new Uint8Array(bytes);
    let at = 0;
    for (const piece of pieces) {
        whole.set(piece, at);
        at += piece.length;
    }
    return whole;
}

/** A package from files that are at hand: picked or dropped ones, by their path inside the package. */
export function filesSource(
    files: ReadonlyMap<string, Blob | Uint8Array>,
    name = "the package",
): PackageSource {
    return {
        name,
        async read(file, progress) {
            const found = files.get(file);
            if (!found) throw new UserError(`${name} lacks the file ${file}: give all files of a package`);
            const bytes = found instanceof Uint8Array ? found : new Uint8Array(await found.arrayBuffer());
            progress?.(bytes.length);
            return bytes;
        },
    };
}
