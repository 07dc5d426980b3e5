"""Batch normalisation, trainable and frozen, and the backward passes.

Ioffe and Szegedy, "Batch Normalization" (arXiv 1502.03167), algorithm 1; the conventions (biased variance to
normalise, unbiased variance into the running average, momentum .1) are those of torch.nn.BatchNorm2d.

Letters: N images (or rows), C channels, P = H * W pixels of a plane (1 for rows), M = N * P values a channel.
Inside this file arrays are seen as (N, C, P), and one number a channel as (C, 1).
"""

from typing import NamedTuple

import numpy as np


class BatchNormCache(NamedTuple):
    x: np.ndarray
    weight: np.ndarray
    mean: np.ndarray
    inv_std: np.ndarray
    train: bool


class FrozenBatchNormCache(NamedTuple):
    scale: np.ndarray


def batch_norm_forward(x, weight, bias, running_mean, running_var, train=True, momentum=0.1, eps=1e-5):
    """Normalise each channel, then scale and shift it.

    Parameters
    ----------
    x : (N, C, H, W) or (N, C)
    weight, bias, running_mean, running_var : (C,)
    train : bool
        True: normalise with this batch's mean and variance. False: with the running ones.
    momentum : float
        How much of this batch goes into the running statistics.
    eps : float
        Added to the variance.

    Returns
    -------
    y : shape of x
    cache : BatchNormCache
    (new_running_mean, new_running_var) : (C,) each
        With train=False, and for an empty batch, the ones that were passed. No argument is modified: the
        caller assigns them.

    Raises
    ------
    ValueError
        Shapes that do not fit, or one single value a channel in training: its variance is 0 whatever it is.
    """
    _check(x, weight=weight, bias=bias, running_mean=running_mean, running_var=running_var)
    if not train or x.size == 0:
        inv_std = 1 / np.sqrt(running_var + eps)
        y = _planes(x) - running_mean[:, None]
        mean, new_running = running_mean, (running_mean, running_var)
    else:
        count = x.size // x.shape[1]
        if count == 1:
            raise ValueError(f"batch norm in training needs more than one value a channel; x is {x.shape}")
        mean = _channel_sum(_planes(x)) / count
        y = _planes(x) - mean[:, None]
        var = _channel_dot(y, y) / count
        inv_std = 1 / np.sqrt(var + eps)
        new_running = ((1 - momentum) * running_mean + momentum * mean,
                       (1 - momentum) * running_var + momentum * (count / (count - 1)) * var)
    y *= (weight * inv_std)[:, None]
    y += bias[:, None]
    return y.reshape(x.shape), BatchNormCache(x, weight, mean, inv_std, train), new_running


def batch_norm_backward(dy, cache):
    """Gradients of batch_norm: dy (shape of x) -> dx (shape of x), dweight (C,), dbias (C,)."""
    x, weight, mean, inv_std, train = cache
    _check_dy(dy, x.shape)
    planes = _planes(dy)
    centred = _planes(x) - mean[:, None]
    # forward: y = weight * xhat + bias, xhat = (x - mean) * inv_std
    dbias = _channel_sum(planes)
    dweight = _channel_dot(planes, centred) * inv_std
    if not train or x.size == 0:
        # mean and inv_std are constants here, so dx = dy * weight * inv_std
        return (planes * (weight * inv_std)[:, None]).reshape(x.shape), dweight, dbias
    # In training both depend on x, and every x of the channel moves every y of it:
    #   forward: mean = sum(x) / M       adds  - weight * inv_std * sum(dy) / M          to dx
    #   forward: var = sum((x - mean)^2) / M, inv_std = (var + eps)^-1/2
    #                                    adds  - weight * inv_std * xhat * sum(dy * xhat) / M
    # so dx = weight * inv_std * (dy - dbias / M - xhat * dweight / M)
    count = x.size // x.shape[1]
    dx = centred
    dx *= (dweight * inv_std / -count)[:, None]
    dx += planes
    dx -= (dbias / count)[:, None]
    dx *= (weight * inv_std)[:, None]
    return dx.reshape(x.shape), dweight, dbias


def frozen_batch_norm_forward(x, weight, bias, running_mean, running_var, eps=1e-5):
    """Batch norm that never learns: y = x * scale + shift, scale = weight / sqrt(running_var + eps).

    Shapes and errors are those of batch_norm_forward. All four vectors are constants: only x has a gradient.
    The arithmetic is that of torchvision.ops.FrozenBatchNorm2d.
    """
    _check(x, weight=weight, bias=bias, running_mean=running_mean, running_var=running_var)
    scale = weight / np.sqrt(running_var + eps)
    shift = bias - running_mean * scale
    y = _planes(x) * scale[:, None]
    y += shift[:, None]
    return y.reshape(x.shape), FrozenBatchNormCache(scale)


def frozen_batch_norm_backward(dy, cache):
    """Gradient of frozen_batch_norm: dy -> dx, of the same shape."""
    if dy.ndim not in (2, 4) or dy.shape[1:2] != cache.scale.shape:
        raise ValueError(f"dy must be (N, C, H, W) or (N, C) with C = {cache.scale.shape[0]}, not {dy.shape}")
    # forward: y = x * scale + shift, so dx = dy * scale
    return (_planes(dy) * cache.scale[:, None]).reshape(dy.shape)


def _planes(x):
    """(N, C, H, W) or (N, C) -> (N, C, P)."""
    return x.reshape(x.shape[0], x.shape[1], int(np.prod(x.shape[2:])))


def _channel_sum(planes):
    """Sum of each channel: (N, C, P) -> (C,)."""
    return planes.sum(axis=(0, 2))


def _channel_dot(a, b):
    """Sum of a * b over each channel, without an array for the products."""
    return np.einsum("ncp,ncp->nc", a, b).sum(axis=0)


def _check(x, **vectors):
    if x.ndim not in (2, 4):
        raise ValueError(f"x must be (N, C, H, W) or (N, C), not {x.shape}")
    for name, vector in vectors.items():
        if vector.shape != (x.shape[1],):
            raise ValueError(f"{name} must be ({x.shape[1]},), one number a channel of x {x.shape}, "
                             f"not {vector.shape}")


def _check_dy(dy, shape):
    if dy.shape != shape:
        raise ValueError(f"dy must have the output's shape {shape}, not {dy.shape}")
