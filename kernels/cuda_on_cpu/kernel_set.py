"""The functions of the kernel set "cuda-on-cpu": the kernels of kernels/cuda, run on the CPU. Signatures of nprcnn.ops.

They are there to be read, stepped through and counted, not to be fast.
"""

from ..cuda import kernel_set
from . import compiler


def functions(deterministic=False):
    """Name of a KernelSet's field -> function, as kernels/cuda/kernel_set.py lists them.

    Raises
    ------
    compiler.NoCompiler : there is no C++ compiler; the message says what to install.
    """
    compiler.find()
    return kernel_set.functions(deterministic)
