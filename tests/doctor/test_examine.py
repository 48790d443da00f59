"""``doctor`` finds planted faults at the right layer, and none in a sound export."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from safetensors.numpy import load_file, save

from scale_export.backends.coreml import graphs as coreml_graphs
from scale_export.backends.onnxruntime import decoder as onnx_decoder
from scale_export.backends.onnxruntime import host as onnx_host
from scale_export.backends.onnxruntime.trace import traced_anew
from scale_export.cli.app import main
from scale_export.core.errors import UserError
from scale_export.core.progress import WorkLog
from scale_export.device.selftest import EXPECTED
from scale_export.doctor.examine import examine
from scale_export.doctor.stages import Diagnosis
from scale_export.families._towers.tower import SelectedFeatures
from scale_export.plan.options import Origins
from scale_export.quantize import QuantizedWeights
from tests.helpers.folds import fold_on
from tests.helpers.packages import plant

Export = Callable[..., Path]


@pytest.fixture
def export(base_of: Any, coefficient_file: Path, tmp_path: Path) -> Export:
    """``export(target, precision)``: where the files are, whether the export passed or failed."""

    def build(target: str = "cpu", precision: str = "float32", **options: Any) -> Path:
        base = base_of("llava", "llama")
        outcome = fold_on(
            base,
            coefficient_file,
            target,
            out=tmp_path / "package",
            precision=precision,
            evaluation="none",
            **options,
        )
        return outcome.path

    return build


@pytest.fixture
def diagnose(base_of: Any) -> Callable[[Path], Diagnosis]:
    model = str(base_of("llava", "llama").directory)
    return lambda path: examine(path, Origins(model=model), WorkLog())


@pytest.mark.parametrize(
    ("target", "precision"),
    [("cpu", "float32"), ("cpu", "int8"), ("coreml", "float16"), ("coreml", "int8")],
)
def test_a_sound_export_has_no_fault(
    package: Path, export: Export, diagnose: Any, target: str, precision: str
):
    found = diagnose(package if (target, precision) == ("cpu", "float32") else export(target, precision))
    roundings = {"quantization", "runtime"} & set(found.failed_legs)  # random models are hard to quantize
    beyond = (
        {"verify"} if found.failed_legs and not roundings else set()
    )  # rounded arithmetic alone, no place
    assert {stage.name for stage in found.stages if stage.passed is False} == roundings | beyond
    assert [stage.name for stage in found.stages][:3] == ["preprocessing", "vision tower", "embedding"]
    assert found.known_faults == ()
    names = [stage.name for stage in found.stages]
    assert "end of the context" in names and ("verify" in names) == (not roundings)


def test_two_phases_are_followed_too(export: Export, diagnose: Any):
    assert diagnose(export("cpu", "float32", fold="two-phase")).fault is None


def with_fault(monkeypatch: pytest.MonkeyPatch, export: Callable[[], Path], *patch: Any) -> Path:
    """Where an export lies that was made under a patch; it must have failed."""
    with monkeypatch.context() as planted:
        planted.setattr(*patch)
        path = export()
    assert path.suffix == ".failed"
    return path


def altered(true: Any, name: str, change: Callable[[Any], Any]) -> Any:
    """``decoder.tensor_values`` that changes one tensor on its way into the graph."""

    def values(*args: Any) -> Any:
        value = true(*args)
        return lambda asked: change(value(asked)) if asked == name else value(asked)

    return values


def flipped(attn: Any) -> Any:
    attn = np.array(attn)
    attn[1, 2] *= -1
    return attn


def test_halved_scales_are_found_at_their_matrix(
    export: Export, diagnose: Any, monkeypatch: pytest.MonkeyPatch
):
    broken = altered(onnx_decoder.tensor_values, "layers.1.down_proj.scales", lambda v: v / np.float32(2))
    path = with_fault(monkeypatch, lambda: export("cpu", "int4"), onnx_decoder, "tensor_values", broken)
    found = diagnose(path)
    assert (found.fault.name, found.fault.place) == ("decoder", "layers.1.down_proj")
    assert "0.5 times" in found.fault.words
    assert "lowering" in found.failed_legs


def test_a_flipped_head_is_found_at_its_head(export: Export, diagnose: Any, monkeypatch: pytest.MonkeyPatch):
    true = onnx_host.ScalarDefaults

    def defaults(**fields: Any) -> Any:
        return true(**fields | {"attn_scale": flipped(fields["attn_scale"]).tolist()})

    found = diagnose(with_fault(monkeypatch, export, onnx_host, "ScalarDefaults", defaults))
    assert (found.fault.name, found.fault.place) == ("decoder", "layers.1.head.2")
    assert "factor of -1" in found.fault.words and "last token only" in found.fault.words


def test_a_mean_off_by_one_level_in_runtime_json_is_found_before_the_graphs(
    export: Export, diagnose: Any, monkeypatch: pytest.MonkeyPatch
):
    """A host's pictures alone would be wrong: no other leg reads the file's image facts."""
    true = onnx_host._normalize

    def normalize(processor: Any) -> Any:
        found = true(processor)
        return found.model_copy(update={"mean": (found.mean[0] + 1 / 255, *found.mean[1:])})

    found = diagnose(with_fault(monkeypatch, export, onnx_host, "_normalize", normalize))
    assert found.failed_legs == ("preprocessing",)
    assert found.fault.name == "preprocessing" and "runtime.json" in found.fault.words


def test_the_same_in_a_core_ml_package(export: Export, diagnose: Any, monkeypatch: pytest.MonkeyPatch):
    true = coreml_graphs.scalar_defaults

    def defaults(folded: Any) -> Any:
        scalars = true(folded)
        return scalars.model_copy(update={"attn_scale": flipped(scalars.attn_scale).tolist()})

    path = with_fault(
        monkeypatch, lambda: export("coreml", "int8"), coreml_graphs, "scalar_defaults", defaults
    )
    assert diagnose(path).fault.place == "layers.1.head.2"


@pytest.mark.parametrize(
    ("tensor", "change", "place"),
    [
        ("layers.2.mlp_norm", lambda v: v + np.float32(0.1), "layers.2.mlp_norm"),
        ("layers.1.input_norm", lambda v: v[::-1].copy(), "layers.0.mlp"),
        ("cos_cache.0", lambda v: np.roll(v, 1, axis=0), "layers.0.attention"),
        ("norm", lambda v: v * np.float32(1.1), "layers.2.mlp"),
        ("layers.0.o_proj", lambda v: v * np.float32(1.01), "layers.0.o_proj"),
    ],
)
def test_other_faults_are_found_where_they_are(
    export: Export, diagnose: Any, monkeypatch: pytest.MonkeyPatch, tensor: str, change: Any, place: str
):
    broken = altered(onnx_decoder.tensor_values, tensor, change)
    path = with_fault(monkeypatch, export, onnx_decoder, "tensor_values", broken)
    assert diagnose(path).fault.place == place


def test_codes_of_another_quantization_are_named(
    export: Export, diagnose: Any, monkeypatch: pytest.MonkeyPatch
):
    true = QuantizedWeights.pack

    def block(self: Any, name: str) -> Any:
        packed = true(self, name)
        return replace(packed, codes=packed.codes ^ 1) if name == "layers.2.up_proj" else packed

    path = with_fault(
        monkeypatch, lambda: export("cpu", "int4", block_size=16), QuantizedWeights, "pack", block
    )
    found = diagnose(path)
    assert (found.fault.name, found.fault.place) == ("integer codes", "layers.2.up_proj")


def test_a_tower_of_another_model_is_found_before_the_decoder(
    export: Export, diagnose: Any, monkeypatch: pytest.MonkeyPatch
):
    true = SelectedFeatures.encode

    def encode(self: Any, pixel_values: Any) -> Any:
        return true(self, pixel_values.flip(-1))

    with traced_anew():
        path = with_fault(monkeypatch, export, SelectedFeatures, "encode", encode)
    found = diagnose(path)
    assert found.fault.name == "vision tower"


def test_a_changed_byte_is_refused(package: Path, diagnose: Any, tmp_path: Path):
    path = shutil.copytree(package, tmp_path / "package")
    (path / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(UserError, match="chat_template"):
        diagnose(path)


def test_the_command_says_where_and_fails(
    base_of: Any, export: Export, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    broken = altered(onnx_decoder.tensor_values, "layers.1.up_proj", lambda v: -v)
    path = with_fault(monkeypatch, export, onnx_decoder, "tensor_values", broken)
    with pytest.raises(SystemExit) as end:
        main(["doctor", str(path), "--model", str(base_of("llava", "llama").directory), "--json"])
    assert end.value.code == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["fault"]["place"] == "layers.1.up_proj"


# What verify finds, and one prompt doesn't show.


@pytest.fixture
def forged(package: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(package, tmp_path / "forged"))


def other_row(package: Path, graph: str, tensor: str, row: int) -> None:
    """Turn one row of a table in a graph's data around, hashes renewed."""
    table = ir.load(package / graph).graph.initializers[tensor].const_value
    assert isinstance(table, ir.ExternalTensor) and table.offset is not None
    data = bytearray((package / table.location).read_bytes())
    width = table.nbytes // int(table.shape[0])
    place = slice(table.offset + row * width, table.offset + (row + 1) * width)
    data[place] = np.flip(np.frombuffer(data[place], np.float32)).tobytes()
    plant(package, str(table.location), bytes(data))


