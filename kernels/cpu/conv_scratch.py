"""Memory for what a convolution needs only while it runs: columns, transformed tiles, one block of output.

A fresh array of 60 MB costs about 5 ms before anybody computes: the system hands it out page by page, each zeroed. So a few buffers
are kept between calls. An output never comes from here: it belongs to the caller.
"""

import threading
from contextlib import contextmanager

import numpy as np

KEPT_BYTES = 192 << 20   # at most this much stays allocated between calls
ALIGNMENT = 128          # bytes: two cache lines

_free = []               # buffers (uint8 arrays) that nobody uses now
_lock = threading.Lock()


@contextmanager
def scratch(dtype, *sizes):
    """`with scratch(dtype, size_a, size_b) as (a, b)`: flat arrays of these many numbers, not initialised.

    Each call in flight has buffers of its own, whichever thread it runs in.
    """
    itemsize = np.dtype(dtype).itemsize
    starts = [0]
    for size in sizes:
        starts.append(starts[-1] + -(-size * itemsize // ALIGNMENT) * ALIGNMENT)
    buffer = _take(starts[-1])
    try:
        yield [buffer[start:start + size * itemsize].view(dtype) for start, size in zip(starts, sizes)]
    finally:
        _give_back(buffer)


def _take(nbytes):
    """The smallest free buffer that is large enough, or a new one."""
    with _lock:
        fitting = [buffer for buffer in _free if buffer.nbytes >= nbytes]
        if fitting:
            buffer = min(fitting, key=lambda b: b.nbytes)
            _free[:] = [other for other in _free if other is not buffer]
            return buffer
    return np.empty(nbytes, np.uint8)


def _give_back(buffer):
    """Keep the buffer, and drop the smallest ones while there is too much: a large one serves small calls too."""
    with _lock:
        _free.append(buffer)
        _free.sort(key=lambda b: b.nbytes)
        while sum(b.nbytes for b in _free) > KEPT_BYTES:
            _free.pop(0)
