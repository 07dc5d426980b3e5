"""Writes weights_*.pth and weights.npz, the same tensors as PyTorch stores them in its three containers (made with torch 2.13).

    python make_weights.py            needs torch; the tests do not

PyTorch has not written the tar container since 2017 but still reads it: it is written here by hand and read back by torch.load.
"""

import io
import pickle
import struct
import tarfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch

import seeded

HERE = Path(__file__).parent


def t(name, *shape):
    return torch.tensor(seeded.normal("weights " + name, *shape), dtype=torch.float32)


def tensors():
    """Views, shared storages and every type of number."""
    base = t("base", 6, 8)
    state = OrderedDict()
    state["conv.weight"] = torch.nn.Parameter(t("conv", 4, 3, 3, 3))
    state["conv.bias"] = t("bias", 4)
    state["norm.num_batches_tracked"] = torch.tensor(2 ** 40 + 3)
    state["base"] = base
    state["base.transposed"] = base.t()
    state["base.part"] = base[1:5:2, 2:7]
    state["base.row"] = base[3]
    state["channels_last"] = t("channels last", 2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    state["expanded"] = t("expanded", 3, 1).expand(3, 4)
    state["scalar"] = torch.tensor(0.25)
    state["empty"] = torch.zeros(0, 5)
    state["double"] = t("double", 3).double() / 3
    return state


def of_newer_types():
    """What the tar's PyTorch did not have yet, or nobody trained in."""
    state = {"half": t("half", 5).half(), "bfloat16": t("bfloat16", 3, 4).bfloat16().t(), "bool": t("bool", 7) > 0}
    return state | {str(dtype)[6:]: (10 * t(str(dtype), 6)).abs().to(dtype) for dtype in (
        torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)}


def write_tar(state, path):
    """torch.save of PyTorch 0.1.9, as torch.serialization's legacy_load reads it.

    The storage of "base" is also there as a view of it, which "base.row" uses.
    """
    pickled = io.BytesIO()
    ids = {name: str(1000 + i) for i, name in enumerate(state)}
    by_id = {id(value): ids[name] for name, value in state.items()}

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return by_id.get(id(value))

    Pickler(pickled, 2).dump(state)
    storages, tensors_ = io.BytesIO(), io.BytesIO()
    keys = {}
    for value in state.values():
        keys.setdefault(value.untyped_storage().data_ptr(), (len(keys) + 7, value))
    pickle.dump(len(keys), storages, 2)
    for key, value in keys.values():
        flat = torch.tensor([], dtype=value.dtype).set_(value.untyped_storage())
        kind = {torch.float32: torch.FloatStorage, torch.float64: torch.DoubleStorage, torch.int64: torch.LongStorage}[value.dtype]
        pickle.dump((key, "cpu", kind), storages, 2)
        storages.write(struct.pack("<q", len(flat)) + flat.detach().numpy().tobytes())
    row = state["base.row"]
    pickle.dump([(500, keys[row.untyped_storage().data_ptr()][0], row.storage_offset(), row.numel())], storages, 2)
    pickle.dump(len(state), tensors_, 2)
    for name, value in state.items():
        key = 500 if name == "base.row" else keys[value.untyped_storage().data_ptr()][0]
        kind = {torch.float32: torch.FloatTensor, torch.float64: torch.DoubleTensor, torch.int64: torch.LongTensor}[value.dtype]
        pickle.dump((int(ids[name]), key, kind), tensors_, 2)
        offset = 0 if name == "base.row" else value.storage_offset()
        tensors_.write(struct.pack(f"<q{2 * value.ndim + 1}q", value.ndim, *value.shape, *value.stride(), offset))
    sys_info = pickle.dumps({"protocol_version": 1000, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}, 2)
    with tarfile.open(path, "w:", format=tarfile.PAX_FORMAT) as archive:
        for name, content in (("sys_info", sys_info), ("pickle", pickled.getvalue()), ("tensors", tensors_.getvalue()),
                              ("storages", storages.getvalue())):
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(content), 1489000000.25  # a fraction, as files have: it makes an extended header
            archive.addfile(member, io.BytesIO(content))


old = tensors()
new = OrderedDict(old)
new.update(of_newer_types())
new._metadata = OrderedDict([("", {"version": 1})])  # as Module.state_dict() has
torch.save(new, HERE / "weights_zip.pth")
torch.save(new, HERE / "weights_legacy.pth", _use_new_zipfile_serialization=False)
for name in list(old):
    old[name] = old[name].detach()
write_tar(old, HERE / "weights_tar.pth")
# two tensors of a model in training, with its optimizer's settings beside them
torch.save({"model": {"w": t("w", 2), "b": t("b", 1)}, "epoch": 3}, HERE / "weights_training.pth")

expected = {name: (value.float() if value.dtype == torch.bfloat16 else value).detach().numpy() for name, value in new.items()}
np.savez_compressed(HERE / "weights.npz", **expected)
for container, wanted in (("zip", new), ("legacy", new), ("tar", old)):
    found = torch.load(HERE / f"weights_{container}.pth", weights_only=False)
    assert list(found) == list(wanted)
    for name in wanted:
        assert found[name].dtype == wanted[name].dtype and torch.equal(found[name], wanted[name]), name
for path in sorted(HERE.glob("weights*.[pn]*")):
    print(path.name, path.stat().st_size, "bytes")
