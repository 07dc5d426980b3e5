"""NumPy's .npz archives of arrays, whose claims are checked before NumPy allocates what they claim."""

import math
import os
import struct
import zipfile

import numpy as np

from .safe_pickle import require


def read_npz(path):
    """{name: array} of an .npz file.

    Raises
    ------
    WeightsError
        An entry claims what the file does not have. Broken bytes raise what Python finds wrong with them, and so do objects.
    """
    with open(path, "rb") as file:  # np.load would leave a broken file open
        with zipfile.ZipFile(file) as archive:
            _check(file, archive)
        file.seek(0)
        with np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}


def all_entries(file, archive):
    """archive.infolist(), if those are as many as the archive's last record says: zipfile overlooks what a damaged directory hides."""
    file.seek(-22, os.SEEK_END)
    signature, *_, count, _, _, comment = struct.unpack("<4s4H2LH", file.read(22))
    entries = archive.infolist()
    require(signature == b"PK\x05\x06" and comment == 0 and count in (len(entries), 0xFFFF), "the archive's directory is damaged")
    return entries


def _check(file, archive):
    headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    entries = all_entries(file, archive)
    unpacked = sum(entry.file_size for entry in entries)
    file_size = file.seek(0, os.SEEK_END)
    # floats shrink by a tenth or so
    require(unpacked <= 20 * file_size + 2 ** 24, f"the file would unpack to {unpacked} bytes, many times its size; no weights do")
    for entry in entries:
        with archive.open(entry) as stream:
            shape, _, dtype = headers[np.lib.format.read_magic(stream)](stream)
            require(dtype.hasobject or stream.tell() + math.prod(shape) * dtype.itemsize == entry.file_size,
                    f"{entry.filename} of shape {str(shape)[:80]} does not have the bytes of that shape")
