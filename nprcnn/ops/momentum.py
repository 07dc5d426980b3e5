"""One step of stochastic gradient descent with momentum and weight decay, of one array of weights."""

import numpy as np


def momentum_step(w, grad, velocity, lr, momentum, weight_decay):
    """v = momentum * v + grad + weight_decay * w;  w = w - lr * v        (PyTorch's form)

    Parameters
    ----------
    w, grad, velocity : arrays of one shape and dtype
        velocity is changed in place. w is not: others may hold it.
    lr, momentum, weight_decay : float

    Returns
    -------
    The new w.

    Raises
    ------
    ValueError
        The shapes differ.
    """
    if not w.shape == grad.shape == velocity.shape:
        raise ValueError(f"weights {w.shape}, gradient {grad.shape} and velocity {velocity.shape} must have one shape")
    number = w.dtype.type
    velocity *= number(momentum)
    velocity += grad
    velocity += number(weight_decay) * w
    return w - number(lr) * velocity
