"""PyTorch's .pth files without PyTorch, in their three containers.

    zip      since PyTorch 1.6: NAME/data.pkl, and NAME/data/KEY for each storage
    legacy   one pickle after the other: magic number, protocol, system info, the object, the storages' keys; then the storages
    tar      before 0.1.10 or so: members "storages", "tensors", "pickle"

(torch/serialization.py has all three.) In each the pickle tells only which tensor lies where. Reading goes in two steps: first the
pickle, which yields claims and allocates nothing (torch_tensors.py); then every claim is checked against the bytes that the file has.

Only zip has checksums. A changed number in a file of the other kinds goes unseen unless the file's name holds its SHA-256.
"""

import io
import struct
import zipfile
from pathlib import Path

from .npz import all_entries
from .safe_pickle import Name, SafeUnpickler, require, shown
from .torch_tensors import NAMES, PersistentIds, arrays_of, claim_storage, claim_tensor, claims_of, natural, size_of

MAGIC, PROTOCOL = 0x1950a86a20f9469cfc6c, 1001
MAX_STORAGES = 100_000


def read_pth(path):
    """{name: array} of a .pth file of any of the three containers. bfloat16 comes as float32.

    A state dict may lie under "model" or "state_dict", as training scripts store it.

    Raises
    ------
    WeightsError
        The pickle names anything that a state dict does not need, or claims what the file does not have. Broken bytes raise what
        Python finds wrong with them.
    """
    path = Path(path)
    with open(path, "rb") as file:
        start = file.read(512)
    if start[:4] == b"PK\x03\x04":
        return _read_zip(path)
    data = path.read_bytes()
    return _read_tar(data) if start[257:262] == b"ustar" else _read_legacy(data)


# ---- zip ----