def test_a_word_outside_every_prompt_is_found(forged: Path, diagnose: Any):
    names = [
        name for name, value in ir.load(forged / "embedding.onnx").graph.initializers.items() if value.shape
    ]
    table = next(name for name in names if "embed" in name)
    other_row(forged, "embedding.onnx", table, 290)
    fault = diagnose(forged).fault
    assert (fault.name, fault.place) == ("embedding", "embedding")


def test_a_rotary_row_behind_every_prompt_is_found(forged: Path, diagnose: Any):
    other_row(forged, "decoder.onnx", "cos_cache.0", 300)
    fault = diagnose(forged).fault
    assert (fault.name, fault.place) == ("end of the context", "rotary tables")


def test_another_end_token_is_named_where_verify_fails(forged: Path, diagnose: Any):
    path = forged / "generation_config.json"
    table = json.loads(path.read_text(encoding="utf-8")) | {"eos_token_id": 9}
    plant(forged, path.name, json.dumps(table).encode())
    fault = diagnose(forged).fault
    assert (fault.name, fault.place) == ("verify", None)
    assert fault.words.startswith("verify fails, and no stage above shows where: ")
    assert "generation_config.json" in fault.words


def test_a_self_test_of_other_logits_is_named(forged: Path, diagnose: Any):
    logits = load_file(forged / EXPECTED)
    plant(forged, EXPECTED, save({name: values[::-1].copy() for name, values in logits.items()}))
    assert diagnose(forged).fault.words.endswith(": self-test")


def test_an_export_that_failed_in_what_is_not_measured_again_is_not_called_sound(
    forged: Path, diagnose: Any, base_of: Any, capsys: pytest.CaptureFixture[str]
):
    report = json.loads((forged / "parity.json").read_text(encoding="utf-8"))
    report["legs"]["task"] = {"passed": False}
    plant(forged, "parity.json", json.dumps(report).encode())
    assert diagnose(forged).fault.words == "the export failed in task, and no stage above shows why"
    with pytest.raises(SystemExit) as end:
        main(["doctor", str(forged), "--model", str(base_of("llava", "llama").directory)])
    printed = capsys.readouterr()
    assert end.value.code == 1 and "No fault was found" not in printed.out + printed.err
