"""Where arrays are: in the memory of the CPU (NumPy's arrays) or of a GPU (CuPy's).

    model.to("cuda")                            the parameters move, and what is computed from them stays there
    with count_copies() as copies:
        model.predict(image)
    print(copies)                               what came back to the CPU: names and bytes

Feature maps never come back. What is discrete and small (proposals, matches, samples, levels) is decided on the CPU by the NumPy code that
also serves it alone, from arrays that `to_host` brings: each such copy waits until the GPU has done all that was asked of it. The way up
is NumPy's own: `np.asarray(array, like=other)` puts an array where the other one is.
"""

import sys
from typing import NamedTuple

import numpy as np

from .errors import BackendError

DEVICES = ("cpu", "cuda")
_counting = []      # the Copies that are being filled


def cupy():
    """The module cupy, where it can use a GPU.

    Raises
    ------
    BackendError
        It cannot; the message says why and what to do.
    """
    from .kernels.cuda import gpu
    try:
        return gpu.load()
    except gpu.NoGpu as error:
        raise BackendError(str(error)) from None


def to_device(array, device):
    """The array on "cpu" or "cuda"; itself if it is there already.

    Raises
    ------
    BackendError
        There is no such device, or it cannot be used.
    """
    if device not in DEVICES:
        raise BackendError(f"there is no device {device!r}; choose one of: {', '.join(DEVICES)}")
    return to_host(array, "to cpu") if device == "cpu" else cupy().asarray(array)


def to_host(value, name):
    """An array, a number or a list of arrays -> the same in the memory of the CPU. What is there already is returned as it is.

    name: what count_copies calls it.
    """
    if isinstance(value, (list, tuple)):
        return [to_host(v, name) for v in value]
    if not hasattr(value, "get"):       # only CuPy's arrays have it
        return value
    for copies in _counting:
        copies.append(Copy(name, value.nbytes))
    return value.get()


class Copy(NamedTuple):
    """An array that came from the GPU to the CPU."""

    name: str
    nbytes: int


class Copies(list):
    """All of them, in order; as text a table with a line a name."""

    def __str__(self):
        names = dict.fromkeys(copy.name for copy in self)
        lines = [(name, [copy.nbytes for copy in self if copy.name == name]) for name in names]
        width = max(map(len, names), default=0)
        total = f"{len(self)} copies from the GPU, {sum(copy.nbytes for copy in self)} bytes"
        return "\n".join([*(f"{name:<{width}}  {len(sizes):3} x  {sum(sizes):9} bytes" for name, sizes in lines), total])


class count_copies:
    """`with count_copies() as copies:` fills the list with what comes from a GPU to the CPU inside the block.

    Each copy waits for the GPU. So do, without copying more than a number, functions whose result's length depends on the data (np.nonzero, an
    index of booleans): they are not in the list.
    """

    def __enter__(self):
        _counting.append(Copies())
        return _counting[-1]

    def __exit__(self, *exception):
        _counting.pop()


class memory_errors:
    """`with memory_errors():` makes of "out of memory" on a GPU a BackendError that says what to do, and gives back what is no longer used."""

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        module = sys.modules.get("cupy")
        if error is None or module is None or isinstance(error, BackendError):
            return
        if isinstance(error, module.cuda.memory.OutOfMemoryError) or "cudaErrorMemoryAllocation" in str(error):
            text = str(error).splitlines()[0].rstrip(". ")
            # the traceback holds the frames, and they the arrays: let go of both, or the pool has nothing to free
            error.__traceback__ = None
            module.get_default_memory_pool().free_all_blocks()
            raise BackendError(f"the memory of the GPU is full ({text}): take smaller images (min_size, max_size) or fewer at once (--batch-size, "
                               'with --accumulate to keep the step), or compute on the CPU: device "cpu"') from None


def move(tensors, device):
    """Move the `data` of Parameters and Buffers. All or none."""
    with memory_errors():
        moved = [to_device(tensor.data, device) for tensor in tensors]
    for tensor, data in zip(tensors, moved):
        tensor.data = data


def is_on_gpu(array):
    """Is it one of CuPy's arrays?"""
    return not isinstance(array, np.ndarray)
