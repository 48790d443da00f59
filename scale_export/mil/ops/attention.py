"""Softmax, normalizations and fused attention."""

from __future__ import annotations

import math

import numpy as np

from scale_export.core.records import Array

from .registry import Ints, op


@op
def softmax(x: Array, axis: int = -1) -> Array:
    """eˣ over its sum along ``axis``."""
    weights = np.exp(x - x.max(axis, keepdims=True))
    y: Array = np.divide(weights, weights.sum(axis, keepdims=True))
    return y


@op
def scaled_dot_product_attention(
    query: Array, key: Array, value: Array, attn_mask: Array | None = None
) -> Array:
    """softmax(query · keyᵀ / √width + mask) · value; a boolean mask says what takes part."""
    scores = query @ key.swapaxes(-1, -2) / math.sqrt(query.shape[-1])
    if attn_mask is not None:
        scores = np.where(attn_mask, scores, -np.inf) if attn_mask.dtype == bool else scores + attn_mask
    y: Array = softmax(scores) @ value
    return y


def _normalized(x: Array, axes: Ints, epsilon: float) -> Array:
    """``x`` less its mean over ``axes``, over the root of its variance plus ``epsilon``."""
    centred = x - x.mean(axes, keepdims=True)
    y: Array = np.divide(centred, np.sqrt(np.square(centred).mean(axes, keepdims=True) + epsilon))
    return y


def _affine(x: Array, axes: Ints, gamma: Array | None, beta: Array | None) -> Array:
    """``gamma · x + beta``, both of which lie along ``axes``."""
    along = [size if axis in axes else 1 for axis, size in enumerate(x.shape)]
    x = x if gamma is None else x * gamma.reshape(along)
    return x if beta is None else x + beta.reshape(along)


@op
def layer_norm(
    x: Array,
    axes: Ints | None = None,
    gamma: Array | None = None,
    beta: Array | None = None,
    epsilon: float = 1e-5,
) -> Array:
    """``x`` normalized over ``axes`` (by default all), then scaled and shifted along them."""
    axes = tuple(range(x.ndim)) if axes is None else tuple(axis % x.ndim for axis in axes)
    return _affine(_normalized(x, axes, epsilon), axes, gamma, beta)


@op
def instance_norm(
    x: Array, gamma: Array | None = None, beta: Array | None = None, epsilon: float = 1e-5
) -> Array:
    """``x [N, C, *sizes]`` normalized over its sizes, then scaled and shifted per channel."""
    return _affine(_normalized(x, tuple(range(2, x.ndim)), epsilon), (1,), gamma, beta)


@op
def batch_norm(
    x: Array,
    mean: Array,
    variance: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    epsilon: float = 1e-5,
) -> Array:
    """``x [N, C, *sizes]`` normalized by given moments, then scaled and shifted per channel."""
    centred = _affine(x, (1,), None, -mean)
    normalized = _affine(centred, (1,), 1 / np.sqrt(variance + epsilon), None)
    return _affine(normalized, (1,), gamma, beta)


@op
def l2_norm(x: Array, epsilon: float = 1e-6) -> Array:
    """``x`` over the root of its squares' sum over the last three axes plus ``epsilon``."""
    y: Array = np.divide(x, np.sqrt(np.square(x).sum((-3, -2, -1), keepdims=True) + epsilon))
    return y
