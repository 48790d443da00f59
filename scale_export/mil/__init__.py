"""A reference interpreter for Core ML packages, without a Mac, with NumPy alone.

It reads what was saved (manifest, protobuf, weight file), never a converter's objects, so that what it computes is
evidence about the package::

    from scale_export import mil

    model = mil.load("decoder.mlpackage", arithmetic="float16")
    state = model.new_state()
    outputs = model.run("decode", {"x": x}, state)

``python -m scale_export.mil`` does the same from a shell. See ``docs/mil.md``.
"""

from .dtypes import Arithmetic, TensorType
from .model import Model, State, load
from .ops import REGISTRY
from .program import Function

__all__ = ["REGISTRY", "Arithmetic", "Function", "Model", "State", "TensorType", "load"]
