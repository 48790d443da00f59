"""The image facts of ``runtime.json``: every family's give its processor's pixels, and wrong ones fail."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from scale_export.backends.onnxruntime.host import image_facts
from scale_export.core.huggingface import Processor
from scale_export.core.limits import FACT_LEVELS, PIXEL_LEVELS
from scale_export.device.onnxruntime.host import FILE, ImageFacts
from scale_export.families import resolve_family
from scale_export.proof import by_facts
from scale_export.proof.image_facts import SUBJECT, facts_error, largest_error, not_read, shapes
from scale_export.proof.report import ParityReport
from tests.helpers import parity as made
from tests.helpers.models import FAMILIES, INTERNVL_SIDE, VIPLLAVA, Recipe

WIDE = [[48, 96], [48, 144], [96, 96]]
"""LLaVA-NeXT's grids, height and width: none of them taller than wide."""
READ = sorted(set(FAMILIES) - {"deepseek_vl"})
ONE_OF_EACH = ("llava", "llava_next", "llava_onevision", "idefics3", "internvl", "qwen2_vl", "mistral3")
"""A family for each rule."""

Change = Callable[[ImageFacts], Mapping[str, object]]


def stated(recipe: Recipe) -> tuple[ImageFacts, Processor, int]:
    """The facts of a package of that family, its processor and its image token."""
    config, processor = recipe.prepared()
    family = resolve_family(recipe.family or recipe.model_type)
    token = family.image_token_id(config)
    base: Any = SimpleNamespace(processor=processor, family=family, image_token_id=token)
    return image_facts(base), processor, token


@functools.cache
def known(family: str) -> tuple[ImageFacts, Processor, int]:
    return stated(FAMILIES[family])


def error_of(family: str, **changes: object) -> float:
    facts, processor, token = known(family)
    return largest_error(facts.model_copy(update=changes), processor, token).value


@pytest.mark.parametrize("family", READ)
def test_every_familys_facts_give_its_processors_pixels_and_tokens(family: str) -> None:
    facts, processor, token = known(family)
    assert not_read(facts, processor) is None
    assert largest_error(facts, processor, token).passed


def test_a_family_without_a_file_too() -> None:
    assert largest_error(*stated(VIPLLAVA)).passed


def test_a_picture_is_read_by_every_rule() -> None:
    assert {known(family)[0].rule for family in ONE_OF_EACH} == set(by_facts._RULES)


@pytest.mark.parametrize("family", ONE_OF_EACH)
def test_a_mean_that_is_off_by_one_level_fails(family: str) -> None:
    normalize = known(family)[0].normalize
    assert normalize is not None
    for channel in range(3):
        mean = [value + (place == channel) / 255 for place, value in enumerate(normalize.mean)]
        wrong = error_of(family, normalize=normalize.model_copy(update={"mean": tuple(mean)}))
        assert FACT_LEVELS < wrong < PIXEL_LEVELS + 0.1


@pytest.mark.parametrize("family", ONE_OF_EACH)
@pytest.mark.parametrize("name", ["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"])
def test_another_resampling_fails(family: str, name: str) -> None:
    resize = known(family)[0].resize
    assert resize is not None
    if name != resize.filter:
        assert error_of(family, resize=resize.model_copy(update={"filter": name})) > PIXEL_LEVELS


@pytest.mark.parametrize("family", ONE_OF_EACH)
def test_another_size_fails(family: str) -> None:
    resize = known(family)[0].resize
    assert resize is not None
    step = (
        64 if family == "qwen2_vl" else 8 if family == "mistral3" else 1
    )  # a token: less rounds to the same
    for edge in resize.size:
        for away in (-step, step):
            size = {**resize.size, edge: resize.size[edge] + away}
            assert error_of(family, resize=resize.model_copy(update={"size": size})) > FACT_LEVELS, size


def tiles(family: str, **changes: object) -> dict[str, object]:
    return {"tiles": {**(known(family)[0].tiles or {}), **changes}}


