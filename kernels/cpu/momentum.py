"""A step of gradient descent in one pass: NumPy makes seven over three arrays, and there is little arithmetic to wait for.

Each operation is rounded by itself, in nprcnn.ops' order: the same bits.
"""

import numpy as np
from numba import njit

from . import workers
from .checks import plain
from .lock import alone


@njit(nogil=True, cache=True)
def _step(start, stop, w, grad, velocity, lr, momentum, weight_decay, moved):
    w, grad, velocity, moved = w[start:stop], grad[start:stop], velocity[start:stop], moved[start:stop]
    for i in range(len(w)):
        v = momentum * velocity[i] + grad[i] + weight_decay * w[i]
        velocity[i] = v
        moved[i] = w[i] - lr * v


@alone
def momentum_step(w, grad, velocity, lr, momentum, weight_decay):
    """v = momentum * v + grad + weight_decay * w, in place; returns w - lr * v. See nprcnn.ops.momentum."""
    if not w.shape == grad.shape == velocity.shape:
        raise ValueError(f"weights {w.shape}, gradient {grad.shape} and velocity {velocity.shape} must have one shape")
    moved, written = np.empty(w.shape, w.dtype), plain(velocity)
    factors = (w.dtype.type(factor) for factor in (lr, momentum, weight_decay))
    workers.share(_step, w.size, workers.MOVED * w.size, plain(w).reshape(-1), plain(grad, w.dtype).reshape(-1), written.reshape(-1),
                  *factors, moved.reshape(-1))
    if written is not velocity:
        velocity[...] = written
    return moved
