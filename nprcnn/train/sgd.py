"""Stochastic gradient descent with momentum, weight decay and gradient clipping."""

import numpy as np

from .. import backend, devices


class SGD:
    """v = momentum * v + (grad + weight_decay * w);  w = w - lr * v        (PyTorch's form)

    Parameters
    ----------
    parameters : list of Parameter
        Those that are not trainable are left out. `parameters` and `velocity` list the others and their v, in one order.
    momentum, weight_decay : float
        mu and lambda of v = mu v + (g + lambda w). The paper's are .9 and 1e-4 (section 3.1).
    """

    def __init__(self, parameters, momentum=0.9, weight_decay=1e-4):
        self.parameters = [p for p in parameters if p.trainable]
        self.momentum, self.weight_decay = momentum, weight_decay
        self.velocity = [np.zeros_like(p.data) for p in self.parameters]

    def step(self, lr):
        """Change every parameter by its gradient; one without a gradient is left alone."""
        with devices.memory_errors():
            for p, v in zip(self.parameters, self.velocity):
                if p.grad is not None:
                    p.data = backend.active(v).momentum_step(p.data, p.grad, v, lr, self.momentum, self.weight_decay)


def clip_gradients(parameters, max_norm):
    """Scale all gradients, in place, by one factor so that their common 2-norm is at most max_norm. Returns the norm before.

    Pascanu, Mikolov, Bengio (arXiv 1211.5063), section 3.2.
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    # all in one array, so that a GPU is waited for once
    squares = devices.to_host(np.stack([np.vdot(g, g) for g in grads]), "norms of the gradients") if grads else []
    norm = float(np.sqrt(sum(map(float, squares))))
    if norm > max_norm:
        for g in grads:
            g *= g.dtype.type(max_norm / norm)
    return norm
