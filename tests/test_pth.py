"""Reading .pth and .pkl files: those that PyTorch and NumPy write, and others put together from opcodes."""

import io
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from nprcnn.errors import WeightsError
from nprcnn.weights.files import read_weights
from nprcnn.weights.pth import MAGIC, PROTOCOL

REFERENCE = Path(__file__).parent / "reference"  # make_weights.py wrote them with PyTorch
EXPECTED = dict(np.load(REFERENCE / "weights.npz"))
CONTAINERS = ("zip", "legacy", "tar")


def same(state, expected):
    """Bit for bit, names and types included."""
    return list(state) == list(expected) and all(
        (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()) for a, b in zip(state.values(), expected.values()))


# ---- pickles from opcodes ----

def value(v):
    return pickle.dumps(v, 2)[2:-1]


def name(dotted):
    module, attribute = dotted.rsplit(".", 1)
    return f"c{module}\n{attribute}\n".encode()


def tuple_of(*parts):
    return b"(" + b"".join(parts) + b"t"


def call(function, *arguments):
    return name(function) + tuple_of(*arguments) + b"R"


def storage(kind="Float", key="0", count=4, *view):
    return tuple_of(value("storage"), name(f"torch.{kind}Storage"), value(key), value("cpu"), value(count), *view) + b"Q"


def tensor(storage=storage(), offset=0, shape=(4,), strides=(1,), function="torch._utils._rebuild_tensor_v2"):
    return call(function, storage, value(offset), value(shape), value(strides), value(False), call("collections.OrderedDict"))


def state(**items):
    return b"}(" + b"".join(value(key) + item for key, item in items.items()) + b"u"


def program(code):
    return b"\x80\x02" + code + b"."


NUMBERS = np.arange(1, 5, dtype=np.float32)


