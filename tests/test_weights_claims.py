"""Files that claim what they do not have: each ends in a WeightsError before anything of that size is allocated."""

import copy
import io
import json
import os
import pickle
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from test_pth import (NUMBERS, name, program, python2_array, same, state, storage, tensor, tuple_of, value, write_legacy, write_tar,
                      write_zip)
from test_weights_hostile import MEGABYTE, outcome, refused

from nprcnn.weights.files import read_weights


def huge(**changes):
    return state(a=tensor(**changes))


BILLION = 10 ** 9
CLAIMS = {
    "more than stored": huge(storage=storage(count=BILLION), shape=(BILLION,)),
    "one element a billion times": huge(shape=(BILLION,), strides=(0,)),
    "sides whose product overflows": huge(shape=(2 ** 40, 2 ** 40), strides=(0, 0)),
    "sides beyond int64": huge(shape=(2 ** 80,), strides=(0,)),
    "none of many": huge(shape=(2 ** 62, 0, 2 ** 62), strides=(1, 1, 1)),
    "many dimensions": huge(shape=(1,) * 100, strides=(1,) * 100),
    "a view repeated": state(**{f"t{i}": tensor(shape=(60_000,), strides=(0,)) for i in range(2000)}),
    "offset outside": huge(offset=1),
    "huge offset": huge(offset=2 ** 70),
    "negative offset": huge(offset=-1, shape=(2,)),
    "stride outside": huge(strides=(2,)),
    "negative stride": huge(offset=3, strides=(-1,)),
    "negative side": huge(shape=(-4,)),
    "two negative sides": huge(shape=(-2, -2), strides=(1, 1)),
    "a side that is no integer": huge(shape=(4.0,)),
    "a side that is a boolean": huge(shape=(True,)),
    "shape without strides": huge(strides=()),
    "shape as text": huge(shape="4"),
    "other type, larger": huge(storage=storage("Double")),
    "other type, smaller": huge(storage=storage("Half")),
    "bfloat16 of other size": huge(storage=storage("BFloat16", count=BILLION), shape=(BILLION,)),
    "fewer than stored": huge(storage=storage(count=3), shape=(3,)),
    "negative count": huge(storage=storage(count=-4)),
    "count with 5000 digits": huge(storage=storage(count=10 ** 5000)),
    "no such storage": huge(storage=storage(key="1")),
    "a path as storage": huge(storage=storage(key="../../etc/passwd")),
    "two tensors disagree": state(a=tensor(), b=tensor(storage("Int"))),
    "dictionary with an endless key": b"}" + b"(t" + b"q\x00h\x00\x86" * 60 + b"Ns",
    "nested lists": b"]" * 20_000 + b"a" * 19_999,
    "too many steps": state(a=tensor()) + b"N" * 1_000_000,
    "a string of 2 ** 40 bytes": b"\x8e" + struct.pack("<Q", 2 ** 40) + b"x",
    "a string of 2 ** 31 bytes": b"X" + struct.pack("<I", 2 ** 31) + b"x",
    "an integer of 2 ** 30 bytes": b"\x8b" + struct.pack("<i", 2 ** 30),
    "a frame of 2 ** 60 bytes": b"\x95" + struct.pack("<Q", 2 ** 60),
    "a memo that was never put": b"j" + struct.pack("<I", 2 ** 32 - 1),
    "an empty stack": b"u",
    "a mark and no dictionary": b"(u",
    "two objects": state(a=tensor()) + b"N",
}


@pytest.mark.parametrize("write", [write_zip, write_legacy])
@pytest.mark.parametrize("claim", CLAIMS)
def test_claims_that_the_file_does_not_keep(tmp_path, claim, write):
    refused(write(tmp_path / "w.pth", CLAIMS[claim]))


def test_a_memo_at_a_high_place_takes_no_memory(tmp_path):
    """Python's own unpickler makes a table of that length."""
    path = write_zip(tmp_path / "w.pth", state(a=tensor()) + b"r" + struct.pack("<I", 2 ** 32 - 1))
    tracemalloc.start()
    assert same(read_weights(path), {"a": NUMBERS})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MEGABYTE


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none(tmp_path, bad):
    numbers = np.float32([1, 2, bad, 4])
    for path in (write_zip(tmp_path / "w.pth", state(a=tensor()), {"0": numbers.tobytes()}),
                 write_legacy(tmp_path / "l.pth", state(a=tensor()), [("0", numbers)])):
        assert "a holds NaN or infinity" in refused(path)


# ---- containers ----

def changed(index, **values):
    def spoil(entries):
        for field, v in values.items():
            setattr(entries[index], field, v)
    return spoil


def overlapping(entries):
    entries[2].header_offset = entries[1].header_offset


def twice(entries):
    entries.append(copy.copy(entries[1]))


