"""Weights in files: .safetensors and .npz both ways; .pth (PyTorch) and .pkl (Detectron2) in, without PyTorch."""

import io
import json
import os
import warnings
from pathlib import Path

import numpy as np

from ..errors import WeightsError
from .detectron2 import from_detectron2, is_detectron2
from .npz import read_npz
from .pkl import read_pkl
from .pth import read_pth
from .report import EPS_0, LoadReport, check_sha256, current_names, frozen_norms

SHIPPED = {"shapes": "tiny_shapes.safetensors"}  # beside this file
KINDS = "a .safetensors, .npz, .pth or .pkl file"


def read_weights(path):
    """Read a file of weights, under the names that the file has.

    Nothing in the file is run, and no more memory is taken than a few times the file's size.

    Parameters
    ----------
    path : path of a .safetensors, .npz, .pth (see nprcnn/weights/pth.py) or .pkl file (pkl.py), or one of the names in SHIPPED

    Returns
    -------
    {name: array}

    Raises
    ------
    WeightsError
        The file is not there, is not a kind that we read, is damaged, holds anything but numbers, or holds NaN or infinity; or it is
        named as a known release and its SHA-256 is another.
    """
    path = _located(path)
    reader = READERS.get(path.suffix)
    if reader is None:
        raise WeightsError(f"{path}: weights of kind {path.suffix or '(no suffix)'} are not known; give {KINDS}")
    check_sha256(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Python thinks of the style of broken bytes
            state = reader(path)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None
    except Exception as error:  # a dozen different kinds on broken bytes, and on types that NumPy has not (bfloat16)
        raise WeightsError(f"{path}: not a whole {path.suffix} file ({str(error)[:200]}); copy or save it anew") from error
    for name, array in state.items():
        if array.dtype.kind not in "fiub":
            raise WeightsError(f"{path}: {name} is of type {array.dtype}, not numbers; this is not a file of weights")
        if not np.isfinite(array).all():
            raise WeightsError(f"{path}: {name} holds NaN or infinity; the file is damaged or its training diverged")
    return state


def _located(path):
    path = Path(__file__).with_name(SHIPPED[path]) if path in SHIPPED else Path(path)
    if path.is_dir():
        raise WeightsError(f"{path} is a folder; give the file of weights in it: {KINDS}")
    if not path.is_file():
        raise WeightsError(f"{path}: there is no such file; give {KINDS}, or one of the names of the weights that come with the "
                           f"package: {', '.join(SHIPPED)}")
    return path


def _read_safetensors(path):
    from safetensors.numpy import load_file
    return load_file(path)


READERS = {".safetensors": _read_safetensors, ".npz": read_npz, ".pth": read_pth, ".pkl": read_pkl}


def load_weights(model, path, strict=True):
    """Read a file of weights into a model.

    Old key names of torchvision are accepted, Detectron2's are mapped (detectron2.py), and PyTorch's num_batches_tracked is passed
    over. The two releases of torchvision that were trained without an eps in FrozenBatchNorm (report.EPS_0) set it to 0 in the model,
    and the report says so. Names of classes in the file become the model's, unless it has some.

    Parameters
    ----------
    model : Layer
        A model, or a part of one: model.backbone.body takes torchvision's files of a ResNet (with strict=False, for their `fc`).
    path : see read_weights
    strict : bool
        True: every name and shape has to fit. False: what fits by name and shape is loaded, and the report tells the rest.

    Returns
    -------
    LoadReport

    Raises
    ------
    WeightsError
        See read_weights; or the file does not fit the model. Then the model is unchanged.
    """
    return load_state(model, read_weights(path), path, strict)


def load_state(model, state, path, strict=True):
    """load_weights for a file that has been read: `state` is what read_weights(path) gave."""
    path = _located(path)
    try:
        names = stated_class_names(path)
        report = _load(model, from_detectron2(state) if is_detectron2(state) else current_names(state), path, strict)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None
    if names and getattr(model, "class_names", names) is None and len(names) == model.num_classes:
        model.class_names = names
    return report


def _load(model, state, path, strict):
    state = {name: array for name, array in state.items() if not name.endswith(".num_batches_tracked")}
    own = model.state_dict()
    by_name = [name for name in own if name in state]
    matched = [name for name in by_name if state[name].shape == own[name].shape]
    if not matched and not strict:
        raise WeightsError("not one tensor fits the model by name and shape; is it the file of another model?")
    for name in matched:
        _check_type(name, state[name], own[name].dtype)
    report = LoadReport(str(path), matched, [name for name in own if name not in state], [name for name in state if name not in own],
                        [(name, state[name].shape, own[name].shape) for name in by_name if name not in matched], [])
    # where strict, load_state_dict finds and words what does not fit, and then changes nothing
    model.load_state_dict(state if strict else {**own, **{name: state[name] for name in matched}})
    if path.name.startswith(EPS_0):
        norms = list(frozen_norms(model))
        for norm in norms:
            norm.eps = 0.0
        report.notes.append(f"eps is now 0 in the model's {len(norms)} FrozenBatchNorm layers: this release was trained so" if norms else
                            "this release was trained with FrozenBatchNorm of eps 0; the model's BatchNorm layers are not frozen "
                            'and keep their eps (build it with norm="frozen")')
    return report


def _check_type(name, array, dtype):
    if array.dtype.kind != "f":
        raise WeightsError(f"{name} is of type {array.dtype}; the model's weights are {dtype}")
    if array.size and array.dtype.itemsize > dtype.itemsize and np.abs(array).max() > np.finfo(dtype).max:
        raise WeightsError(f"{name} has numbers too large for {dtype}")


def stated_class_names(path):
    """The names of the classes that save_weights wrote, or None."""
    path = _located(path)
    if path.suffix != ".safetensors":
        return None
    from safetensors import safe_open
    with safe_open(path, "numpy") as file:
        text = (file.metadata() or {}).get("class_names")
    try:
        names = None if text is None else tuple(json.loads(text))
    except (ValueError, TypeError, RecursionError):
        names = (None,)
    if names is not None and not all(type(name) is str and name.isprintable() for name in names):
        raise WeightsError("the names of the classes in its metadata are broken")
    return names


def save_weights(model, path, metadata=None):
    """Write the model's state to a .safetensors or .npz file, which appears whole or not at all.

    metadata: {str: str}, for .safetensors only; the model's class_names, if it has some, are added. torchvision loads a .safetensors
    file back. The state has no eps: after loading one of the releases of report.EPS_0, set the eps of the FrozenBatchNorm layers anew
    in the model that reads the file.
    """
    path = Path(path)
    state = {name: np.ascontiguousarray(array) for name, array in model.state_dict().items()}
    if path.suffix == ".safetensors":
        from safetensors.numpy import save
        if getattr(model, "class_names", None):
            metadata = {"class_names": json.dumps(list(model.class_names)), **(metadata or {})}
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
