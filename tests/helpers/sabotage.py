"""Scalars that are wrong on purpose."""

from __future__ import annotations

from typing import Any

import numpy as np


def swap_heads(attn: Any, mlp: Any) -> tuple[Any, Any]:
    return np.ascontiguousarray(attn[:, [1, 0, *range(2, attn.shape[1])]]), mlp


def drop_layer(attn: Any, mlp: Any) -> tuple[Any, Any]:
    attn, mlp = attn.copy(), mlp.copy()
    attn[1], mlp[1] = 1, 1
    return attn, mlp
