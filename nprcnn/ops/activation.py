"""ReLU, sigmoid and softmax, and their backward passes."""

from typing import NamedTuple

import numpy as np


class ReluCache(NamedTuple):
    y: np.ndarray


class SigmoidCache(NamedTuple):
    y: np.ndarray


class SoftmaxCache(NamedTuple):
    y: np.ndarray
    axis: int


def relu(x):
    """max(x, 0), elementwise; NaN stays NaN. Any shape."""
    return np.maximum(x, 0)


def relu_grad(dy, y):
    """Gradient of relu from its output y, both of any one shape. At 0, where ReLU has none, it is 0, as in PyTorch."""
    _check_dy(dy, y)
    # forward: y = max(x, 0), so dx = dy where x > 0, and that is where y > 0
    return dy * (y > 0)


def relu_forward(x):
    """relu, and the cache for its backward pass."""
    y = relu(x)
    return y, ReluCache(y)


def relu_backward(dy, cache):
    """Gradient of relu, of dy's shape."""
    return relu_grad(dy, cache.y)


def sigmoid(x):
    """1 / (1 + exp(-x)), elementwise, to rounding for any x: no exponential is taken of a positive number."""
    # x >= 0: 1 / (1 + exp(-x)).  x < 0: exp(x) / (1 + exp(x))
    y = np.exp(np.minimum(x, 0))
    y /= 1 + np.exp(-np.abs(x))
    return y


def sigmoid_forward(x):
    """sigmoid, and the cache for its backward pass."""
    y = sigmoid(x)
    return y, SigmoidCache(y)


def sigmoid_backward(dy, cache):
    """Gradient of sigmoid, of dy's shape."""
    _check_dy(dy, cache.y)
    # forward: y = 1 / (1 + exp(-x)), whose derivative is y (1 - y)
    return dy * cache.y * (1 - cache.y)


def softmax(x, axis=-1):
    """exp(x) / sum(exp(x)) along `axis`.

    The largest x is subtracted first, which changes nothing but prevents overflow.
    """
    y = np.exp(x - x.max(axis=axis, keepdims=True))
    y /= y.sum(axis=axis, keepdims=True)
    return y


def softmax_forward(x, axis=-1):
    """softmax, and the cache for its backward pass."""
    y = softmax(x, axis)
    return y, SoftmaxCache(y, axis)


def softmax_backward(dy, cache):
    """Gradient of softmax, of dy's shape."""
    y, axis = cache
    _check_dy(dy, y)
    # forward: y_i = exp(x_i) / sum, so dy_i / dx_j = y_i (delta_ij - y_j), and dx = y (dy - sum_i dy_i y_i)
    dx = dy * y
    dx -= y * dx.sum(axis=axis, keepdims=True)
    return dx


def _check_dy(dy, y):
    if dy.shape != y.shape:
        raise ValueError(f"dy must have the output's shape {y.shape}, not {dy.shape}")
