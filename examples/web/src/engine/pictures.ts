/** Pictures as the browser decodes them, upright, with the colours that are stored. */
import { LARGEST, UserError, type Picture } from "@scale-export/core";

/** Where a PNG says what its values are, and from which number on alpha is a channel. */
const PNG_COLOUR = 25;
const PNG_ALPHA = 4;

/** @throws UserError where the browser cannot decode it, or it is too large. */
export async function decode(file: Blob, name = "the picture"): Promise<Picture> {
    const bitmap = await createImageBitmap(file, {
        premultiplyAlpha: "none",
        colorSpaceConversion: "none",
    }).catch(() => {
        throw new UserError(
            `${name} cannot be read as a picture by this browser: give a JPEG, PNG, WebP or GIF file`,
        );
    });
    try {
        const { width, height } = bitmap;
        if (width * height > LARGEST) {
            throw new UserError(
                `${name} has ${Math.round((width * height) / 1e6)} megapixels, and at most ${LARGEST / 1e6} are taken here: make it smaller first`,
            );
        }
        return { width, height, data: pixelsOf(bitmap), keyed: await keyed(file) };
    } finally {
        bitmap.close();
    }
}

/** RGBA by WebGL, which keeps colours under alpha; where there is none, by a canvas, exact for opaque pictures. */
function pixelsOf(bitmap: ImageBitmap): Uint8Array | Uint8ClampedArray {
    const { width, height } = bitmap;
    const gl = new OffscreenCanvas(1, 1).getContext("webgl2");
    if (gl && Math.max(width, height) <= (gl.getParameter(gl.MAX_TEXTURE_SIZE) as number)) {
        gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
        gl.pixelStorei(gl.UNPACK_COLORSPACE_CONVERSION_WEBGL, gl.NONE);
        gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, bitmap);
        gl.bindFramebuffer(gl.FRAMEBUFFER, gl.createFramebuffer());
        gl.framebufferTexture2D(
            gl.FRAMEBUFFER,
            gl.COLOR_ATTACHMENT0,
            gl.TEXTURE_2D,
            gl.getParameter(gl.TEXTURE_BINDING_2D) as WebGLTexture,
            0,
        );
        const data = new Uint8Array(4 * width * height);
        gl.readPixels(0, 0, width, height, gl.RGBA, gl.UNSIGNED_BYTE, data);
        const read = gl.getError() === gl.NO_ERROR;
        gl.getExtension("WEBGL_lose_context")?.loseContext();
        if (read) return data;
    }
    const canvas = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
    if (!canvas) throw new UserError("this browser cannot read pictures' pixels: use a newer one");
    canvas.drawImage(bitmap, 0, 0);
    return canvas.getImageData(0, 0, width, height).data;
}

/** Whether transparency is a colour of the file and not a channel, as in GIFs and palettes. */
async function keyed(file: Blob): Promise<boolean> {
    const head = new Uint8Array(await file.slice(0, PNG_COLOUR + 1).arrayBuffer());
    const text = String.fromCharCode(...head.subarray(0, 4));
    return text === "GIF8" || (text === "\x89PNG" && (head[PNG_COLOUR] ?? PNG_ALPHA) < PNG_ALPHA);
}
