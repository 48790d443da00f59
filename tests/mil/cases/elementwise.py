"""Elementwise operations."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F

from .table import booleans, case, floats, integers, normal, uniform

EDGES = np.concatenate([normal(4, 8).ravel() * 3, floats(0, -0.5, 0.5, 1.5, 2.5, -1, 1, -30, 30)])

for name, function, x in (
    ("abs", torch.abs, EDGES),
    ("acos", torch.acos, uniform(-1, 1, 20)),
    ("asin", torch.asin, uniform(-1, 1, 20)),
    ("atan", torch.atan, EDGES),
    ("atanh", torch.atanh, uniform(-0.9, 0.9, 20)),
    ("ceil", torch.ceil, EDGES),
    ("cos", torch.cos, EDGES),
    ("cosh", torch.cosh, uniform(-3, 3, 20)),
    (
        "erf",
        torch.erf,
        np.concatenate([EDGES, uniform(-6, 6, 40), floats(np.inf, -np.inf, np.nan, 1e-6, 7, 1e9)]),
    ),
    ("exp", torch.exp, uniform(-5, 5, 20)),
    ("exp2", torch.exp2, uniform(-5, 5, 20)),
    ("floor", torch.floor, EDGES),
    ("identity", lambda x: x, EDGES),
    ("logical_not", torch.logical_not, booleans(20)),
    ("relu", F.relu, EDGES),
    ("relu6", F.relu6, EDGES * 3),
    ("round", torch.round, EDGES),
    ("sigmoid", torch.sigmoid, EDGES),
    ("sign", torch.sign, EDGES),
    ("silu", F.silu, EDGES),
    ("sin", torch.sin, EDGES),
    ("sinh", torch.sinh, uniform(-3, 3, 20)),
    ("softplus", F.softplus, EDGES),
    ("softsign", F.softsign, EDGES),
    ("sqrt", torch.sqrt, uniform(0, 5, 20)),
    ("square", torch.square, EDGES),
    ("tan", torch.tan, uniform(-1.4, 1.4, 20)),
    ("tanh", torch.tanh, EDGES),
):
    case(name, function, x=x)

A, B = normal(3, 1, 4), normal(2, 1)
M, N = integers(-7, 8, 3, 1, 4), integers(1, 5, 2, 1)
for name, function in (
    ("add", torch.add),
    ("equal", torch.eq),
    ("floor_div", torch.floor_divide),
    ("greater", torch.gt),
    ("greater_equal", torch.ge),
    ("less", torch.lt),
    ("less_equal", torch.le),
    ("maximum", torch.maximum),
    ("minimum", torch.minimum),
    ("mod", torch.remainder),
    ("mul", torch.mul),
    ("not_equal", torch.ne),
    ("sub", torch.sub),
):
    case(name, function, x=A, y=B)
    case(name, function, x=M, y=N)
case("pow", lambda x, y: x**y, x=uniform(0.1, 3, 3, 1, 4), y=B)
case("real_div", lambda x, y: x / y, x=A, y=B)
P, Q = np.array([True, True, False, False]), np.array([True, False, True, False])
case("logical_and", P & Q, x=P, y=Q)
case("logical_or", P | Q, x=P, y=Q)
case("logical_xor", P ^ Q, x=P, y=Q)

case("cast", EDGES.astype(np.int32), x=EDGES, dtype="int32")
case("cast", EDGES != 0, x=EDGES, dtype="bool")
case("cast", M.astype(np.float32), x=M, dtype="fp32")
case("clip", lambda x, alpha, beta: x.clamp(alpha, beta), x=EDGES, alpha=-0.75, beta=1.25)
case("select", torch.where, cond=booleans(3, 4), a=normal(3, 4), b=normal(3, 4))
case("inverse", lambda x, epsilon: 1 / (x + epsilon), x=uniform(0.1, 1, 8), epsilon=0.25)
case("inverse", lambda x: 1 / (x + 1e-4), x=floats(1e-4, 1e-3, 0))
case("log", lambda x, epsilon: (x + epsilon).log(), x=uniform(0.1, 1, 8), epsilon=0.25)
case("log", floats(math.log(np.float32(1e-45)), 0, math.log(2)), x=floats(0, 1, 2))
case("rsqrt", lambda x, epsilon: (x + epsilon).rsqrt(), x=uniform(0.1, 1, 8), epsilon=0.25)
case("rsqrt", lambda x: 1 / (x + 1e-12).sqrt(), x=floats(0, 1e-12, 1e-10))
case("threshold", lambda x, alpha: torch.maximum(x, torch.tensor(alpha)), x=EDGES, alpha=0.3)
for mode, approximate in (("EXACT", "none"), ("TANH_APPROXIMATION", "tanh")):
    case("gelu", lambda x, mode, how=approximate: F.gelu(x, approximate=how), x=EDGES, mode=mode)
case("gelu", lambda x, mode: x * torch.sigmoid(1.702 * x), x=EDGES, mode="SIGMOID_APPROXIMATION")
case("gelu", F.gelu, x=EDGES)
case("leaky_relu", F.leaky_relu, x=EDGES, alpha=0.2)
case("leaky_relu", F.leaky_relu, x=EDGES, alpha=1.5)
case("prelu", F.prelu, x=normal(2, 3, 4, 5), alpha=floats(0.2, 1.5, -1))
case(
    "clamped_relu",
    lambda x, alpha, beta: F.leaky_relu(x, alpha).clamp(max=beta),
    x=EDGES,
    alpha=0.2,
    beta=2.0,
)
case("thresholded_relu", lambda x, alpha: torch.where(x >= alpha, x, 0), x=EDGES, alpha=0.5)
case("elu", F.elu, x=EDGES, alpha=0.7)
case("linear_activation", lambda x, alpha, beta: alpha * x + beta, x=EDGES, alpha=0.7, beta=-0.4)
case("scaled_tanh", lambda x, alpha, beta: alpha * torch.tanh(beta * x), x=EDGES, alpha=0.7, beta=-0.4)
case("sigmoid_hard", lambda x, alpha, beta: (alpha * x + beta).clamp(0, 1), x=EDGES, alpha=0.3, beta=0.4)
case(
    "softplus_parametric",
    lambda x, alpha, beta: alpha[:, None, None] * torch.log(1 + torch.exp(beta[:, None, None] * x)),
    x=normal(2, 3, 4, 5),
    alpha=normal(3),
    beta=normal(3),
)
