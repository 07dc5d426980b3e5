"""The ReLU's gradient in one pass: NumPy makes a map of booleans first, in one thread."""

import numpy as np
from numba import njit

from . import workers
from .checks import ZERO, plain
from .lock import alone


@njit(nogil=True, cache=True)
def _mask(start, stop, dy, y, dx):
    dy, y, dx = dy[start:stop], y[start:stop], dx[start:stop]     # slices, so that the index begins at 0
    for i in range(len(dy)):
        # A product, not a choice: what is not finite in dy stays so, as in nprcnn.ops
        dx[i] = dy[i] * (dy.dtype.type(1) if y[i] > ZERO else dy.dtype.type(0))


@alone
def relu_grad(dy, y):
    """dy where y > 0, of dy's shape. See nprcnn.ops.activation.relu_grad."""
    if dy.shape != y.shape:
        raise ValueError(f"dy must have the output's shape {y.shape}, not {dy.shape}")
    dx = np.empty(dy.shape, dy.dtype)
    workers.share(_mask, dy.size, workers.MOVED * dy.size, plain(dy).reshape(-1), plain(y).reshape(-1), dx.reshape(-1))
    return dx
