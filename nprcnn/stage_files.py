"""The stages of a forward pass in a file, so that another run, or another system, can be compared with it."""

import re
from pathlib import Path

import numpy as np

from .data.images import write_whole
from .errors import DataError
from .trace import NAMES, OTHER_NAMES
from .weights.files import read_weights

STAGES = {**NAMES, **OTHER_NAMES}


def save_stages(trace, path):
    """Write a trace to an .npz file: stage name -> array; of a list NAME.0, NAME.1, ..., one an image."""
    path = Path(path)
    if path.suffix != ".npz":
        raise DataError(f"{path}: stages are written as .npz; give a name that ends so")
    arrays = {}
    for name in trace:
        value = trace[name]
        arrays.update({f"{name}.{k}": v for k, v in enumerate(value)} if isinstance(value, (list, tuple)) else {name: value})
    write_whole(path, lambda file: np.savez(file, **arrays))


def holds_stages(path):
    """Is it an .npz file of stages, and not of weights?"""
    if Path(path).suffix != ".npz":
        return False
    return any(name in STAGES or name.rpartition(".")[0] in STAGES for name in read_weights(path))


def load_stages(path):
    """{name: array or list of arrays} of a file that save_stages wrote, or of another system's tensors under these names.

    Raises
    ------
    DataError
        The file holds no stage of nprcnn.trace.NAMES. WeightsError if it cannot be read.
    """
    arrays = read_weights(path)
    stages = {}
    for name in sorted(arrays, key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]):
        base, _, last = name.rpartition(".")
        if base in STAGES and last.isdigit():
            stages.setdefault(base, []).append(arrays[name])
        elif name in STAGES:
            stages[name] = arrays[name]
    if not stages:
        raise DataError(f"{path} holds no stage of a model; `nprcnn compare WEIGHTS --save FILE.npz` writes such a file")
    return stages