def _read_zip(path):
    file_size = path.stat().st_size
    with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
        entries = _checked_entries(file, archive)
        roots = [name[:-len("data.pkl")] for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
        require(len(roots) == 1, "the archive has no data.pkl; this is not a .pth file")
        root = roots[0]
        order = archive.read(root + "byteorder") if root + "byteorder" in entries else b"little"
        require(order in (b"little", b"big"), "the archive's byte order is neither little nor big")
        ids = PersistentIds()
        claims = claims_of(SafeUnpickler(NAMES, ids).load(io.BytesIO(archive.read(root + "data.pkl"))))
        for storage in ids.storages.values():
            entry = entries.get(f"{root}data/{storage.key}")
            require(entry is not None, f"the archive lacks storage {shown(str(storage.key))}")
            require(entry.file_size == size_of(storage),
                    f"storage {shown(str(storage.key))} has {entry.file_size} bytes, not those of {str(storage.count)[:20]} numbers")
        content = {key: archive.read(f"{root}data/{key}") for key in ids.storages}  # each with its CRC checked
    return arrays_of(claims, lambda storage: content[storage.key], file_size, "<" if order == b"little" else ">")


def _checked_entries(file, archive):
    """{name: entry}: stored without compression (as PyTorch does: so there is no bomb), one after the other, each name once."""
    entries = sorted(all_entries(file, archive), key=lambda entry: entry.header_offset)
    ends = [entry.header_offset for entry in entries[1:]] + [archive.start_dir]
    for entry, end in zip(entries, ends):
        name = shown(entry.filename)
        require(entry.compress_type == zipfile.ZIP_STORED and entry.compress_size == entry.file_size,
                f"entry {name} of the archive is compressed, which PyTorch never does; save the file anew with PyTorch")
        require(entry.header_offset + 30 + entry.file_size <= end, f"entry {name} of the archive overlaps another or the file's end")
    by_name = {entry.filename: entry for entry in entries}
    require(len(by_name) == len(entries), "the archive has two entries of the same name")
    return by_name


# ---- legacy stream ----

def _read_legacy(data):
    stream = io.BytesIO(data)
    ids = PersistentIds()
    reader = SafeUnpickler(NAMES, ids)
    magic = reader.load(stream)
    require(type(magic) is int and magic == MAGIC, "not a .pth file: it does not begin with PyTorch's magic number")
    protocol = reader.load(stream)
    require(type(protocol) is int and protocol == PROTOCOL, f"the .pth file is not of protocol {PROTOCOL}")
    reader.load(stream)  # sizes of C types on the machine that wrote it; the numbers are little-endian on all of them
    claims = claims_of(reader.load(stream))
    keys = reader.load(stream)
    require(type(keys) is list and all(type(key) in (str, int) for key in keys), "the list of storages is broken")
    content = {}
    for key in keys:
        require(key in ids.storages and key not in content, f"the list of storages has {shown(str(key))}, which no tensor uses, or twice")
        content[key] = _read_storage(data, stream, ids.storages[key])
    require(len(content) == len(ids.storages), "the list of storages is not complete")
    require(stream.tell() == len(data), "the file goes on behind its last storage")
    return arrays_of(claims, lambda storage: content[storage.key], len(data))


def _read_storage(data, stream, storage):
    """An int64 count and that many numbers: what both the stream and the tar hold. A view of the data, from where the stream stands."""
    count, = struct.unpack("<q", stream.read(8))
    require(count == storage.count, f"storage {shown(str(storage.key))} has {count} numbers, the tensors say {str(storage.count)[:20]}")
    start = stream.tell()
    require(start + size_of(storage) <= len(data), f"the file ends inside storage {shown(str(storage.key))}")
    stream.seek(start + size_of(storage))
    return memoryview(data)[start:start + size_of(storage)]


# ---- tar ----

def _read_tar(data):
    members = _tar_members(data)
    require({"storages", "tensors", "pickle"} <= set(members), "the tar lacks one of the members storages, tensors and pickle")
    reader = SafeUnpickler(NAMES)
    stream, storages, content = io.BytesIO(members["storages"]), {}, {}
    for _ in range(_count(reader.load(stream))):
        entry = reader.load(stream)
        require(type(entry) is tuple and len(entry) == 3 and natural(entry[0]), "the list of storages is broken")
        key, _, storage_type = entry
        require(key not in storages, f"storage {key} is there twice")
        count, = struct.unpack("<q", stream.read(8))
        stream.seek(-8, io.SEEK_CUR)
        storages[key] = claim_storage(key, storage_type, count)
        content[key] = _read_storage(members["storages"], stream, storages[key])
    views = reader.load(stream)
    require(type(views) is list and len(views) <= MAX_STORAGES, "the list of storages' parts is broken")
    for view in views:
        require(type(view) is tuple and len(view) == 4 and natural(*view) and view[1] in storages, "the list of storages' parts is broken")
        target, root, offset, count = view
        root = storages[root]
        require(root.start == 0 and root.length == root.count, "a part of a storage is a part of a part")
        storages[target] = claim_storage(root.key, Name(f"torch.{root.kind}Storage"), root.count, (target, offset, count))
    stream, tensors = io.BytesIO(members["tensors"]), {}
    for _ in range(_count(reader.load(stream))):
        entry = reader.load(stream)
        require(type(entry) is tuple and len(entry) == 3 and natural(*entry[:2]) and entry[1] in storages, "the list of tensors is broken")
        ndim, = struct.unpack("<i4x", stream.read(8))
        require(0 <= ndim <= 32, "the shape of a tensor is broken")
        numbers = struct.unpack(f"<{2 * ndim + 1}q", stream.read(8 * (2 * ndim + 1)))
        tensors[entry[0]] = claim_tensor(storages[entry[1]], numbers[-1], numbers[:ndim], numbers[ndim:-1])

    def tensor(saved_id):
        require(type(saved_id) is str and saved_id.isdecimal() and int(saved_id) in tensors,
                "the pickle refers to a tensor that is not there")
        return tensors[int(saved_id)]

    reader.persistent_load = tensor
    return arrays_of(claims_of(reader.load(io.BytesIO(members["pickle"]))), lambda storage: content[storage.key], len(data))


def _tar_members(data):
    """{name: bytes} of the ordinary files. Three fixed fields of a header are all that is needed here, and the tarfile modules of
    several Python versions can be sent round in circles by a negative size."""
    members, at = {}, 0
    while at < len(data) and data[at] != 0:  # a block of zeros ends the archive
        header = data[at:at + 512]
        name, size = header[:100].rstrip(b"\0").decode("ascii"), int(header[124:136].strip(b" \0"), 8)
        checksum = sum(header[:148]) + sum(b" " * 8) + sum(header[156:])
        require(int(header[148:156].strip(b" \0"), 8) == checksum, "a header of the tar is damaged")
        require(0 <= size <= len(data) - at - 512, f"the file ends inside the tar's member {shown(name)}")
        if header[156:157] in (b"0", b"\0"):
            require(name not in members, f"the tar has two members {shown(name)}")
            members[name] = data[at + 512:at + 512 + size]
        at += 512 + -(-size // 512) * 512
    return members


def _count(number):
    require(natural(number) and number <= MAX_STORAGES, "the number of storages or tensors is broken")
    return number
