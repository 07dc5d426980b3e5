"""Weights in .safetensors and .npz files."""

import io
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
    from safetensors.numpy import load_file
    try:
        return load_file(path)
    except Exception as error:  # a dozen different kinds on broken bytes, and on types that NumPy has not (bfloat16)
        raise WeightsError(f"{path}: not a whole .safetensors file of NumPy's types ({error}); copy or save it anew") from error


def _read_npz(path):
    try:
        with open(path, "rb") as file:  # np.load would leave a broken file open
            if not zipfile.is_zipfile(file):
                raise zipfile.BadZipFile("no archive of arrays")
            file.seek(0)
            with np.load(file, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
    except Exception as error:  # a dozen different kinds on broken bytes
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
    """Write the model's state to a .safetensors or .npz file, which appears whole or not at all.

    metadata: {str: str}, for .safetensors only.
    """
    path = Path(path)
    state = {name: np.ascontiguousarray(array) for name, array in model.state_dict().items()}
    if path.suffix == ".safetensors":
        from safetensors.numpy import save
        content = save(state, metadata)
    elif path.suffix == ".npz":
        archive = io.BytesIO()
        np.savez(archive, **state)
        content = archive.getvalue()
    else:
        raise WeightsError(f"{path}: weights are written as .safetensors or .npz; give a name that ends so")
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    os.replace(partial, path)
