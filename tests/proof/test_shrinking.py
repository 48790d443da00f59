"""Pictures that a target's limit shrinks: held to the base's own processor, and the loss is stated."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from scale_export.core.progress import WorkLog
from scale_export.core.resources import resource_dir
from scale_export.device.pixels import levels_per_unit
from scale_export.model.base import BaseModel
from scale_export.package.manifest import open_package_files
from scale_export.pipeline.fold import Outcome
from scale_export.plan.again import plan_again
from scale_export.plan.options import Origins
from scale_export.proof.cases import Prompt
from scale_export.proof.contents import Contents, package_statements
from scale_export.proof.measure import Measurement
from scale_export.proof.preprocessing import PreprocessingLeg, preprocessing_leg
from scale_export.proof.report import ParityReport
from scale_export.proof.shrinking import due_inputs, large_prompts
from tests.helpers.coefficients import random_coefficients, saved
from tests.helpers.folds import fold_on
from tests.helpers.packages import reseal
from tests.helpers.pictures import picture

SIZES = {
    "qwen2_vl": ({"longest_edge": 2560, "shortest_edge": 256}, {"longest_edge": 1536, "shortest_edge": 256}),
    "mistral3": ({"longest_edge": 48}, {"longest_edge": 32}),
}
"""Family → its processor's own size, and the one that a context of 96 tokens holds."""


@pytest.fixture(scope="module")
def small_target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Target ``cpu`` with a context that holds small pictures only."""
    text = (resource_dir("targets") / "cpu.toml").read_text()
    path = tmp_path_factory.mktemp("targets") / "cpu.toml"
    path.write_text(text.replace("context_length = 4096", "context_length = 96"))
    return path


@pytest.fixture(scope="module")
def shrunk(base_of: Any, small_target: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A family's float32 package for ``small_target``, made once: what the fold came to."""
    made: dict[str, Outcome] = {}

    def fold(family: str) -> Outcome:
        if family not in made:
            base = base_of(family, "llama")
            out = tmp_path_factory.mktemp(family)
            coeffs = saved(random_coefficients(base), out)
            asked = {"out": out / "package", "precision": "float32", "evaluation": "none"}
            made[family] = fold_on(base, coeffs, str(small_target), **asked)
        return made[family]

    return fold


@pytest.mark.parametrize("family", sorted(SIZES))
def test_the_loss_against_the_owners_size_is_stated(shrunk: Any, family: str):
    outcome = shrunk(family)
    own, size = SIZES[family]
    stored = json.loads((outcome.path / "parity.json").read_text())
    leg = stored["legs"]["preprocessing"]
    assert outcome.passed and leg["passed"] and leg["shrunk"]["size"] == {"base": own, "package": size}
    assert leg["shrunk"]["image_tokens"]["base"] > leg["shrunk"]["image_tokens"]["package"] > 0
    assert leg["shrunk"]["relative_error"] > 0.01 and leg["shrunk"]["kl"] > 0
    sentence = next(
        s for s in stored["not_checked"] if s.startswith("pictures of the base model's own size: ")
    )
    assert str(size) in sentence and str(own) in sentence
    assert "Lost by shrinking" in (outcome.path / "report.html").read_text()
    pictures = json.loads((outcome.path / "manifest.json").read_text())["pictures"]
    assert pictures == {"base_size": own, "size": size}


def test_a_target_that_shrinks_nothing_says_nothing(package: Path):
    stored = json.loads((package / "parity.json").read_text())
    assert "shrunk" not in stored["legs"]["preprocessing"]
    assert not any("own size" in sentence for sentence in stored["not_checked"])
    assert "Lost by shrinking" not in (package / "report.html").read_text()
    assert json.loads((package / "manifest.json").read_text())["pictures"] is None


def tampered(outcome: Outcome, tmp_path: Path, **settings: Any) -> PreprocessingLeg:
    """The leg of a package whose image processor's settings were changed."""
    directory = tmp_path / "package"
    shutil.copytree(outcome.path, directory)
    for name in ("processor_config.json", "preprocessor_config.json"):
        path = directory / name
        table = json.loads(path.read_text()) if path.exists() else {}
        images = table.get("image_processor", table)
        if images:
            images.update(settings)
            path.write_text(json.dumps(table))
    plan = outcome.plan
    unused: Any = None
    measurement = Measurement(
        plan=plan, weights=unused, directory=directory, graphs={}, log=WorkLog(quiet=True)
    )
    report = ParityReport(executed_by="a test")
    prompt = Prompt(name="small", images=(picture(0, (16, 16)),), text="?")
    measurement._preprocessing(report, [measurement._encoded(plan.base.processor, prompt)])
    assert report.preprocessing is not None
    return report.preprocessing


@pytest.mark.parametrize("family", sorted(SIZES))
def test_the_packages_files_as_they_are_pass(shrunk: Any, tmp_path: Path, family: str):
    assert tampered(shrunk(family), tmp_path).passed


@pytest.mark.parametrize("settings", [{"resample": 0}, {"image_std": [0.4, 0.4, 0.4]}, {"size": "wrong"}])
@pytest.mark.parametrize("family", sorted(SIZES))
def test_another_size_or_resample_in_the_package_fails(
    shrunk: Any, tmp_path: Path, family: str, settings: dict[str, Any]
):
    """Sabotage: also where the prompts' own pictures are so small that no size matters to them."""
    if settings.get("size") == "wrong":
        settings = {"size": {name: max(8, edge // 2) for name, edge in SIZES[family][1].items()}}
    assert not tampered(shrunk(family), tmp_path, **settings).passed


def test_a_resample_that_comes_with_shrinking_fails(shrunk: Any):
    """Sabotage: one fault on both sides, the base's processor at the package's size and the package's own."""
    base: BaseModel = replace(shrunk("qwen2_vl").plan.base)
    prompt = Prompt(name="small", images=(picture(0, (20, 30)),), text="?")

    def leg() -> PreprocessingLeg:
        from scale_export.device.prompts import encode_messages, user_message

        sized = encode_messages(base.processor, [user_message(prompt.images, prompt.text)])
        return preprocessing_leg(
            [due_inputs(base, prompt, sized)], [sized], levels_per_unit(base.own_processor)
        )

    assert leg().passed
    base.processor.image_processor.resample = Image.Resampling.NEAREST  # type: ignore[attr-defined]
    assert not leg().passed


@pytest.mark.parametrize("family", sorted(SIZES))
def test_measured_pictures_are_larger_than_the_package_takes(shrunk: Any, family: str):
    base = shrunk(family).plan.base
    prompts = [
        Prompt(name="tiny", images=(picture(0, (9, 12)),), text="?"),
        Prompt(name="none", images=(), text="?"),
    ]
    (large,) = large_prompts(base, prompts)
    assert max(large.images[0].size) > 40
    assert large_prompts(replace(base, picture_size=None), prompts) == []


def test_a_forged_size_in_the_manifest_is_found(shrunk: Any, small_target: Path, tmp_path: Path):
    outcome = shrunk("mistral3")
    forged = Path(shutil.copytree(outcome.path, tmp_path / "package"))
    reseal(forged, lambda table: table.update(pictures=None))
    files = open_package_files(forged)
    origins = Origins(model=str(outcome.plan.base.directory), target=str(small_target))
    plan = plan_again(files, outcome.plan.coefficients, origins)
    contents = Contents(statements=tuple(package_statements(files, plan)))
    assert [statement.name for statement in contents.wrong] == ["size of pictures of manifest.json"]
