"""Where nodes ran: by ONNX Runtime's record of a real run, and by one that is made up."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest

from scale_export.core.errors import UserError
from scale_export.device.onnxruntime.placement import Placement, nodes_of
from tests.helpers.cli import last_json, run
from tests.helpers.packages import reseal

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


def event(name: str, operator: str, provider: str) -> dict[str, Any]:
    return {"cat": "Node", "name": name, "args": {"op_name": operator, "provider": provider}}


def recorded(path: Path, *events: dict[str, Any]) -> Path:
    session = {"cat": "Session", "name": "model_run", "args": {}}
    path.write_text(json.dumps([session, *events, event("a_fence_before", "MatMul", CPU)]), encoding="utf-8")
    return path


def test_a_node_that_cuda_left_to_the_cpu_is_named(tmp_path: Path):
    whole = [event("q_kernel_time", "MatMulNBits", CUDA), event("norm_kernel_time", "Cast", CUDA)]
    fallen = [*whole, event("turn_kernel_time", "GroupQueryAttention", CPU)]
    ran = {
        role: nodes_of(recorded(tmp_path / role, *events))
        for role, events in (("vision", whole), ("decoder", [*fallen, *fallen]))
    }
    found = Placement(wanted=(CUDA, CPU), ran=ran)
    assert found.counts == {"vision": {CUDA: 2}, "decoder": {CPU: 1, CUDA: 2}}
    assert found.fallen == {"decoder": ["turn (GroupQueryAttention)"]} and not found.passed
    assert Placement(wanted=(CUDA, CPU), ran={"vision": ran["vision"]}).passed
    assert Placement(wanted=(CPU,), ran=ran).passed, "where the CPU is wanted, nothing falls to it"


def test_what_recorded_nothing_does_not_pass(tmp_path: Path):
    assert not Placement(wanted=(CUDA, CPU), ran={}).passed
    assert not Placement(wanted=(CUDA, CPU), ran={"decoder": nodes_of(recorded(tmp_path / "none"))}).passed


@pytest.mark.parametrize(
    "text", ["no JSON", "{}", '[{"cat": "Node", "name": "a_kernel_time", "args": {}}]', "[1]"]
)
def test_what_is_no_record_is_refused(tmp_path: Path, text: str):
    (tmp_path / "profile.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="no profile that this version"):
        nodes_of(tmp_path / "profile.json")


def test_a_package_for_the_cpu_on_the_cpu(package: Path, capsys: pytest.CaptureFixture[str]):
    """A real run, whose record names every operator of the decoder."""
    before = sorted(package.rglob("*"))
    assert run("doctor", str(package), "--placement", "--json") == 0
    found = last_json(capsys)
    assert found["passed"] and found["fallen"] == {} and found["wanted"] == [CPU]
    counts = found["counts"]
    assert set(counts) == {"decoder", "vision", "embedding"} and all(
        set(ran) == {CPU} for ran in counts.values()
    )
    graph = onnx.load(package / "decoder.onnx", load_external_data=False).graph
    attention = sum(node.op_type == "GroupQueryAttention" for node in graph.node)
    assert counts["decoder"][CPU] > 10 * attention > 0
    assert sorted(package.rglob("*")) == before, "the record lies elsewhere"
    assert run("doctor", str(package), "--placement") == 0
    assert "Every node ran where the package wants it." in capsys.readouterr().out


def test_a_machine_without_the_provider_says_so(
    package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    jetson = tmp_path / "jetson"
    shutil.copytree(package, jetson)
    reseal(jetson, lambda table: table.update(target="jetson", execution_providers=[CUDA, CPU]))
    assert run("doctor", str(jetson), "--placement") == 2
    said = capsys.readouterr().err
    assert f"no {CUDA}: run this on the device that target jetson is for" in " ".join(said.split())