LIMITS: Mapping[str, tuple[str, dict[str, object]]] = {
    "one tile less": ("internvl", tiles("internvl", max_patches=3)),
    "one tile more": ("internvl", tiles("internvl", max_patches=5)),
    "at least two tiles": ("internvl", tiles("internvl", min_patches=2)),
    "no tiles": ("internvl", tiles("internvl", crop_to_patches=False)),
    "a tile's pixel": ("idefics3", tiles("idefics3", max_image_size={"longest_edge": 23})),
    "never cut": ("idefics3", tiles("idefics3", do_image_splitting=False)),
    "a grid is missing": ("llava_next", tiles("llava_next", image_grid_pinpoints=[[48, 96], [96, 48]])),
    "a grid too many": (
        "llava_onevision",
        tiles("llava_onevision", image_grid_pinpoints=[[48, 96], [96, 48], [96, 96], [48, 144]]),
    ),
    "other patches": (
        "qwen2_vl",
        {"patches": {"patch_size": 8, "merge_size": 1, "temporal_patch_size": 2}},
    ),
    "one frame": ("qwen2_vl", {"patches": {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 1}}),
    "another square": ("mistral3", {"patches": {"patch_size": {"height": 4, "width": 4}}}),
    "another number of tokens": ("llava", {"tokens": 10}),
    "no rescaling": ("llava", {"rescale": None}),
    "no crop": ("llava", {"crop": None}),
    "a smaller crop": ("llava", {"crop": {"height": 47, "width": 48}}),
    "no facts of tiles": ("internvl", {"tiles": None}),
    "no resizing": ("internvl", {"resize": None}),
    "a huge tile limit": ("internvl", tiles("internvl", max_patches=10**9)),
    "another rule": ("llava_next", {"rule": "fixed"}),
}


@pytest.mark.parametrize("name", sorted(LIMITS))
def test_a_wrong_limit_of_tiles_patches_or_tokens_fails(name: str) -> None:
    family, changes = LIMITS[name]
    assert error_of(family, **changes) > FACT_LEVELS


def test_rows_and_columns_swapped_fail() -> None:
    """Grids and sizes with another height than width, stated the wrong way round."""
    next_ = FAMILIES["llava_next"].but(pictures={"image_grid_pinpoints": WIDE})
    facts, processor, token = stated(next_)
    assert largest_error(facts, processor, token).passed
    swapped = {"image_grid_pinpoints": [pair[::-1] for pair in WIDE]}
    assert not largest_error(facts.model_copy(update={"tiles": swapped}), processor, token).passed

    internvl = FAMILIES["internvl"].but(
        pictures={"size": {"height": INTERNVL_SIDE, "width": 2 * INTERNVL_SIDE}}
    )
    facts, processor, token = stated(internvl)
    assert facts.resize is not None and largest_error(facts, processor, token).passed
    size = {"height": facts.resize.size["width"], "width": facts.resize.size["height"]}
    wrong = facts.resize.model_copy(update={"size": size})
    assert not largest_error(facts.model_copy(update={"resize": wrong}), processor, token).passed


