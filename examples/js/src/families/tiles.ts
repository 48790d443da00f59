import type { Rgb } from "../pictures.js";
import { crop, levelSteps, normalizationOf, normalized } from "../pixels.js";
import { resize } from "../resample.js";
import { allRows, causal, counted, wordOf, type ImageRule, type Prepared, type RuleInputs } from "./rule.js";

/** A picture's tiles, and the rows and columns in which they lie; 0 where it was not cut. */
interface Tiled {
    readonly tiles: readonly Rgb[];
    readonly rows: number;
    readonly columns: number;
}

/** The tiles of a picture that fills a grid of them, row by row. */
function cut(picture: Rgb, rows: number, columns: number, width: number, height: number): Rgb[] {
    return Array.from({ length: rows * columns }, (_, tile) =>
        crop(picture, (tile % columns) * width, Math.floor(tile / columns) * height, width, height),
    );
}

/** The pictures as the vision graph takes them: all tiles, one after the other. */
function prepared(
    pictures: readonly Tiled[],
    { images }: RuleInputs,
    words: (picture: Tiled) => string,
): Prepared {
    const tiles = pictures.flatMap((picture) => picture.tiles);
    const { width, height } = tiles[0]!;
    const how = normalizationOf(images);
    const data = normalized(tiles, how);
    return {
        pixels: { data, plane: width * height, step: levelSteps(how) },
        feeds: { pixel_values: { data, dims: [tiles.length, 3, height, width] } },
        words: pictures.map(words),
        grids: [],
        pack: allRows,
    };
}

/** Idefics3's and SmolVLM's: the longest edge, then both edges made whole tiles, the whole picture last. */
function idefics3Tiles(picture: Rgb, { images }: RuleInputs): Tiled {
    const filter = images.count("resample", 1);
    const side = images.object("max_image_size").count("longest_edge", undefined, 1);
    let whole = picture;
    if (images.flag("do_resize", true)) {
        const { width, height } = longest(picture, images.object("size").count("longest_edge", undefined, 1));
        whole = resize(picture, width, height, filter);
    }
    if (!images.flag("do_image_splitting", true)) {
        return { tiles: [resize(whole, side, side, filter)], rows: 0, columns: 0 };
    }
    const ratio = whole.width / whole.height;
    const filled = (edge: number) => Math.ceil(edge / side) * side;
    let { width, height } = whole;
    if (width >= height) {
        width = filled(width);
        height = filled(Math.trunc(width / ratio));
    } else {
        height = filled(height);
        width = filled(Math.trunc(height * ratio));
    }
    const full = resize(whole, width, height, filter);
    if (height <= side && width <= side) return { tiles: [full], rows: 0, columns: 0 };
    const [rows, columns] = [height / side, width / side];
    const tiles = [...cut(full, rows, columns, side, side), resize(full, side, side, filter)];
    return { tiles, rows, columns };
}

/** No edge of a picture becomes longer, whatever its settings say. */
const LONGEST = 4096;

function longest(picture: Rgb, edge: number): { width: number; height: number } {
    const ratio = picture.width / picture.height;
    const even = (length: number) => Math.max(1, length + (length % 2));
    const wide = picture.width >= picture.height;
    let [width, height] = wide
        ? [edge, even(Math.trunc(edge / ratio))]
        : [even(Math.trunc(edge * ratio)), edge];
    const narrowed = width / height;
    if (width >= height && width > LONGEST) {
        [width, height] = [LONGEST, Math.max(1, Math.trunc(LONGEST / narrowed))];
    } else if (height > width && height > LONGEST) {
        [width, height] = [Math.max(1, Math.trunc(LONGEST * narrowed)), LONGEST];
    }
    return { width, height };
}

/** Idefics3 and SmolVLM: each tile's place is named in the prompt. */
export function idefics3(inputs: RuleInputs): ImageRule {
    const { processor, tokenizer, modelType } = inputs;
    const own = modelType === "smolvlm";
    const named = (name: string, otherwise: string) => (own ? wordOf(tokenizer, name, otherwise) : otherwise);
    const image = named("image_token", "<image>");
    const around = named("fake_image_token", "<fake_token_around_image>");
    const global = named("global_image_token", "<global-img>");
    const tokens = image.repeat(processor.count("image_seq_len", 169, 1));
    const words = ({ rows, columns }: Tiled) => {
        let text = "";
        for (let row = 1; row <= rows; row++) {
            for (let column = 1; column <= columns; column++)
                text += `${around}<row_${row}_col_${column}>${tokens}`;
            text += "\n";
        }
        return `${text}${rows ? "\n" : ""}${around}${global}${tokens}${around}`;
    };
    return {
        placeholder: image,
        reserved: [image, around, global],
        prepare: (pictures) =>
            prepared(
                pictures.map((picture) => idefics3Tiles(picture, inputs)),
                inputs,
                words,
            ),
        positions: counted,
        groups: causal,
    };
}

/** The grid of tiles whose shape is nearest to a picture's: of equally near ones the larger, if the picture fills half of it. */
function nearestGrid(picture: Rgb, side: { width: number; height: number }, least: number, most: number) {
    const grids = [];
    for (let columns = 1; columns <= most; columns++) {
        for (let rows = 1; rows <= most; rows++) {
            if (rows * columns >= least && rows * columns <= most) grids.push({ columns, rows });
        }
    }
    grids.sort((a, b) => a.columns * a.rows - b.columns * b.rows);
    const ratio = picture.width / picture.height;
    let best = { columns: 1, rows: 1 };
    let off = Infinity;
    for (const grid of grids) {
        const found = Math.abs(ratio - grid.columns / grid.rows);
        const area = 0.5 * side.width * side.height * grid.columns * grid.rows;
        if (found < off || (found === off && picture.width * picture.height > area)) best = grid;
        off = Math.min(off, found);
    }
    return best;
}

/** InternVL: the tiles of the nearest grid, then the whole picture where there are several. */
export function internvl(inputs: RuleInputs): ImageRule {
    const { processor, images, tokenizer } = inputs;
    const first = wordOf(tokenizer, "start_image_token");
    const last = wordOf(tokenizer, "end_image_token");
    const image = wordOf(tokenizer, "context_image_token");
    const tokens = processor.count("image_seq_length", 256, 1);
    const filter = images.count("resample", 3);
    const size = images.object("size");
    const side = { width: size.count("width", undefined, 1), height: size.count("height", undefined, 1) };
    const most = images.count("max_patches", 12, 1);
    const tiled = (picture: Rgb): Tiled => {
        const whole = () => resize(picture, side.width, side.height, filter);
        if (most === 1) return { tiles: [whole()], rows: 1, columns: 1 };
        const { rows, columns } = nearestGrid(picture, side, images.count("min_patches", 1), most);
        const full = resize(picture, columns * side.width, rows * side.height, filter);
        const tiles = cut(full, rows, columns, side.width, side.height);
        return { tiles: tiles.length > 1 ? [...tiles, whole()] : tiles, rows, columns };
    };
    const words = ({ tiles }: Tiled) => `${first}${image.repeat(tokens * tiles.length)}${last}`;
    return {
        placeholder: image,
        reserved: [image, first, last, wordOf(tokenizer, "video_token", "<video>")],
        prepare: (pictures) => prepared(pictures.map(tiled), inputs, words),
        positions: counted,
        groups: causal,
    };
}
