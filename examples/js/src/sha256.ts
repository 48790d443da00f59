import { UserError } from "./errors.js";

const K = new Uint32Array(64);
const START = new Uint32Array(8);

/** The first 32 bits of the fractional part of a root. */
function fraction(root: number): number {
    return ((root - Math.floor(root)) * 2 ** 32) >>> 0;
}

function fillConstants(): void {
    let found = 0;
    for (let candidate = 2; found < 64; candidate++) {
        let prime = true;
        for (let divisor = 2; divisor * divisor <= candidate; divisor++) prime &&= candidate % divisor !== 0;
        if (!prime) continue;
        if (found < 8) START[found] = fraction(Math.sqrt(candidate));
        K[found++] = fraction(Math.cbrt(candidate));
    }
}
fillConstants();

/** SHA-256 (FIPS 180-4) piece by piece, for hosts without WebCrypto: a page that was opened by plain http. */
export class Sha256 {
    readonly #state = START.slice();
    readonly #block = new Uint8Array(64);
    readonly #schedule = new Uint32Array(64);
    #filled = 0;
    #bytes = 0;

    /** Takes more bytes. */
    update(bytes: Uint8Array): this {
        this.#bytes += bytes.length;
        let at = 0;
        while (at < bytes.length) {
            const taken = Math.min(64 - this.#filled, bytes.length - at);
            this.#block.set(bytes.subarray(at, at + taken), this.#filled);
            this.#filled += taken;
            at += taken;
            if (this.#filled === 64) this.#compress();
        }
        return this;
    }

    /** The hash in lower-case hexadecimal; nothing can be added afterwards. */
    hex(): string {
        const bits = this.#bytes * 8;
        this.update(Uint8Array.of(0x80));
        while (this.#filled !== 56) this.update(Uint8Array.of(0));
        const length = new DataView(new ArrayBuffer(8));
        length.setUint32(0, Math.floor(bits / 2 ** 32));
        length.setUint32(4, bits >>> 0);
        this.update(new Uint8Array(length.buffer));
        return Array.from(this.#state, (word) => word.toString(16).padStart(8, "0")).join("");
    }

    #compress(): void {
        const w = this.#schedule;
        const view = new DataView(this.#block.buffer);
        for (let t = 0; t < 16; t++) w[t] = view.getUint32(4 * t);
        for (let t = 16; t < 64; t++) {
            const early = w[t - 15]!;
            const late = w[t - 2]!;
            const small = turn(early, 7) ^ turn(early, 18) ^ (early >>> 3);
            const large = turn(late, 17) ^ turn(late, 19) ^ (late >>> 10);
            w[t] = (w[t - 16]! + small + w[t - 7]! + large) | 0;
        }
        let [a, b, c, d, e, f, g, h] = this.#state as unknown as [
            number,
            number,
            number,
            number,
            number,
            number,
            number,
            number,
        ];
        for (let t = 0; t < 64; t++) {
            const first =
                (h + (turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)) + ((e & f) ^ (~e & g)) + K[t]! + w[t]!) | 0;
            const second = ((turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) + ((a & b) ^ (a & c) ^ (b & c))) | 0;
            [h, g, f, e, d, c, b, a] = [g, f, e, (d + first) | 0, c, b, a, (first + second) | 0];
        }
        [a, b, c, d, e, f, g, h].forEach(
            (word, index) => (this.#state[index] = (this.#state[index]! + word) | 0),
        );
        this.#filled = 0;
    }
}

function turn(word: number, bits: number): number {
    return (word >>> bits) | (word << (32 - bits));
}

/** The SHA-256 of bytes in lower-case hexadecimal: by WebCrypto where the host has it. */
export async function sha256(bytes: Uint8Array): Promise<string> {
    const subtle = globalThis.crypto?.subtle;
    if (!subtle) return new Sha256().update(bytes).hex();
    try {
        const digest = await subtle.digest("SHA-256", bytes as Uint8Array<ArrayBuffer>);
        return Array.from(new Uint8Array(digest), (byte) => byte.toString(16).padStart(2, "0")).join("");
    } catch {
        throw new UserError(
            `there is no memory to check a file of ${bytes.length} bytes: close other pages and apps`,
        );
    }
}