@pytest.mark.parametrize("family", ["llava_next", "llava_onevision", "idefics3", "internvl"])
def test_tiles_column_by_column_fail(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows_first = by_facts._tiles

    def columns_first(picture: Any, width: int, height: int) -> list[Any]:
        found, across = rows_first(picture, width, height), picture.width // width
        return [tile for column in range(across) for tile in found[column::across]]

    monkeypatch.setattr(by_facts, "_tiles", columns_first)
    assert error_of(family) > PIXEL_LEVELS


def test_what_the_processor_passes_counts_not_the_image_processors_own_file() -> None:
    """InternVL's cuts tiles though its checkpoints' files say no; Mistral 3's rounds to its merged patches."""
    facts, processor, token = stated(FAMILIES["internvl"].but(pictures={"crop_to_patches": False}))
    assert facts.tiles is not None and facts.tiles["crop_to_patches"] is True
    assert largest_error(facts, processor, token).passed
    assert known("mistral3")[0].patches == {"patch_size": {"height": 8, "width": 8}}


def test_pictures_lie_at_the_edges_that_facts_state() -> None:
    internvl = shapes(known("internvl")[0])
    assert {(4 * INTERNVL_SIDE, INTERNVL_SIDE), (INTERNVL_SIDE, 5 * INTERNVL_SIDE)} < set(internvl)
    assert {(96, 48), (48, 96), (96, 96)} < set(shapes(known("llava_next")[0]))
    huge = known("internvl")[0].model_copy(update={"tiles": {"max_patches": 10**9}})
    assert max(width * height for width, height in shapes(huge)) < 10**6, (
        "none that is shrunk as it is loaded"
    )


def measured(tmp_path: Path, family: str, backend: str = "onnxruntime", **changes: Any) -> ParityReport:
    """The leg of a package of that family whose ``runtime.json`` states its facts but for ``changes``."""
    facts, processor, token = known(family)
    sample = json.loads(SAMPLE)
    sample["image"] = facts.model_copy(update=changes).model_dump(mode="json")
    (tmp_path / FILE).write_text(json.dumps(sample))
    plan: Any = SimpleNamespace(
        target=SimpleNamespace(backend=backend), base=SimpleNamespace(image_token_id=token)
    )
    report = ParityReport(executed_by="a test")
    error = facts_error(report, plan, {"runtime": tmp_path / FILE}, processor)
    report.preprocessing = replace(made.preprocessing(), facts=error)
    return report


SAMPLE = """{"schema": 2, "backend": "onnxruntime", "model_type": "x", "fold": "weights", "scope": "all",
"context_length": 8, "hidden_size": 8, "num_layers": 1, "num_heads": 1, "num_kv_heads": 1, "head_dim": 8,
"vocab_size": 8, "activations": "float32", "position_axes": 1, "kv": {"dtype": "float32", "shape": []},
"rotaries": [{"inv_freq": [1.0], "axes": [0], "scale": 1.0}], "scalars": null, "graphs": {}, "eos_token_ids": [],
"generation": {}, "image_token_id": 5, "prompt": {"add_special_tokens": false, "with_image": null,
"without_image": null}}"""


def test_the_preprocessing_leg_fails_by_facts_alone(tmp_path: Path) -> None:
    leg = measured(tmp_path, "llava").preprocessing
    assert leg is not None and leg.passed and leg.to_json()["facts"]["passed"] is True  # type: ignore[index]
    assert [row.label for row in leg.rows()][-1].endswith("8-bit levels") and len(leg.rows()) == 3
    report = measured(tmp_path, "llava", tokens=10)
    assert report.failed == ["preprocessing"] and not report.not_checked
    assert report.to_json()["legs"]["preprocessing"]["facts"]["value"] is None  # type: ignore[index]


def test_facts_that_nothing_reads_are_not_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = measured(tmp_path, "deepseek_vl")
    assert [found.subject for found in report.not_checked] == [SUBJECT]
    assert "DeepseekVLImageProcessor" in str(report.not_checked[0])
    assert report.preprocessing is not None and report.preprocessing.facts is None
    resize = known("llava")[0].resize
    assert resize is not None
    longest = resize.model_copy(update={"size": {"longest_edge": 48}})
    assert measured(tmp_path, "llava", resize=longest).not_checked
    monkeypatch.setattr(type(known("llava")[1].image_processor), "backend", "torchvision")
    assert "torchvision" in str(measured(tmp_path, "llava").not_checked[0])


def test_packages_for_other_runtimes_state_none(tmp_path: Path) -> None:
    report = measured(tmp_path, "llava", backend="coreml", tokens=10)
    assert report.passed and not report.not_checked and "facts" not in report.preprocessing.to_json()  # type: ignore[union-attr]
