const SCRATCH = new DataView(new ArrayBuffer(4));

/** The bits of a float16, rounded to the nearest, ties to even. */
function toHalf(value: number): number {
    SCRATCH.setFloat32(0, value);
    const bits = SCRATCH.getUint32(0);
    const sign = (bits >>> 16) & 0x8000;
    const size = Math.abs(value);
    if (Number.isNaN(value)) return sign | 0x7e00;
    if (size >= 65520) return sign | 0x7c00;
    const exponent = Math.max(-14, ((bits >>> 23) & 0xff) - 127);
    const scaled = (size / 2 ** exponent) * 1024;
    const below = Math.floor(scaled);
    const part = scaled - below;
    const mantissa = below + (part > 0.5 || (part === 0.5 && below % 2 === 1) ? 1 : 0);
    return sign | (mantissa + ((exponent + 14) << 10));
}

function fromHalf(bits: number): number {
    const sign = bits & 0x8000 ? -1 : 1;
    const exponent = (bits >>> 10) & 0x1f;
    const mantissa = bits & 0x3ff;
    if (exponent === 0x1f) return mantissa ? NaN : sign * Infinity;
    return exponent ? sign * (1 + mantissa / 1024) * 2 ** (exponent - 15) : sign * mantissa * 2 ** -24;
}

/** float32 values in 16 bits each. */
export function halves(values: Float32Array): Uint16Array {
    return Uint16Array.from(values, toHalf);
}

/** What 16-bit values say: bits in a `Uint16Array`, or the host's own `Float16Array`. */
export function singles(values: ArrayLike<number>): Float32Array {
    return values instanceof Uint16Array ? Float32Array.from(values, fromHalf) : Float32Array.from(values);
}