@pytest.mark.parametrize("spoil", [
    changed(1, CRC=1), changed(0, CRC=1), changed(1, file_size=BILLION), changed(1, file_size=BILLION, compress_size=BILLION),
    changed(0, file_size=BILLION, compress_size=BILLION), changed(1, header_offset=BILLION), changed(1, header_offset=3),
    changed(1, compress_type=zipfile.ZIP_DEFLATED), changed(1, compress_type=99), changed(1, flag_bits=1), overlapping, twice])
def test_spoilt_archives(tmp_path, spoil):
    records = {"0": NUMBERS.tobytes(), "1": NUMBERS.tobytes()}
    code = state(a=tensor(), b=tensor(storage(key="1")))
    assert outcome(write_zip(tmp_path / "w.pth", code, records)) is not None
    refused(write_zip(tmp_path / "w.pth", code, records, spoil=spoil))


def test_bombs(tmp_path):
    zeros = bytes(64 * MEGABYTE)
    code = huge(storage=storage(count=len(zeros) // 4), shape=(len(zeros) // 4,))
    path = write_zip(tmp_path / "w.pth", code, {"0": zeros}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < MEGABYTE
    assert "is compressed" in refused(path)
    np.savez_compressed(tmp_path / "w.npz", a=np.frombuffer(zeros, np.uint8))
    assert "many times its size" in refused(tmp_path / "w.npz")


def test_shapes_in_npz_and_safetensors(tmp_path):
    header = npy_header((BILLION,))
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive:
        archive.writestr("a.npy", header + NUMBERS.tobytes())
    assert "does not have the bytes of that shape" in refused(tmp_path / "w.npz")
    for entry in ({"dtype": "F32", "shape": [BILLION], "data_offsets": [0, 4 * BILLION]},
                  {"dtype": "F32", "shape": [BILLION], "data_offsets": [0, 16]}, {"dtype": "F64", "shape": [4], "data_offsets": [0, 16]}):
        text = json.dumps({"a": entry}).encode()
        (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + NUMBERS.tobytes())
        refused(tmp_path / "w.safetensors")
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", 2 ** 60) + b"{}")
    refused(tmp_path / "w.safetensors")


def npy_header(shape):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return stream.getvalue()


def tar_members(shape=(4,), strides=(1,), offset=0, count=4, ndim=None, views=(), kind="torch.FloatStorage"):
    dump = [pickle.dumps(v, 2) for v in (1, 1, list(views), {})]
    stored = dump[0] + program(tuple_of(value(7), value("cpu"), name(kind))) + struct.pack("<q", count) + NUMBERS.tobytes() + dump[2]
    numbers = struct.pack(f"<q{len(shape) + len(strides) + 1}q", len(shape) if ndim is None else ndim, *shape, *strides, offset)
    return {"storages": stored, "tensors": dump[1] + program(tuple_of(value(1), value(7), name("torch.FloatTensor"))) + numbers,
            "pickle": program(state(a=value("1") + b"Q"))}


def test_tars(tmp_path):
    path = tmp_path / "w.pth"
    assert same(read_weights(write_tar(path, tar_members())), {"a": NUMBERS})
    for claim in (dict(shape=(BILLION,)), dict(shape=(BILLION,), strides=(0,)), dict(shape=(-4,)), dict(offset=1), dict(strides=(2,)),
                  dict(offset=-1), dict(count=BILLION), dict(count=-1), dict(count=2 ** 62), dict(ndim=2 ** 31 - 1), dict(ndim=-1),
                  dict(views=[(8, 7, 0, 5)]), dict(views=[(8, 9, 0, 1)]), dict(views=[(8, 7, -1, 1)]), dict(kind="os.system")):
        refused(write_tar(path, tar_members(**claim)))
    for size in (b"-0000001000\0", b"77777777777\0", b"\x80" + b"\xff" * 11, b"            "):
        refused(write_tar(path, tar_members(), size=size))
    refused(write_tar(path, tar_members(), kind=b"S"))  # a sparse file, of any size
    for absent in ("storages", "tensors", "pickle"):
        refused(write_tar(path, {m: c for m, c in tar_members().items() if m != absent}))


def test_a_pkl_that_repeats_itself(tmp_path):
    """One string, made bytes and made an array again and again."""
    text = value("x" * 100_000) + b"q\x05" + b"0"
    encoded = name("_codecs.encode") + b"h\x05" + value("latin1") + b"\x86R"
    (tmp_path / "w.pkl").write_bytes(program(b"(" + text[:-1] + encoded * 10_000 + b"l"))
    assert "makes more bytes than the file has" in refused(tmp_path / "w.pkl")
    whole = python2_array(np.zeros(100_000, np.uint8)) + b"q\x05"
    again = b"".join(value(f"t{i}") + b"h\x05" for i in range(3000))
    (tmp_path / "w.pkl").write_bytes(program(b"}" + value("model") + b"}(" + value("t") + whole + again + b"us"))
    assert "claim more than the file has" in refused(tmp_path / "w.pkl")


def test_nothing_is_left_open(tmp_path):
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    for _ in range(5):
        refused(write_zip(tmp_path / "w.pth", CLAIMS["more than stored"]))
    assert before is None or len(os.listdir("/proc/self/fd")) == before
