"""MIL operations as NumPy functions: parameters are named as MIL names them, with MIL's defaults.

Semantics follow the documentation of coremltools' operation sets for iOS 15 to 18. Floats arrive in float32; what an
operation returns is converted to the type that the program declares for its output.
"""

from . import attention, constant, elementwise, gather, image, linear, reduce, shape, state
from .bounds import Bound, elements_of
from .registry import CONVERTERS, MOVES, REGISTRY, Argument, Arrays, Bools, Function, Ints, parameters

MODULES = (attention, constant, elementwise, gather, image, linear, reduce, shape, state)

__all__ = [
    "CONVERTERS",
    "MODULES",
    "MOVES",
    "REGISTRY",
    "Argument",
    "Arrays",
    "Bools",
    "Bound",
    "Function",
    "Ints",
    "elements_of",
    "parameters",
]
