"""``doctor`` tells a wrong calibration from a damaged matrix, and says at which matrix either begins."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from PIL import ImageOps

from scale_export.backends.coreml import decoder as coreml_decoder
from scale_export.core.progress import WorkLog
from scale_export.doctor.codes import CodeEvidence, Moved
from scale_export.doctor.examine import Stage, examine
from scale_export.model.blocks import BlockMatrix
from scale_export.package.manifest import PackageFiles, open_package_files
from scale_export.package.staging import StagedPackage
from scale_export.pipeline import fold as pipeline
from scale_export.plan.again import plan_again
from scale_export.plan.options import Origins
from scale_export.quantize import QuantizedWeights, example
from tests.helpers.emission import stored, weights_of
from tests.helpers.folds import fold_on, opened_once

QUIET = WorkLog(quiet=True)
OPTIONS = {"quantizer": "gptq", "calib": "gridworld", "calib_limit": 4, "evaluation": "none"}


def mirrored_pictures(patched: pytest.MonkeyPatch) -> None:
    """Calibration sees every picture's mirror image, and nothing else changes."""
    true = example.encode_question

    def encode(base: Any, question: Any, pictures: bool) -> Any:
        return true(base, replace(question, pictures=(ImageOps.mirror(question.image),)), pictures)

    patched.setattr(example, "encode_question", encode)


@pytest.fixture(scope="module")
def model(base_of: Any) -> str:
    return str(base_of("llava", "llama").directory)


