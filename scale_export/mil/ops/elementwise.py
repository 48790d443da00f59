"""Elementwise operations: arithmetic, comparisons, logic and activations. Binary ones broadcast as NumPy does."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from scale_export.core.records import Array
from scale_export.mil.dtypes import BY_MIL

from .registry import REGISTRY, Function, move, op

_ERF_STEPS = 1 << 12
_ERF = np.vectorize(math.erf)(np.arange(6 * _ERF_STEPS + 2) / _ERF_STEPS)
"""erf on a grid over [0, 6]: linear interpolation is off by h²/8 · max|erf″| < 8e-9."""

UNARY: dict[str, np.ufunc] = {
    "abs": np.abs,
    "acos": np.arccos,
    "asin": np.arcsin,
    "atan": np.arctan,
    "atanh": np.arctanh,
    "ceil": np.ceil,
    "cos": np.cos,
    "cosh": np.cosh,
    "exp": np.exp,
    "exp2": np.exp2,
    "floor": np.floor,
    "identity": np.positive,
    "logical_not": np.logical_not,
    "round": np.rint,
    "sign": np.sign,
    "sin": np.sin,
    "sinh": np.sinh,
    "sqrt": np.sqrt,
    "square": np.square,
    "tan": np.tan,
    "tanh": np.tanh,
}

BINARY: dict[str, np.ufunc] = {
    "add": np.add,
    "equal": np.equal,
    "floor_div": np.floor_divide,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
    "less": np.less,
    "less_equal": np.less_equal,
    "logical_and": np.logical_and,
    "logical_or": np.logical_or,
    "logical_xor": np.logical_xor,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "mod": np.mod,
    "mul": np.multiply,
    "not_equal": np.not_equal,
    "pow": np.power,
    "real_div": np.true_divide,
    "sub": np.subtract,
}


def _unary(ufunc: np.ufunc) -> Function:
    def apply(x: Array) -> Array:
        result: Array = ufunc(x)
        return result

    return apply


def _binary(ufunc: np.ufunc) -> Function:
    def apply(x: Array, y: Array) -> Array:
        result: Array = ufunc(x, y)
        return result

    return apply


REGISTRY |= {name: _unary(ufunc) for name, ufunc in UNARY.items()}
REGISTRY |= {name: _binary(ufunc) for name, ufunc in BINARY.items()}


def _per_channel(values: Array, x: Array) -> Array:
    """``values [C]`` shaped to broadcast over ``x [N, C, ...]``."""
    return values.reshape(values.shape + (1,) * (x.ndim - 2))


@op
def cast(x: Array, dtype: str) -> Array:
    """``x`` in another type: to integers toward zero, to booleans by being nonzero."""
    return x.astype(BY_MIL[dtype].held)


@op
def clip(x: Array, alpha: float, beta: float) -> Array:
    """``x`` within ``[alpha, beta]``."""
    return np.clip(x, alpha, beta)


@move
def select(cond: Array, a: Array, b: Array) -> Array:
    """``a`` where ``cond`` holds, else ``b``."""
    return np.where(cond, a, b)


@op
def inverse(x: Array, epsilon: float = 1e-4) -> Array:
    """1 / (x + epsilon)."""
    return 1 / (x + epsilon)


@op
def log(x: Array, epsilon: float = 1e-45) -> Array:
    """ln(x + epsilon)."""
    return np.log(x + epsilon)


@op
def rsqrt(x: Array, epsilon: float = 1e-12) -> Array:
    """1 / √(x + epsilon)."""
    return 1 / np.sqrt(x + epsilon)


@op
def threshold(x: Array, alpha: float) -> Array:
    """``x``, at least ``alpha``."""
    return np.maximum(x, alpha)


@op
def erf(x: Array) -> Array:
    """The error function, interpolated to 8e-9."""
    steps = np.fmin(np.abs(x) * _ERF_STEPS, len(_ERF) - 2)
    below = steps.astype(np.intp)
    result = _ERF[below] + (steps - below) * (_ERF[below + 1] - _ERF[below])
    return np.where(np.isnan(x), x, np.copysign(result, x))


@op
def sigmoid(x: Array) -> Array:
    """1 / (1 + e⁻ˣ)."""
    return 1 / (1 + np.exp(-x))


@op
def silu(x: Array) -> Array:
    """x · sigmoid(x)."""
    return np.multiply(x, sigmoid(x))


_NORMAL: dict[str, Callable[[Array], Array]] = {
    "EXACT": lambda x: (1 + erf(x / math.sqrt(2))) / 2,
    "TANH_APPROXIMATION": lambda x: (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "SIGMOID_APPROXIMATION": lambda x: sigmoid(1.702 * x),
}
"""The normal distribution function, and two that are near it."""


@op
def gelu(x: Array, mode: str = "EXACT") -> Array:
    """x · Φ(x), where ``mode`` says how the normal distribution function Φ is computed."""
    return np.multiply(x, _NORMAL[mode](x))


@op
def relu(x: Array) -> Array:
    """``x`` where positive, else 0."""
    return np.maximum(x, 0)


@op
def relu6(x: Array) -> Array:
    """``x`` within ``[0, 6]``."""
    return np.clip(x, 0, 6)


@op
def leaky_relu(x: Array, alpha: float) -> Array:
    """``x`` where positive, else alpha · x."""
    y: Array = np.maximum(x, 0) + alpha * np.minimum(x, 0)
    return y


@op
def prelu(x: Array, alpha: Array) -> Array:
    """``x`` where positive, else alpha · x, with one ``alpha`` per channel: ``[C]`` for ``[N, C, ...]``."""
    y: Array = np.maximum(x, 0) + _per_channel(alpha, x) * np.minimum(x, 0)
    return y


@op
def clamped_relu(x: Array, alpha: float, beta: float) -> Array:
    """``x`` where positive, else alpha · x; at most ``beta``."""
    return np.minimum(leaky_relu(x, alpha), beta)


@op
def thresholded_relu(x: Array, alpha: float) -> Array:
    """``x`` where at least ``alpha``, else 0."""
    return np.where(x >= alpha, x, 0)


@op
def elu(x: Array, alpha: float) -> Array:
    """``x`` where positive, else alpha · (eˣ − 1)."""
    y: Array = np.maximum(x, 0) + alpha * np.expm1(np.minimum(x, 0))
    return y


@op
def linear_activation(x: Array, alpha: float, beta: float) -> Array:
    """alpha · x + beta."""
    return alpha * x + beta


@op
def scaled_tanh(x: Array, alpha: float, beta: float) -> Array:
    """alpha · tanh(beta · x)."""
    return alpha * np.tanh(beta * x)


@op
def sigmoid_hard(x: Array, alpha: float, beta: float) -> Array:
    """alpha · x + beta within ``[0, 1]``."""
    return np.clip(alpha * x + beta, 0, 1)


@op
def softplus(x: Array) -> Array:
    """ln(1 + eˣ)."""
    return np.logaddexp(0, x)


@op
def softplus_parametric(x: Array, alpha: Array, beta: Array) -> Array:
    """alpha · ln(1 + e^(beta · x)), with one pair per channel: ``[C]`` for ``[N, C, ...]``."""
    y: Array = np.multiply(_per_channel(alpha, x), np.logaddexp(0, _per_channel(beta, x) * x))
    return y


@op
def softsign(x: Array) -> Array:
    """x / (1 + |x|)."""
    y: Array = np.divide(x, 1 + np.abs(x))
    return y
