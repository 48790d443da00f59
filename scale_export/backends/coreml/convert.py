"""From traced modules to saved ML programs: matrices enter in storage type, and equal ones are stored once.

coremltools merges functions by reading whole packages back from disk. Here the functions' programs are joined
in memory and written once: the same operators, a fraction of the time and memory.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scale_export.backends.collector import uncollected
from scale_export.compat.coremltools import import_coremltools, torch_operator, undrawn, unheard, unwatched
from scale_export.compat.process import quiet
from scale_export.core.records import Array
from scale_export.core.version import __version__

from .kernels import MARKER

TARGET = "iOS18"
"""The oldest system whose programs have states, several functions and block-wise int4 weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A matrix ``[out, in]`` as a program stores it.

    Attributes:
        data: floats, or int8 codes of ``bits`` bits.
        scales: ``[out, blocks]`` of the codes; None for floats.
    """

    data: Array
    scales: Array | None = None
    bits: int | None = None
    bias: Array | None = None


MatrixSource = Callable[[str], Stored]
"""A matrix by its portable name."""


def convert_function(
    module: nn.Module,
    example: Mapping[str, Tensor],
    *,
    outputs: Sequence[str],
    states: Mapping[str, Tensor],
    half: bool,
    matrices: MatrixSource | None = None,
) -> Any:
    """Trace ``module`` over named example inputs and convert it.

    Args:
        module: float32; the converter casts it.
        example: int32 and float32 tensors; inputs of the program are int32 and what it computes in.
        states: buffers of the module that the program keeps between calls, always in float16.
        half: whether the program computes in float16 or in float32.
        matrices: what stands behind the markers of ``CoreMLKernels.linear``.

    Returns:
        coremltools' ``Program`` with one function, ``main``.
    """
    ct = import_coremltools()
    with torch.no_grad(), quiet():  # of branches on shapes, which are fixed
        traced = torch.jit.trace(module, tuple(example.values()), check_trace=False)
    marked = nullcontext() if matrices is None else torch_operator(MARKER, _linear_of(matrices))
    floats = np.float16 if half else np.float32
    with unheard(), unwatched(), undrawn(), uncollected(), marked:
        return ct.convert(
            traced,
            convert_to="milinternal",
            inputs=[
                ct.TensorType(
                    name=name,
                    shape=tuple(value.shape),
                    dtype=np.int32 if value.dtype == torch.int32 else floats,
                )
                for name, value in example.items()
            ],
            outputs=[ct.TensorType(name=name, dtype=floats) for name in outputs],
            states=[
                ct.StateType(ct.TensorType(shape=tuple(value.shape), dtype=np.float16), name=name)
                for name, value in states.items()
            ],
            minimum_deployment_target=getattr(ct.target, TARGET),
            compute_precision=ct.precision.FLOAT16 if half else ct.precision.FLOAT32,
            skip_model_load=True,
        )


def save_functions(functions: Mapping[str, Any], path: Path) -> None:
    """Write programs of one function each as one ``.mlpackage``; the first is the default.

    Constants that are equal in several functions are stored once. The same programs give the same bytes.
    """
    ct = import_coremltools()
    from coremltools.converters.mil import mil
    from coremltools.converters.mil.converter import mil_convert

    program = mil.Program()
    for name, single in functions.items():
        program.add_function(name, single.functions["main"])
    program.default_function_name = next(iter(functions))
    program.export_as_multifunction = len(functions) > 1
    program.skip_all_passes = True
    _share_constants(program)
    program.validate(check_essential_scope=True)
    scratch_folder = tempfile.TemporaryDirectory(dir=path.parent, prefix=".mlpackage-")
    with scratch_folder as scratch, unheard(), unwatched(), undrawn(), uncollected():
        model = mil_convert(
            program,
            convert_to="mlprogram",
            convert_from="milinternal",
            specification_version=getattr(ct.target, TARGET).value,
            compute_units=ct.ComputeUnit.CPU_ONLY,
            skip_model_load=True,
        )
        written = Path(scratch) / "model.mlpackage"
        model.save(str(written))
        _write_reproducibly(model.get_spec(), written, path)


def _share_constants(program: Any) -> None:
    """Mark constants of equal bytes, across functions, to be stored once.

    coremltools' own pass compares by ``np.allclose``, which takes twenty times a matrix's size in memory, and
    takes nearly equal constants for equal.
    """
    for function in program.functions.values():
        for operation in function.operations:
            value = operation.outputs[0].val if operation.op_type == "const" else None
            if isinstance(value, np.ndarray) and value.size:
                label = f"{value.dtype} {value.dtype.metadata} {value.shape} ".encode()
                operation.weight_id = hashlib.sha256(
                    label + np.ascontiguousarray(value).tobytes()
                ).hexdigest()


def _write_reproducibly(spec: Any, written: Path, path: Path) -> None:
    """Move a saved package to ``path`` without what differs from run to run: dates, random ids, map order."""
    spec.description.metadata.Clear()
    spec.description.metadata.versionString = __version__
    data = path / "Data" / "com.apple.CoreML"
    data.mkdir(parents=True)
    (data / "model.mlmodel").write_bytes(spec.SerializeToString(deterministic=True))
    shutil.move(written / "Data" / "com.apple.CoreML" / "weights", data / "weights")
    model, weights = (str(uuid.uuid5(uuid.NAMESPACE_OID, name)).upper() for name in ("model", "weights"))
    (path / "Manifest.json").write_text(MANIFEST % {"model": model, "weights": weights}, encoding="utf-8")


MANIFEST = """{
    "fileFormatVersion": "1.0.0",
    "itemInfoEntries": {
        "%(weights)s": {
            "author": "com.apple.CoreML",
            "description": "CoreML Model Weights",
            "name": "weights",
            "path": "com.apple.CoreML/weights"
        },
        "%(model)s": {
            "author": "com.apple.CoreML",
            "description": "CoreML Model Specification",
            "name": "model.mlmodel",
            "path": "com.apple.CoreML/model.mlmodel"
        }
    },
    "rootModelIdentifier": "%(model)s"
}
"""
"""In the order and spelling of coremltools, which writes this file again whenever it opens a package."""


def _linear_of(matrices: MatrixSource) -> Callable[[Any, Any], None]:
    """What coremltools makes of a marker: a ``linear`` whose matrix comes from ``matrices``."""
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.frontend.torch.ops import _get_inputs

    def convert(context: Any, node: Any) -> None:
        x, name, _ = _get_inputs(context, node)
        matrix, label = matrices(name.val), constant_name(name.val)
        weight = matrix.data
        if matrix.scales is not None:
            codes = _typed_codes(matrix.data, matrix.bits)
            weight = mb.constexpr_blockwise_shift_scale(data=codes, scale=matrix.scales, name=label)
        bias = {} if matrix.bias is None else {"bias": matrix.bias}
        context.add(mb.linear(x=x, weight=weight, name=node.name, **bias))

    return convert


def constant_name(matrix: str) -> str:
    """What a program calls a quantized matrix: ``layers.3.o_proj`` → ``layers_3_o_proj``."""
    return matrix.replace(".", "_")


def _typed_codes(codes: NDArray[np.int8], bits: int | None) -> Array:
    from coremltools.converters.mil.mil import types

    return codes.view(types.np_int4_dtype) if bits == 4 else codes  # a view: functions share the array
