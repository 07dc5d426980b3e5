"""What a .pth file says of its tensors, checked, and made into arrays.

A tensor is a storage (a flat array), an offset, a shape and strides, so two tensors may share memory. The pickle in the file brings
claims, and allocates nothing; the container then says where the storages' bytes are, and arrays_of copies the tensors out.
(torch/_utils.py has the functions that the pickle names, torch/serialization.py the persistent ids.)
"""

import math
from typing import NamedTuple

import numpy as np

from .safe_pickle import DICTS, Name, require, shown

# torch.FloatStorage, torch.FloatTensor, ... NumPy has no bfloat16, the upper half of a float32: its 16 bits are read as they are
DTYPES = {"Float": "f4", "Double": "f8", "Half": "f2", "BFloat16": "u2", "Long": "i8", "Int": "i4", "Short": "i2", "Char": "i1",
          "Byte": "u1", "Bool": "?"}
STORAGES = {f"torch.{kind}Storage": kind for kind in DTYPES}


class Storage(NamedTuple):
    """A claim: the `count` numbers stored under `key`, of which start .. start + length are meant."""

    key: str | int
    kind: str
    count: int
    start: int
    length: int


class Tensor(NamedTuple):
    """A claim: a tensor of this shape, element (i, j, ...) at offset + i * strides[0] + j * strides[1] + ... in the storage."""

    storage: Storage
    offset: int
    shape: tuple
    strides: tuple


def natural(*numbers):
    """Are these integers of at least 0 (and no booleans)?"""
    return all(type(n) is int and n >= 0 for n in numbers)


def claim_storage(key, storage_type, count, view=None):
    """Check what the pickle says of a storage. view: None or (key, offset, count) of a part of it."""
    require(type(key) in (str, int), "a storage has no key")
    require(type(storage_type) is Name and storage_type.name in STORAGES, "a storage has no type of numbers")
    require(natural(count), "a storage has no size")
    start, length = 0, count
    if view is not None:
        require(type(view) is tuple and len(view) == 3 and natural(*view[1:]), "a part of a storage has no size")
        start, length = view[1:]
        require(start + length <= count, f"a part of storage {shown(str(key))} lies outside of it")
    return Storage(key, STORAGES[storage_type.name], count, start, length)


def claim_tensor(storage, offset, shape, strides, *_):
    """Stands for torch._utils._rebuild_tensor and _rebuild_tensor_v2 (whose further arguments are about gradients)."""
    require(type(storage) is Storage, "a tensor has no storage")
    shape, strides = claim_size(shape), claim_size(strides)
    require(natural(offset) and len(shape) == len(strides), "the shape of a tensor is broken")
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides))
    require(0 in shape or last < storage.length,
            f"a tensor of shape {str(shape)[:80]} needs element {str(last)[:20]} of a storage of {str(storage.length)[:20]}")
    return Tensor(storage, offset, shape, strides)


def claim_parameter(tensor, *_):
    """Stands for torch._utils._rebuild_parameter (whose further arguments are about gradients)."""
    require(type(tensor) is Tensor, "a parameter has no tensor")
    return tensor


def claim_size(size=()):
    """Stands for torch.Size."""
    require(type(size) is tuple and len(size) <= 32 and natural(*size) and all(n < 2 ** 63 for n in size),
            "the shape of a tensor is broken")
    return size


NAMES = [*DICTS, *map(Name, STORAGES), *(Name(f"torch.{kind}Tensor") for kind in DTYPES), Name("torch.Size", claim_size),
         Name("torch._utils._rebuild_tensor", claim_tensor), Name("torch._utils._rebuild_tensor_v2", claim_tensor),
         Name("torch._utils._rebuild_parameter", claim_parameter)]


class PersistentIds:
    """Turns ("storage", type, key, location, count) into a claim; two claims on one key must agree."""

    def __init__(self):
        self.storages = {}

    def __call__(self, saved_id):
        require(type(saved_id) is tuple and len(saved_id) in (5, 6) and saved_id[0] == "storage",
                "the file holds more than tensors (a whole model?); save its state_dict() alone")
        _, storage_type, key, _, count, *view = saved_id
        storage = claim_storage(key, storage_type, count, *view)
        first = self.storages.setdefault(key, storage)
        require((first.kind, first.count) == (storage.kind, storage.count), f"two tensors disagree about storage {shown(str(key))}")
        return storage


def claims_of(content):
    """{name: Tensor}, from what the pickle yields."""
    for key in ("model", "state_dict"):
        if type(content) is dict and type(content.get(key)) is dict:
            content = content[key]
    require(type(content) is dict, "the file holds no state dict; save a model's state_dict()")
    for name, value in content.items():
        require(type(name) is str and type(value) is Tensor,
                f"{shown(str(name))} is not a tensor; the file is no state dict, save a model's state_dict()")
    return content


def arrays_of(claims, storage_bytes, file_size, byte_order="<"):
    """{name: array} from {name: Tensor}. storage_bytes(storage) gives the bytes of a whole storage, of just its size."""
    # a stride of 0 makes a billion elements from one, and views may repeat a storage without end
    needed = sum(math.prod(t.shape) * np.dtype(DTYPES[t.storage.kind]).itemsize for t in claims.values())
    require(needed <= 4 * file_size + 2 ** 20, "the tensors claim many times more memory than the file has")
    state = {}
    for name, (storage, offset, shape, strides) in claims.items():
        dtype = np.dtype(byte_order + DTYPES[storage.kind])
        if 0 in shape:
            array = np.empty(shape, dtype.newbyteorder("="))
        else:
            view = np.ndarray(shape, dtype, storage_bytes(storage), (storage.start + offset) * dtype.itemsize,
                              [step * dtype.itemsize if n > 1 else 0 for n, step in zip(shape, strides)])
            array = np.array(view, dtype.newbyteorder("="), order="C")
        state[name] = (array.astype(np.uint32) << 16).view(np.float32) if storage.kind == "BFloat16" else array
    return state


def size_of(storage):
    """Bytes of a whole storage."""
    return storage.count * np.dtype(DTYPES[storage.kind]).itemsize
