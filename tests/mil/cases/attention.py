"""Softmax, normalizations and fused attention."""

from __future__ import annotations

import numpy as np
import torch.nn.functional as F

from .table import X, booleans, case, normal, uniform

case("softmax", lambda x: x.softmax(-1), x=X * 40)
case("softmax", lambda x, axis: x.softmax(1), x=X, axis=1)
QKV = {"query": normal(2, 3, 4, 8), "key": normal(2, 3, 5, 8), "value": normal(2, 3, 5, 6)}
MASK = booleans(4, 5) | (np.arange(5) == 1)
case(
    "scaled_dot_product_attention",
    F.scaled_dot_product_attention,
    **QKV,
)
for mask in (MASK, normal(2, 1, 4, 5), np.where(MASK, 0, -np.inf).astype(np.float32)):
    case(
        "scaled_dot_product_attention",
        F.scaled_dot_product_attention,
        **QKV,
        attn_mask=mask,
    )
case(
    "scaled_dot_product_attention",
    F.scaled_dot_product_attention,
    query=normal(2, 4, 8),
    key=normal(2, 5, 8),
    value=normal(2, 5, 6),
)
SMALL = normal(2, 3, 4) * 1e-2
case(
    "layer_norm",
    lambda x, axes, gamma, beta, epsilon: F.layer_norm(x, (3, 4), gamma, beta, epsilon),
    x=SMALL,
    axes=(-2, -1),
    gamma=normal(3, 4),
    beta=normal(3, 4),
    epsilon=1e-4,
)
case("layer_norm", lambda x: F.layer_norm(x, (2, 3, 4)), x=SMALL)
case("layer_norm", lambda x, axes, gamma: F.layer_norm(x, (4,), gamma), x=SMALL, axes=(2,), gamma=normal(4))
case(
    "layer_norm",
    lambda x, axes, gamma: (F.layer_norm(x.mT, (3,)) * gamma).mT,
    x=SMALL,
    axes=(1,),
    gamma=normal(3),
)
IMAGE = normal(2, 3, 4, 5) * 1e-2
case(
    "instance_norm",
    lambda x, gamma, beta, epsilon: F.instance_norm(x, None, None, gamma, beta, eps=epsilon),
    x=IMAGE,
    gamma=normal(3),
    beta=normal(3),
    epsilon=1e-4,
)
case("instance_norm", F.instance_norm, x=IMAGE)
MOMENTS = {"mean": normal(3), "variance": uniform(1e-5, 1e-4, 3)}
case(
    "batch_norm",
    lambda x, mean, variance, gamma, beta, epsilon: F.batch_norm(x, mean, variance, gamma, beta, eps=epsilon),
    x=IMAGE,
    **MOMENTS,
    gamma=normal(3),
    beta=normal(3),
    epsilon=1e-4,
)
case("batch_norm", F.batch_norm, x=IMAGE, **MOMENTS)
for x, given in ((IMAGE, {"epsilon": 0.5}), (IMAGE * 1e-2, {}), (IMAGE[0] * 1e-2, {})):
    case(
        "l2_norm",
        lambda x, epsilon=1e-6: x / (x.square().sum((-1, -2, -3), keepdim=True) + epsilon).sqrt(),
        x=x,
        **given,
    )
