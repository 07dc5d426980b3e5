"""Checkpoints: all that a training needs to go on as if nothing had happened, in one .safetensors file that anybody can open.

What is in it: the weights and running statistics under their names, "velocity.NAME" for each parameter that trains, and as metadata,
in JSON, the number of steps done, what was being trained on what and how, and a SHA-256 of all of that. There is no state of a random
generator and no position in the data: order, augmentation and sampling are functions of (seed, step, image).

How nothing is lost: the new file is written under another name, flushed to the disk, and only then renamed, which the file system does
wholly or not at all; and the one before is kept. A process that is killed at any point leaves a whole checkpoint.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .. import devices
from ..errors import WeightsError

FORMAT = "nprcnn checkpoint"
VERSION = 1
LAST, PREVIOUS = "checkpoint.safetensors", "checkpoint-previous.safetensors"
VELOCITY = "velocity."


class OtherVersion(WeightsError):
    """A checkpoint that is whole, but of a version that this code does not read."""


class Checkpoint(NamedTuple):
    """step: how many were done; weights, velocity: {name: array}; about: {"config": ..., ...}, whatever was saved."""

    step: int
    weights: dict
    velocity: dict
    about: dict


def save_checkpoint(path, model, optimizer, step, about, keep=PREVIOUS):
    """Write a checkpoint; one that was there is kept beside it under the name `keep` (None: not kept).

    Parameters
    ----------
    path : path
    model : MaskRCNN
    optimizer : SGD
    step : int
        How many steps were done.
    about : dict that JSON can hold

    Raises
    ------
    WeightsError
        It cannot be written: no space, no permission. What was there is untouched.
    """
    from safetensors.numpy import save
    names = {id(p): name for name, p in model.named_parameters()}
    tensors = {name: np.ascontiguousarray(array) for name, array in model.state_dict().items()}
    tensors.update({VELOCITY + names[id(p)]: devices.to_host(v, "velocity") for p, v in zip(optimizer.parameters, optimizer.velocity)})
    header = {"version": VERSION, "step": step, "about": about}
    # one entry, for the library writes several in any order, and the same training should give the same bytes
    content = save(tensors, {FORMAT: json.dumps({**header, "sha256": _digest(tensors, header)})})
    path = Path(path)
    try:
        write_and_rename(path, content, keep=keep and path.with_name(keep))
    except OSError as error:
        kept = [name for name in (path.name, keep) if name and path.with_name(name).exists()]
        kept = f"; the one before it stands ({kept[0]})" if kept else ""
        raise WeightsError(f"the checkpoint of step {step} cannot be written to {path.parent} ({error.strerror or error}){kept}. Make room "
                           "there, then go on with --resume.") from error


def write_and_rename(path, content, keep=None):
    """Put bytes into a file so that at every moment `path` is either whole or as it was; `keep`: where a file that was there is moved."""
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # or the rename could reach the disk before what it names
        if keep is not None and path.exists():
            os.replace(path, keep)
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the renames themselves
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _digest(tensors, header):
    """SHA-256 of the header and of every name, type, shape and number."""
    digest = hashlib.sha256(json.dumps(header).encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tensors[name].shape}".encode())
        digest.update(np.ascontiguousarray(tensors[name]).data)
    return digest.hexdigest()


def read_checkpoint(path):
    """Read a checkpoint and check that it is whole.

    Raises
    ------
    WeightsError
        It is not there, damaged, no checkpoint, or of another version.
    """
    from safetensors import safe_open
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: there is no such checkpoint")
    try:
        with safe_open(path, "numpy") as file:
            text = (file.metadata() or {}).get(FORMAT)
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        header = None if text is None else json.loads(text)
    except Exception as error:  # broken bytes give several kinds
        raise WeightsError(f"{path}: not a whole .safetensors file ({str(error)[:100]})") from error
    if header is None:
        raise WeightsError(f"{path}: these are weights alone, no checkpoint; give them to --weights")
    if header.get("version") != VERSION:
        raise OtherVersion(f"{path}: a checkpoint of version {header.get('version')}; this nprcnn reads version {VERSION}. "
                           "Go on with the nprcnn that wrote it.")
    if header.pop("sha256", None) != _digest(tensors, header):
        raise WeightsError(f"{path}: damaged, its checksum is another than when it was written")
    velocity = {name.removeprefix(VELOCITY): a for name, a in tensors.items() if name.startswith(VELOCITY)}
    weights = {name: a for name, a in tensors.items() if not name.startswith(VELOCITY)}
    return Checkpoint(header["step"], weights, velocity, header["about"])


def class_names_of_checkpoint(path):
    """The names of the classes that a checkpoint's model was trained on, or None: also for a file that is no checkpoint."""
    from safetensors import SafetensorError, safe_open
    try:
        with safe_open(path, "numpy") as file:
            header = json.loads((file.metadata() or {})[FORMAT])
        names = header["about"]["config"]["model"]["arguments"]["class_names"]
        return tuple(map(str, names)) if names else None
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None


def latest_checkpoint(folder):
    """The last checkpoint of a folder, or if it is damaged or missing the one before.

    Returns
    -------
    Checkpoint, and None or a sentence that says why it is not the last one

    Raises
    ------
    WeightsError
        Neither can be read, or the last one is of another version.
    """
    folder = Path(folder)
    try:
        return read_checkpoint(folder / LAST), None
    except OtherVersion:
        raise
    except WeightsError as error:
        if not (folder / PREVIOUS).exists():
            raise
        found = read_checkpoint(folder / PREVIOUS)
        return found, f"{error}; going on from the one before it, of step {found.step}"


def restore(checkpoint, model, optimizer, path):
    """Put weights, running statistics and velocity back. WeightsError, and nothing changed, if they are another model's."""
    names = {id(p): name for name, p in model.named_parameters()}
    own = [names[id(p)] for p in optimizer.parameters]
    if set(own) != set(checkpoint.velocity):
        name = sorted(set(own) ^ set(checkpoint.velocity))[0]
        raise WeightsError(f"{path}: in the checkpoint other parameters train than in the model, {name} for one (another --freeze, or "
                           "another model)")
    try:
        model.load_state_dict(checkpoint.weights)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None
    for k, name in enumerate(own):
        optimizer.velocity[k] = np.array(checkpoint.velocity[name], like=optimizer.velocity[k])


def differences(stored, now, prefix=""):
    """Sentences on what differs between two configurations, dicts of dicts: ["lr was 0.01 and is 0.02"]."""
    found = []
    for key in sorted({*stored, *now}):
        a, b = stored.get(key), now.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key} was {json.dumps(a)} and is {json.dumps(b)}")
    return found
