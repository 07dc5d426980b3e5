"""What the kernels of this folder share: where they run, and how many blocks they need.

`numba.cuda` runs a kernel on an NVIDIA GPU, or, where NUMBA_ENABLE_CUDASIM=1 was set before Python imported Numba, in its simulator:
there each CUDA thread is a Python thread, and print() and pdb work in a kernel.
"""

import functools
from importlib.util import find_spec

import numpy as np
from numba import config, cuda

THREADS = 256       # a block, where nothing speaks for another number

# Numbers in a kernel. A Python float or int beside a float32 would make Numba compute in float64, for which most GPUs have few units;
# beside float64 these become float64.
ZERO, HALF, ONE = np.float32(0), np.float32(0.5), np.float32(1)


class NoCuda(RuntimeError):
    """There is neither a GPU nor the simulator."""


@functools.cache
def check():
    """Can kernels run here?

    Raises
    ------
    NoCuda : the message says what to set or to install.
    """
    # Numba's own CUDA compiler is no longer kept (that of Numba 0.68 refuses max(a, b)); numba-cuda takes its place and its name
    if not config.ENABLE_CUDASIM and not (find_spec("numba_cuda") and cuda.is_available()):
        raise NoCuda('the kernels "numba-cuda" need Numba\'s simulator (set the environment variable NUMBA_ENABLE_CUDASIM=1 before Python '
                     'starts; it is slow: for small arrays) or an NVIDIA GPU (install its driver and pip install "numba-cuda[cu12]")')


def blocks_for(threads, block=THREADS):
    """How many blocks give at least so many threads."""
    return max(1, -(-threads // block))


def to_device(array, dtype=None):
    """A copy of a NumPy array in the memory of the GPU, contiguous (and of that dtype)."""
    return cuda.to_device(np.ascontiguousarray(array, dtype))
