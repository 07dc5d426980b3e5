"""How long a GPU works on something. A launch returns at once, so the clock of the CPU alone would time the asking, not the work."""

import time
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from ..stopwatch import Stopwatch


class Timing(NamedTuple):
    """Medians, in milliseconds.

    gpu_ms : from when the GPU begins with the call's first work until it has done the last
    call_ms : as the caller sees it: Python's work, the launches, and the wait for the end
    count : of calls, the warm-up not counted
    """

    gpu_ms: float
    call_ms: float
    count: int


class Clock:
    """Times calls that run on the GPU's default stream, which CuPy and torch share.

    Parameters
    ----------
    cupy : the module
    seconds : float
        How long to repeat a call: `least` to `most` times.
    head_start : int
        Before each call that is timed by events the GPU is given a matrix product of this side to work on, so that the CPU is ahead
        of it and the events do not time the CPU. Where a call itself waits for the GPU, the head start is lost there, and the
        waiting is in the time.
    """

    def __init__(self, cupy, seconds=0.08, least=3, most=30, head_start=4096):
        self.cupy, self.seconds, self.least, self.most = cupy, seconds, least, most
        self._matrix = cupy.ones((head_start, head_start), np.float32)
        self._product = cupy.empty((head_start, head_start), np.float32)

    def wait(self):
        """Until the GPU has done all that was asked of it."""
        self.cupy.cuda.runtime.deviceSynchronize()

    def wall_ms(self, function):
        """Of one call, until the GPU has done it."""
        self.wait()
        start = time.perf_counter()
        function()
        self.wait()
        return 1e3 * (time.perf_counter() - start)

    def time(self, function):
        """The Timing of a function of nothing. It runs twice before anything is timed: kernels are compiled, memory is there."""
        function()
        self.wall_ms(function)
        first = self.wall_ms(function)
        count = int(np.clip(1e3 * self.seconds / max(first, 1e-3), self.least, self.most))
        calls = [self.wall_ms(function) for _ in range(count)]
        events = [(self.cupy.cuda.Event(), self.cupy.cuda.Event()) for _ in range(count)]
        for begin, end in events:
            self.cupy.matmul(self._matrix, self._matrix, out=self._product)
            begin.record()
            function()
            end.record()
        self.wait()
        gpu = [self.cupy.cuda.get_elapsed_time(begin, end) for begin, end in events]
        return Timing(float(np.median(gpu)), float(np.median(calls)), count)


class WaitingStopwatch(Stopwatch):
    """A Stopwatch that lets the GPU finish before and after each stage. The sum is more than a run without it: nothing overlaps."""

    def __init__(self, wait):
        super().__init__()
        self.wait = wait

    def watched(self, stage, function):
        def finished(*args, **kwargs):
            result = function(*args, **kwargs)
            self.wait()
            return result
        timed = super().watched(stage, finished)

        def run(*args, **kwargs):
            self.wait()
            return timed(*args, **kwargs)
        return run


@contextmanager
def count_synchronisations(cupy):
    """`with count_synchronisations(cupy) as count:` len(count) is how often CuPy waited for the GPU inside the block.

    Counted where CuPy announces it (cupy._core.syncdetect): copies to the CPU, and numbers and lengths that Python needs.
    """
    detect, count = cupy._core.syncdetect, []
    original = detect._declare_synchronize

    def declare():
        count.append(1)
        original()
    detect._declare_synchronize = declare
    try:
        yield count
    finally:
        detect._declare_synchronize = original


@contextmanager
def tf32_products(cupy, on):
    """While the block runs, CuPy's float32 matrix products may (or may not) round their factors to TF32."""
    linalg = cupy._core._routines_linalg
    before = linalg.get_compute_type(np.float32)
    linalg.set_compute_type(np.float32, linalg.COMPUTE_TYPE_TF32 if on else linalg.COMPUTE_TYPE_DEFAULT)
    try:
        yield
    finally:
        linalg.set_compute_type(np.float32, before)
