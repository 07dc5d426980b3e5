"""How much arithmetic a stage is, and how fast this machine can do it at best."""

import time
from contextlib import contextmanager

import numpy as np

from .. import backend
from ..layers import Linear


def gemm_peak(size=2048, rounds=5):
    """GFLOP/s of the best of some large float32 matrix products: what no convolution by matrix products can exceed."""
    a = np.ones((size, size), np.float32)
    out = np.empty_like(a)
    best = np.inf
    for _ in range(rounds):
        start = time.perf_counter()
        np.matmul(a, a, out=out)
        best = min(best, time.perf_counter() - start)
    return 2 * size ** 3 / best / 1e9


class Work:
    """GFLOP by stage: `direct`, and `least`, where 3x3 convolutions of stride 1 take a quarter: by Winograd's F(4x4, 3x3), which
    needs 36 products for 16 outputs instead of 144 (arXiv 1509.09308)."""

    def __init__(self, stopwatch):
        self.stopwatch, self.direct, self.least = stopwatch, {}, {}

    def add(self, flops, is_winograd=False):
        stage = self.stopwatch.now or "other"
        self.direct[stage] = self.direct.get(stage, 0.0) + flops / 1e9
        self.least[stage] = self.least.get(stage, 0.0) + flops / 1e9 / (4 if is_winograd else 1)

    def convolution(self, function):
        """A conv2d-like kernel whose work is counted: 2 numbers a product, one product an output and weight."""
        def run(x, w, *args, **kwargs):
            y = function(x, w, *args, **kwargs)
            out_channels, in_channels, kh, kw = w.shape
            is_winograd = (kh, kw) == (3, 3) and y.shape[2:] == x.shape[2:] and in_channels == x.shape[1]
            self.add(2 * y.size * in_channels * kh * kw, is_winograd)
            return y
        return run

    def transposed(self, function):
        """conv2d_grad_x, by which the mask head's transposed convolution works."""
        def run(dy, w, *args, **kwargs):
            self.add(2 * dy.size * int(np.prod(w.shape[1:])))
            return function(dy, w, *args, **kwargs)
        return run

    @contextmanager
    def counted(self):
        """While the block runs, count the work of the active KernelSet's convolutions and of all Linear layers."""
        kernels = backend.active()
        wrap = {name: self.convolution(getattr(kernels, name)) for name in ("conv2d", "conv2d_fused")}
        backend.KERNEL_SETS["counting"] = kernels._replace(conv2d_grad_x=self.transposed(kernels.conv2d_grad_x), **wrap)
        forward = Linear.forward

        def counted_forward(layer, x, train):
            self.add(2 * len(x) * layer.weight.data.size)
            return forward(layer, x, train)
        Linear.forward = counted_forward
        try:
            with backend.use("counting"):
                yield self
        finally:
            Linear.forward = forward
            del backend.KERNEL_SETS["counting"]