@pytest.fixture(scope="module")
def miscalibrated(model: str, coefficient_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package that was calibrated on mirrored pictures, whose manifest names the set as it is."""
    place = tmp_path_factory.mktemp("miscalibrated")
    with pytest.MonkeyPatch.context() as patched:
        mirrored_pictures(patched)
        outcome = fold_on(
            opened_once(Path(model)),
            coefficient_file,
            "cpu",
            out=place / "package",
            precision="int8",
            cache=place / "cache",
            **OPTIONS,
        )
    return outcome.path  # a failed one: random weights round badly on fast kernels


Rewrite = Callable[..., PackageFiles]


@pytest.fixture
def rewritten(miscalibrated: Path, tmp_path: Path) -> Rewrite:
    """``rewritten(blocks, **manifest)``: the same package with other codes, scales and manifest, sealed again."""

    def write(blocks: Mapping[str, BlockMatrix], **changes: Any) -> PackageFiles:
        manifest = open_package_files(miscalibrated, failed=True).manifest
        with StagedPackage(tmp_path / "package", force=False) as staged:
            shutil.copytree(
                miscalibrated,
                staged.directory,
                dirs_exist_ok=True,
                ignore=shutil.ignore_patterns("manifest*"),
            )
            initializers = ir.load(staged.directory / "decoder.onnx").graph.initializers
            for name, block in blocks.items():
                for part, values in (("codes", block.codes), ("scales", block.scales)):
                    tensor = initializers[f"{name}.{part}"].const_value
                    assert isinstance(tensor, ir.ExternalTensor) and tensor.length == values.nbytes
                    with (staged.directory / tensor.location).open("r+b") as data:
                        data.seek(tensor.offset or 0)
                        data.write(values.tobytes())
            path = staged.commit(manifest.model_copy(update=changes))
        return open_package_files(path)

    return write


def diagnosed(path: Path, model: str) -> Stage:
    stages = examine(path, Origins(model=model), QUIET).stages
    return next(stage for stage in stages if stage.name == "integer codes")


@pytest.fixture(scope="module")
def right(miscalibrated: Path, model: str) -> tuple[QuantizedWeights, str]:
    """The weights that the manifest promises, and the hash of their statistics."""
    files = open_package_files(miscalibrated, failed=True)
    plan = plan_again(
        files, pipeline.load_coefficients(files.path(files.manifest.coefficients)), Origins(model=model)
    )
    made = weights_of(plan)
    weights, statistics = made.stored.weights, made.statistics
    assert statistics is not None and isinstance(weights, QuantizedWeights)
    return weights, statistics.sha256


def blocks_of(weights: QuantizedWeights, but: Iterable[str] = ()) -> dict[str, BlockMatrix]:
    return {name: weights.block(name) for name in weights.spec.linears() if name not in but}


def test_calibration_on_other_pictures_is_named(miscalibrated: Path, model: str):
    found = examine(miscalibrated, Origins(model=model), QUIET)
    assert found.fault is not None and found.fault.name == "integer codes"
    assert found.fault.place == "layers.0.q_proj"
    assert (
        "another calibration" in found.fault.words and "the embedding, which takes none" in found.fault.words
    )
    assert "the manifest records are not those collected here" in found.fault.words


def test_so_it_is_where_the_manifest_records_the_right_statistics(
    miscalibrated: Path, rewritten: Rewrite, right: Any, model: str
):
    facts = open_package_files(miscalibrated, failed=True).manifest.calibration
    assert facts is not None
    files = rewritten({}, calibration=facts.model_copy(update={"statistics_sha256": right[1]}))
    found = diagnosed(files.directory, model)
    assert found.place == "layers.0.q_proj" and "another calibration" in found.words
    assert "these codes were not made with them" in found.words


@pytest.mark.parametrize(
    ("pictures", "words"), [(False, "without their pictures"), (None, "no calibration at all")]
)
def test_a_calibration_that_is_easily_mistaken_is_recognised(
    rewritten: Rewrite, right: Any, model: str, miscalibrated: Path, pictures: bool | None, words: str
):
    files = open_package_files(miscalibrated, failed=True)
    plan = plan_again(
        files, pipeline.load_coefficients(files.path(files.manifest.coefficients)), Origins(model=model)
    )
    assert plan.calibration is not None
    other = None if pictures is None else replace(plan.calibration, pictures=pictures)
    plan = replace(plan, calibration=other)
    weights = stored(plan).weights
    assert isinstance(weights, QuantizedWeights)
    assert words in diagnosed(rewritten(blocks_of(weights)).directory, model).words


def test_right_codes_have_no_fault(rewritten: Rewrite, right: Any, model: str):
    assert diagnosed(rewritten(blocks_of(right[0])).directory, model).passed


def test_one_damaged_matrix_is_not_blamed_on_calibration(rewritten: Rewrite, right: Any, model: str):
    weights = right[0]
    damaged = weights.block("layers.1.up_proj")
    codes = damaged.codes.copy()
    codes[0, 0, 0] ^= 1
    blocks = blocks_of(weights) | {"layers.1.up_proj": replace(damaged, codes=codes)}
    found = diagnosed(rewritten(blocks).directory, model)
    assert (found.passed, found.place) == (False, "layers.1.up_proj")
    assert "damage, since layers.1.down_proj" in found.words and "calibration, since" not in found.words


def test_a_layer_of_halved_scales_is_found_at_its_first_matrix(rewritten: Rewrite, right: Any, model: str):
    weights = right[0]
    halved = {
        name: replace(block, scales=block.scales / np.float32(2))
        for name, block in blocks_of(weights).items()
        if name.startswith("layers.1.")
    }
    found = examine(rewritten(blocks_of(weights) | halved).directory, Origins(model=model), QUIET)
    assert found.fault is not None
    assert (found.fault.name, found.fault.place) == ("decoder", "layers.1.q_proj")
    assert "0.5 times" in found.fault.words


def test_a_head_whose_folded_columns_changed_sign_is_found(rewritten: Rewrite, right: Any, model: str):
    weights = right[0]
    block, heads = weights.block("layers.2.o_proj"), weights.spec.num_heads
    signs = np.repeat(np.float32([1, 1, 1, -1]), block.scales.shape[1] // heads)
    blocks = blocks_of(weights) | {"layers.2.o_proj": block.with_block_factors(signs)}
    found = examine(rewritten(blocks).directory, Origins(model=model), QUIET)
    assert found.fault is not None
    assert (found.fault.name, found.fault.place) == ("decoder", "layers.2.head.3")
    assert "head 3 alone, by a factor of -1" in found.fault.words


def test_a_core_ml_layer_of_halved_scales_is_found(
    model: str, coefficient_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    true = coreml_decoder.matrix_source

    def halving(weights: Any, storage: Any) -> Any:
        stored = true(weights, storage)

        def matrix(name: str) -> Any:
            value = stored(name)
            broken = name.startswith("layers.2.") and value.scales is not None
            return replace(value, scales=value.scales / np.float16(2)) if broken else value

        return matrix

    with monkeypatch.context() as patched:
        patched.setattr(coreml_decoder, "matrix_source", halving)
        outcome = fold_on(
            opened_once(Path(model)),
            coefficient_file,
            "coreml",
            out=tmp_path / "package",
            precision="int8",
            quantizer="rtn",
            evaluation="none",
        )
    found = examine(outcome.path, Origins(model=model), QUIET)
    assert found.fault is not None
    assert (found.fault.name, found.fault.place) == ("decoder", "layers.2.q_proj")


def test_a_core_ml_package_that_was_calibrated_on_other_pictures(
    model: str, coefficient_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patched:
        mirrored_pictures(patched)
        outcome = fold_on(
            opened_once(Path(model)),
            coefficient_file,
            "coreml",
            out=tmp_path / "package",
            precision="int8",
            cache=tmp_path / "cache",
            **OPTIONS,
        )
    found = diagnosed(outcome.path, model)
    assert found.place == "layers.0.q_proj" and "another calibration" in found.words


NAMES = [f"layers.{layer}.{part}" for layer in range(3) for part in ("q_proj", "o_proj", "down_proj")]
FAR, NEAR = Moved(share=0.2, steps=3), Moved(share=0.001, steps=1)


@pytest.mark.parametrize(
    ("moved", "facts", "words"),
    [
        (NAMES, {}, "another calibration"),
        (NAMES, {"calibrated": False}, "another base model or a damaged file"),
        (NAMES, {"embedding_right": False}, "another base model, since the embedding"),
        (NAMES[1:], {}, "by other scalars or weights, since all before layers.0.o_proj agree"),
        (NAMES[2:3], {}, "damage, since layers.1.q_proj"),
        (NAMES[-1:], {}, "a damaged matrix, since all before it agree"),
    ],
)
def test_evidence_is_weighed(moved: list[str], facts: dict[str, Any], words: str):
    known = {"calibrated": True, "recorded": None, "embedding_right": True} | facts
    assert words in CodeEvidence(names=NAMES, moved=dict.fromkeys(moved, FAR), **known).explain()


def test_few_codes_that_moved_by_one_step_may_be_another_machines_rounding():
    evidence = CodeEvidence(
        names=NAMES, moved=dict.fromkeys(NAMES, NEAR), calibrated=True, recorded=False, embedding_right=True
    )
    assert "only the rounding of statistics that another machine collected" in evidence.explain()
    assert "another calibration" in replace(evidence, recorded=True).explain()


def test_codes_that_moved_are_counted():
    expected = np.zeros((2, 4), np.uint8)
    found = expected.copy()
    found[1, 2:] = 1, 7
    assert Moved.between(expected, found) == Moved(share=0.25, steps=7)
