"""ONNX Runtime, in the versions that we take, reads no graph's data outside its folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from scale_export.core.errors import UserError
from scale_export.device.onnxruntime.engine import open_session

VALUES = np.arange(4096, dtype=np.float32)


def graph(path: Path, location: str) -> None:
    """y = x + w, where w lies at a location."""
    kind = helper.make_tensor_value_info
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("Add", ["x", "w"], ["y"])],
            "sum",
            [kind("x", TensorProto.FLOAT, [4096])],
            [kind("y", TensorProto.FLOAT, [4096])],
            [helper.make_tensor("w", TensorProto.FLOAT, [4096], VALUES.tobytes(), raw=True)],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": "0", "length": str(VALUES.nbytes)}.items():
        entry = weight.external_data.add()
        entry.key, entry.value = key, value
    path.write_bytes(model.SerializeToString())


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("location", ["../w.data", "{outside}/w.data", "linked.data"])
def test_graph_data_outside_the_package_is_not_read(location: str, strict: bool, tmp_path: Path) -> None:
    folder = tmp_path / "package"
    folder.mkdir()
    for place in (tmp_path, folder):
        (place / "w.data").write_bytes(VALUES.tobytes())
    (folder / "linked.data").symlink_to(tmp_path / "w.data")
    graph(folder / "sum.onnx", "w.data")
    session = open_session(folder / "sum.onnx", providers=["CPUExecutionProvider"], strict=strict)
    np.testing.assert_array_equal(session.run(None, {"x": VALUES})[0], VALUES * 2)
    graph(folder / "sum.onnx", location.format(outside=tmp_path))
    assert onnx.load(folder / "sum.onnx", load_external_data=False).graph.initializer[0].external_data
    with pytest.raises(UserError, match=r"cannot load|none inside|leads out"):
        open_session(folder / "sum.onnx", providers=["CPUExecutionProvider"], strict=strict)