def write_zip(path, code, records=None, compression=zipfile.ZIP_STORED, spoil=None, byte_order=None):
    """records: {key: bytes}. spoil(entries) changes the directory's entries before they are written."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", program(code))
        if byte_order:
            archive.writestr("archive/byteorder", byte_order)
        for key, content in ({"0": NUMBERS.tobytes()} if records is None else records).items():
            archive.writestr(f"archive/data/{key}", content)
        if spoil:
            spoil(archive.filelist)
    return path


def write_legacy(path, code, storages=(("0", NUMBERS),)):
    header = [pickle.dumps(v, 2) for v in (MAGIC, PROTOCOL, {"little_endian": True})]
    keys = pickle.dumps([key for key, _ in storages], 2)
    content = [struct.pack("<q", len(numbers)) + numbers.tobytes() for _, numbers in storages]
    path.write_bytes(b"".join([*header, program(code), keys, *content]))
    return path


def write_tar(path, members, size=None, kind=b"0"):
    """size: what the headers say; None: the truth."""
    blocks = []
    for member, content in members.items():
        header = bytearray(512)
        header[:len(member)] = member.encode()
        header[124:136] = b"%011o\0" % len(content) if size is None else size
        header[148:156], header[156:157], header[257:263] = b" " * 8, kind, b"ustar\0"
        header[148:156] = b"%06o\0 " % sum(header)
        blocks += [bytes(header), content + bytes(-len(content) % 512)]
    path.write_bytes(b"".join(blocks) + bytes(1024))
    return path


# ---- tests ----

@pytest.mark.parametrize("container", CONTAINERS)
def test_what_pytorch_wrote(container):
    found = read_weights(REFERENCE / f"weights_{container}.pth")
    expected = {key: array for key, array in EXPECTED.items() if container != "tar" or key in found}
    assert len(expected) == (12 if container == "tar" else 20)
    assert same(found, expected)
    assert all(a.flags.writeable and a.flags.c_contiguous and a.flags.owndata for key, a in found.items() if key != "bfloat16")


def test_the_reference_has_what_is_hard():
    base = EXPECTED["base"]
    np.testing.assert_array_equal(EXPECTED["base.transposed"], base.T)
    np.testing.assert_array_equal(EXPECTED["base.part"], base[1:5:2, 2:7])
    np.testing.assert_array_equal(EXPECTED["expanded"], np.broadcast_to(EXPECTED["expanded"][:, :1], (3, 4)))
    assert EXPECTED["norm.num_batches_tracked"] == 2 ** 40 + 3 and EXPECTED["norm.num_batches_tracked"].shape == ()
    assert not (EXPECTED["bfloat16"].view(np.uint32) & 0xFFFF).any()


def test_a_training_script_s_file():
    assert list(read_weights(REFERENCE / "weights_training.pth")) == ["w", "b"]


def test_the_two_writers_of_this_file(tmp_path):
    for write in (write_zip, write_legacy):
        found = read_weights(write(tmp_path / "w.pth", state(a=tensor(), b=tensor(offset=1, shape=(2, 2), strides=(2, 0)))))
        assert same(found, {"a": NUMBERS, "b": np.float32([[2, 2], [4, 4]])})


def test_a_part_of_a_storage(tmp_path):
    """Old legacy files name storages that are parts of others."""
    part = storage("Float", "0", 4, value(("77", 1, 3)))
    found = read_weights(write_legacy(tmp_path / "w.pth", state(a=tensor(), b=tensor(part, 1, (2,), (1,)))))
    assert same(found, {"a": NUMBERS, "b": NUMBERS[2:4].copy()})
    with pytest.raises(WeightsError, match="needs element 3 of a storage of 3"):
        read_weights(write_legacy(tmp_path / "w.pth", state(b=tensor(part, 1, (3,), (1,)))))
    outside = storage("Float", "0", 4, value(("77", 2, 3)))
    with pytest.raises(WeightsError, match="part of storage '0' lies outside"):
        read_weights(write_legacy(tmp_path / "w.pth", state(b=tensor(outside, 0, (1,), (1,)))))


def test_big_endian(tmp_path):
    code, content = state(a=tensor()), {"0": NUMBERS.astype(">f4").tobytes()}
    assert same(read_weights(write_zip(tmp_path / "w.pth", code, content, byte_order="big")), {"a": NUMBERS})
    with pytest.raises(WeightsError, match="byte order"):
        read_weights(write_zip(tmp_path / "w.pth", code, content, byte_order="middle"))


def test_old_forms(tmp_path):
    """The first _rebuild_tensor, a parameter, torch.Size, and Python 2's OrderedDict, made from a list of pairs."""
    old = call("torch._utils._rebuild_tensor", storage(), value(0), call("torch.Size", value((2, 2))), value((2, 1)))
    parameter = call("torch._utils._rebuild_parameter", tensor(), value(True), call("collections.OrderedDict"))
    pairs = b"](" + b"".join(b"](" + value(key) + item + b"e" for key, item in (("a", old), ("b", parameter))) + b"e"
    found = read_weights(write_zip(tmp_path / "w.pth", call("collections.OrderedDict", pairs)))
    assert same(found, {"a": NUMBERS.reshape(2, 2), "b": NUMBERS})


@pytest.mark.parametrize("code, message", [
    (value([1, 2]), "holds no state dict"),
    (state(a=value(3)), "'a' is not a tensor"),
    (state(model=state(a=value("text"))), "'a' is not a tensor"),
    (storage(), "holds no state dict"),
    (state(a=storage()), "'a' is not a tensor"),
    (b"}" + value(7) + tensor() + b"s", "'7' is not a tensor"),
    (call("argparse.Namespace"), r"names 'argparse.Namespace', which is not on the list.*save its state_dict\(\)"),
    (call("torch.storage._load_from_bytes", value(b"")), "names 'torch.storage._load_from_bytes'"),
    (state(a=tensor(storage("ComplexFloat"))), "names 'torch.ComplexFloatStorage'"),
    (state(a=tensor(function="torch._utils._rebuild_tensor_v3")), "names 'torch._utils._rebuild_tensor_v3'"),
    (state(a=name("torch.FloatStorage") + value((4,)) + b"R"), "calls 'torch.FloatStorage', which is not a function"),
    (value(("module", 1)) + b"Q", "holds more than tensors"),
])
def test_files_that_hold_something_else(tmp_path, code, message):
    for write in (write_zip, write_legacy):
        with pytest.raises(WeightsError, match=f"w.pth: .*{message}"):
            read_weights(write(tmp_path / "w.pth", code))


