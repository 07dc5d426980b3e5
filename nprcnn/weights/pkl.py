"""Detectron2's .pkl files of weights, as in its model zoo.

A pickle, `{"model": {name: array}, "__author__": ...}` (detectron2/checkpoint/detection_checkpoint.py), some of them written by
Python 2, whose byte strings are read as latin-1.

The names are Detectron2's own, `backbone.bottom_up.res2.0.conv1.weight`: read_weights gives the arrays as they are, and load_weights
maps them to this package's (detectron2.py).
"""

import io
import math
from pathlib import Path

import numpy as np

from .safe_pickle import DICTS, Name, SafeUnpickler, Stateful, require

KINDS = {f"{kind}{size}" for kind, sizes in (("f", (2, 4, 8)), ("i", (1, 2, 4, 8)), ("u", (1, 2, 4, 8)), ("b", (1,))) for size in sizes}


class PickledDtype(Stateful):
    """numpy.dtype("f4", False, True), whose state then tells the byte order."""

    def __init__(self, kind, *flags):
        require(type(kind) is str and kind.lstrip("<>|=") in KINDS,
                f"the file holds an array of type {str(kind)[:20]!r}, not of numbers")
        self.dtype = np.dtype(kind)

    def set_state(self, state):
        require(type(state) is tuple and len(state) >= 2 and state[1] in ("<", ">", "|", "="), "the state of a NumPy type is broken")
        self.dtype = self.dtype.newbyteorder(state[1])


class PickledArray(Stateful):
    """numpy.ndarray, made empty; its state then brings (version, shape, type, whether Fortran order, bytes)."""

    def __init__(self, *arguments):
        self.array = None

    def set_state(self, state):
        require(type(state) is tuple and len(state) == 5, "the state of an array is broken")
        _, shape, dtype, fortran, content = state
        require(type(dtype) is PickledDtype, "an array has no type of numbers")
        dtype = dtype.dtype
        require(type(shape) is tuple and len(shape) <= 32 and all(type(n) is int and n >= 0 for n in shape),
                "the shape of an array is broken")
        if type(content) is str:
            content = content.encode("latin1")
        require(type(content) is bytes and math.prod(shape) * dtype.itemsize == len(content),
                f"an array of shape {str(shape)[:80]} does not have the bytes of that shape")
        self.array = np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")


def read_pkl(path):
    """{name: array} of a Detectron2 .pkl file, under Detectron2's names.

    Raises
    ------
    WeightsError
        The pickle names anything but dictionaries and NumPy's arrays of numbers, or is not of this layout. Broken bytes raise what
        Python finds wrong with them.
    """
    data = Path(path).read_bytes()
    budget = 4 * len(data) + 2 ** 20  # bytes that the pickle may bring forth; it could repeat one string without end

    def encode(text, encoding):
        nonlocal budget
        require(type(text) is str and encoding in ("latin1", "latin-1"), "the pickle encodes something other than bytes")
        budget -= len(text)
        require(budget >= 0, "the pickle makes more bytes than the file has")
        return text.encode("latin1")

    modules = ("numpy.core.multiarray", "numpy._core.multiarray")
    names = [*DICTS, *(Name(f"{module}._reconstruct", PickledArray) for module in modules), Name("numpy.ndarray"),
             Name("numpy.dtype", PickledDtype), Name("_codecs.encode", encode)]
    content = SafeUnpickler(names).load(io.BytesIO(data))
    require(type(content) is dict and type(content.get("model")) is dict,
            'not a file of Detectron2\'s model zoo: the pickle is no dictionary with the entry "model"')
    state = {}
    for name, value in content["model"].items():
        require(type(name) is str and type(value) is PickledArray and value.array is not None, f"{str(name)[:80]} is not an array")
        budget -= value.array.nbytes
        require(budget >= 0, "the arrays claim more than the file has")
        state[name] = np.array(value.array, value.array.dtype.newbyteorder("="), order="C")
    return state
