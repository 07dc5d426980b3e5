"""The fully connected layer and its backward pass."""

from typing import NamedTuple

import numpy as np


class LinearCache(NamedTuple):
    x: np.ndarray
    w: np.ndarray
    has_bias: bool


def linear_forward(x, w, b=None):
    """y = x @ w.T + b, as torch.nn.functional.linear.

    Parameters
    ----------
    x : (R, I), a row for each RoI
    w : (O, I)
    b : (O,) or None

    Returns
    -------
    y : (R, O)
    cache : LinearCache

    Raises
    ------
    ValueError
        Shapes that do not fit each other.
    """
    if x.ndim != 2 or w.ndim != 2 or x.shape[1] != w.shape[1]:
        raise ValueError(f"x must be (R, I) and w (O, I), not {x.shape} and {w.shape}")
    if b is not None and b.shape != (w.shape[0],):
        raise ValueError(f"b must be ({w.shape[0]},), one number an output, not {b.shape}")
    y = x @ w.T
    if b is not None:
        y += b
    return y, LinearCache(x, w, b is not None)


def linear_backward(dy, cache):
    """Gradients of linear: dy (R, O) -> dx (R, I), dw (O, I), db (O,) or None."""
    x, w, has_bias = cache
    if dy.shape != (x.shape[0], w.shape[0]):
        raise ValueError(f"dy must have the output's shape {(x.shape[0], w.shape[0])}, not {dy.shape}")
    # forward: y[r, o] = sum over i of x[r, i] w[o, i], so dx[r, i] = sum over o of dy[r, o] w[o, i]
    dx = dy @ w
    # ... and dw[o, i] = sum over r of dy[r, o] x[r, i]
    dw = dy.T @ x
    # forward: y = ... + b, the same b in every row
    db = dy.sum(axis=0) if has_bias else None
    return dx, dw, db