def test_other_files_under_this_name(tmp_path):
    path = tmp_path / "w.pth"
    path.write_bytes(pickle.dumps(119, 2))
    with pytest.raises(WeightsError, match="does not begin with PyTorch's magic number"):
        read_weights(path)
    np.savez(tmp_path / "w.npz", a=NUMBERS)
    path.write_bytes((tmp_path / "w.npz").read_bytes())
    with pytest.raises(WeightsError, match="has no data.pkl"):
        read_weights(path)


# ---- Detectron2's .pkl ----

ARRAYS = {"backbone.bottom_up.stem.conv1.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4) - 200.5,
          "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "ints": np.arange(-3, 3), "big endian": NUMBERS.astype(">f4"),
          "zero-dimensional": np.array(2.5, np.float16)}
ARRAYS_READ = {key: np.ascontiguousarray(a.astype(a.dtype.newbyteorder("="))).reshape(a.shape) for key, a in ARRAYS.items()}


def python2_array(array):
    """As cPickle wrote it: the content is a string."""
    dtype = call("numpy.dtype", value(array.dtype.str[1:]), value(0), value(1)) + value((3, "<", None, None, None, -1, -1, 0)) + b"b"
    content = array.tobytes()
    made = call("numpy.core.multiarray._reconstruct", name("numpy.ndarray"), value((0,)), b"U\x01b")
    return made + tuple_of(value(1), value(array.shape), dtype, value(False), b"T" + struct.pack("<i", len(content)) + content) + b"b"


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("numpy_1", [False, True])
def test_pkl_as_numpy_writes_it(tmp_path, protocol, numpy_1):
    content = pickle.dumps({"model": ARRAYS, "__author__": "Detectron2 Model Zoo"}, protocol)
    if numpy_1 and protocol < 4:
        content = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    (tmp_path / "w.pkl").write_bytes(content)
    assert same(read_weights(tmp_path / "w.pkl"), ARRAYS_READ)


def test_pkl_of_python_2(tmp_path):
    array = ARRAYS["backbone.bottom_up.stem.conv1.weight"]
    (tmp_path / "w.pkl").write_bytes(program(state(model=state(a=python2_array(array)))))
    assert same(read_weights(tmp_path / "w.pkl"), {"a": array})


@pytest.mark.parametrize("content, message", [
    ({"weights": {}}, "Detectron2's model zoo"),
    ([1], "Detectron2's model zoo"),
    ({"model": {"a": 1}}, "a is not an array"),
    ({"model": {"a": np.array([None])}}, "type 'O8', not of numbers"),
    ({"model": {"a": np.array(["text"])}}, "type 'U4', not of numbers"),
    ({"model": {"a": np.zeros(2, complex)}}, "type 'c16', not of numbers"),
    ({"model": {"a": np.float32(1)}}, r"names 'numpy._?core.multiarray.scalar'"),
    ({"model": {"a": np.array([1, np.nan])}}, "a holds NaN"),
])
def test_pkl_of_something_else(tmp_path, content, message):
    (tmp_path / "w.pkl").write_bytes(pickle.dumps(content, 2))
    with pytest.raises(WeightsError, match=f"w.pkl: .*{message}".replace("numpy._?core", r"numpy\._?core")):
        read_weights(tmp_path / "w.pkl")


def test_pkl_whose_arrays_claim_more(tmp_path):
    short = python2_array(NUMBERS).replace(value((4,)), value((10 ** 9,)))
    (tmp_path / "w.pkl").write_bytes(program(state(model=state(a=short))))
    with pytest.raises(WeightsError, match=r"shape \(1000000000,\) does not have the bytes"):
        read_weights(tmp_path / "w.pkl")


def test_the_stream_is_left_behind_each_pickle():
    from nprcnn.weights.safe_pickle import SafeUnpickler
    stream = io.BytesIO(pickle.dumps(1, 2) + pickle.dumps([2, {"a": (3.5, None, True)}], 4) + b"rest")
    reader = SafeUnpickler([])
    assert [reader.load(stream), reader.load(stream), stream.read()] == [1, [2, {"a": (3.5, None, True)}], b"rest"]
