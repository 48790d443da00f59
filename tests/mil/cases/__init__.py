"""Cases for every operation: inputs as MIL names them, and what PyTorch or plain Python makes of them."""

from . import attention, constant, elementwise, gather, image, linear, reduce, shape  # noqa: F401
from .table import CASES, Case, close, passes

__all__ = ["CASES", "Case", "close", "passes"]
