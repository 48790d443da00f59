import type { Reader } from "../json.js";
import type { Rgb } from "../pictures.js";
import { centreCrop, levelSteps, normalizationOf, normalized } from "../pixels.js";
import { resize } from "../resample.js";
import { allRows, causal, counted, wordOf, type ImageRule, type Prepared, type RuleInputs } from "./rule.js";

/** One picture as one tile of fixed size: CLIP's and SigLIP's processors. */
function square(picture: Rgb, settings: Reader): Rgb {
    let tile = picture;
    if (settings.flag("do_resize", true)) {
        const size = settings.object("size");
        const { width, height } = size.has("shortest_edge") ? shortest(picture, size) : fixed(size);
        tile = resize(tile, width, height, settings.count("resample"));
    }
    if (!settings.flag("do_center_crop", false)) return tile;
    const { width, height } = fixed(settings.object("crop_size"));
    return centreCrop(tile, width, height);
}

function fixed(size: Reader): { width: number; height: number } {
    return { width: size.count("width", undefined, 1), height: size.count("height", undefined, 1) };
}

function shortest(picture: Rgb, size: Reader): { width: number; height: number } {
    const short = size.count("shortest_edge", undefined, 1);
    const wide = picture.width > picture.height;
    const [least, most] = wide ? [picture.height, picture.width] : [picture.width, picture.height];
    const long = Math.trunc((short * most) / least);
    return wide ? { width: long, height: short } : { width: short, height: long };
}

function prepared(pictures: readonly Rgb[], settings: Reader, words: (tile: Rgb) => string): Prepared {
    const tiles = pictures.map((picture) => square(picture, settings));
    const { width, height } = tiles[0]!;
    const how = normalizationOf(settings);
    const data = normalized(tiles, how);
    return {
        pixels: { data, plane: width * height, step: levelSteps(how) },
        feeds: { pixel_values: { data, dims: [tiles.length, 3, height, width] } },
        words: tiles.map(words),
        grids: [],
        pack: allRows,
    };
}

/** LLaVA 1.5: every patch of the tile is a token. */
export function llava({ processor, images, tokenizer }: RuleInputs): ImageRule {
    const word = wordOf(tokenizer, "image_token", processor.text("image_token", "<image>"));
    const patch = processor.count("patch_size", undefined, 1);
    const cut = processor.text("vision_feature_select_strategy") === "default" ? 1 : 0;
    const more = processor.count("num_additional_image_tokens", 0) - cut;
    const tokens = (tile: Rgb) => Math.floor(tile.height / patch) * Math.floor(tile.width / patch) + more;
    return {
        placeholder: word,
        reserved: [word],
        prepare: (pictures) => prepared(pictures, images, (tile) => word.repeat(tokens(tile))),
        positions: counted,
        groups: causal,
    };
}

/** Gemma 3 without pan and scan: as many tokens for every picture, which see one another. */
export function gemma3({ processor, images, tokenizer, imageTokenId }: RuleInputs): ImageRule {
    const first = wordOf(tokenizer, "boi_token");
    const image = wordOf(tokenizer, "image_token");
    const last = wordOf(tokenizer, "eoi_token");
    const words = `\n\n${first}${image.repeat(processor.count("image_seq_length", 256, 1))}${last}\n\n`;
    return {
        placeholder: first,
        reserved: [first, image, last],
        prepare: (pictures) => prepared(pictures, images, () => words),
        positions: counted,
        groups(ids) {
            let group = -1;
            return ids.map((id, place) => {
                if (id !== imageTokenId) return -1;
                if (ids[place - 1] !== imageTokenId) group += 1;
                return group;
            });
        },
    };
}
