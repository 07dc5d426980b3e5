"""Weights in .safetensors and .npz files."""

import os
import zipfile
from pathlib import Path

import numpy as np

from ..errors import WeightsError

SHIPPED = {"shapes": "tiny_shapes.safetensors"}  # beside this file


def read_weights(path):
    """Read a file of weights.

    Parameters
    ----------
    path : path, or one of the names in SHIPPED

    Returns
    -------
    {name: array}

    Raises
    ------
    WeightsError
        The file is not there, is not a kind that we read, is damaged, or holds NaN or infinity.
    """
    path = Path(__file__).with_name(SHIPPED[path]) if path in SHIPPED else Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: there is no such file; give a .safetensors or .npz file, or one of the names of the "
                           f"weights that come with the package: {', '.join(SHIPPED)}")
    if path.suffix == ".safetensors":
        state = _read_safetensors(path)
    elif path.suffix == ".npz":
        state = _read_npz(path)
    else:
        raise WeightsError(f"{path}: weights of kind {path.suffix or '(no suffix)'} are not known; "
                           "give a .safetensors or .npz file")
    for name, array in state.items():
        if array.dtype.kind not in "fiub":
            raise WeightsError(f"{path}: {name} is of type {array.dtype}, not numbers; this is not a file of weights")
        if not np.isfinite(array).all():
            raise WeightsError(f"{path}: {name} holds NaN or infinity; the file is damaged or its training diverged")
    return state


def _read_safetensors(path):
    from safetensors import SafetensorError
    from safetensors.numpy import load_file
    try:
        return load_file(path)
    except (SafetensorError, OSError, KeyError) as error:
        raise WeightsError(f"{path}: not a whole .safetensors file ({error}); copy or save it anew") from error


def _read_npz(path):
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise WeightsError(f"{path}: not a whole .npz file ({error}); copy or save it anew") from error


def load_weights(model, path):
    """Read a file of weights into a model.

    Raises
    ------
    WeightsError
        See read_weights and Layer.load_state_dict; then the model is unchanged.
    """
    state = read_weights(path)
    try:
        model.load_state_dict(state)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None


def save_weights(model, path, metadata=None):
    """Write the model's state to a .safetensors file; metadata: {str: str}. The file appears whole or not at all."""
    from safetensors.numpy import save
    path = Path(path)
    state = {name: np.ascontiguousarray(array) for name, array in model.state_dict().items()}
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(save(state, metadata))
    os.replace(partial, path)
