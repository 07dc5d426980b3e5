"""Files that are broken, or written to do harm: each ends in a WeightsError, none runs anything or takes much memory.

A mutation may also hit nothing that matters; then the file loads bit-equal to the original. Only the zip container and .npz have
checksums, so in the others a flipped bit may change a number: there the test asks for tensors of the file's own size, or an error.
"""

import pickle
import tracemalloc

import numpy as np
import pytest
from test_pth import (CONTAINERS, NUMBERS, REFERENCE, call, name, program, same, state, tensor, tuple_of, value, write_legacy,
                      write_tar, write_zip)

from nprcnn.errors import WeightsError
from nprcnn.weights.files import read_weights

MEGABYTE = 2 ** 20


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """{kind of file: (bytes, suffix)}, all small."""
    from safetensors.numpy import save
    files = {container: ((REFERENCE / f"weights_{container}.pth").read_bytes(), ".pth") for container in CONTAINERS}
    arrays = {"a": NUMBERS, "b": np.arange(12.0).reshape(3, 4), "c": np.array(3)}
    files["pkl"] = pickle.dumps({"model": arrays}, 2), ".pkl"
    files["safetensors"] = save(arrays), ".safetensors"
    path = tmp_path_factory.mktemp("npz") / "w.npz"
    np.savez(path, **arrays)
    files["npz"] = path.read_bytes(), ".npz"
    return files


KINDS = (*CONTAINERS, "pkl", "safetensors", "npz")
CHECKED = ("zip", "npz")  # kinds with checksums


def outcome(path, content=None):
    """What read_weights gives: the state, or None where it raises WeightsError. Anything else raised is a failure of the test."""
    if content is not None:
        path.write_bytes(content)
    try:
        return read_weights(path)
    except WeightsError as error:
        assert str(error).startswith(str(path)) and len(str(error)) < 600 + len(str(path))
        return None


def refused(path, megabytes=20):
    """read_weights raises WeightsError, and the arrays and objects made on the way take little memory."""
    tracemalloc.start()
    try:
        with pytest.raises(WeightsError) as raised:
            read_weights(path)
        assert tracemalloc.get_traced_memory()[1] < megabytes * MEGABYTE
    finally:
        tracemalloc.stop()
    return str(raised.value)


# ---- mutations ----

@pytest.mark.parametrize("kind", KINDS)
def test_truncated_at_every_percent(originals, tmp_path, kind):
    content, suffix = originals[kind]
    path = tmp_path / f"w{suffix}"
    whole = outcome(path, content)
    assert whole is not None
    needed = len(content.rstrip(b"\0")) if kind == "tar" else len(content)  # a tar ends in padding
    for percent in range(100):
        cut = len(content) * percent // 100
        found = outcome(path, content[:cut])
        assert (found is None) == (cut < needed)
        assert found is None or same(found, whole)


@pytest.mark.parametrize("kind", KINDS)
def test_flipped_bits(originals, tmp_path, kind):
    content, suffix = originals[kind]
    path = tmp_path / f"w{suffix}"
    whole = outcome(path, content)
    random = np.random.RandomState(len(content))
    errors = 0
    for _ in range(250):
        changed = bytearray(content)
        for _ in range(random.randint(1, 4)):
            changed[random.randint(len(changed))] ^= 1 << random.randint(8)
        found = outcome(path, bytes(changed))
        errors += found is None
        if found is not None and kind in CHECKED:
            assert same(found, whole)
        elif found is not None:
            assert sum(a.nbytes for a in found.values()) <= 8 * len(content) + 2 * MEGABYTE
            assert all(np.isfinite(a).all() for a in found.values())
    assert errors >= 20


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_put_in_and_taken_out(originals, tmp_path, kind):
    content, suffix = originals[kind]
    path = tmp_path / f"w{suffix}"
    whole = outcome(path, content)
    random = np.random.RandomState(len(content) + 1)
    for _ in range(100):
        at, length = random.randint(len(content)), random.randint(1, 40)
        put_in = random.bytes(random.randint(0, 3) * length)
        found = outcome(path, content[:at] + put_in + content[at + random.randint(2) * length:])
        assert found is None or kind not in CHECKED or same(found, whole)


# ---- pickles that call ----

CALLS = {"os.system": ("touch {}",), "posix.system": ("touch {}",), "subprocess.getoutput": ("touch {}",),
         "builtins.eval": ("open('{}', 'w')",), "builtins.exec": ("open('{}', 'w')",), "builtins.open": ("{}", "w"),
         "__builtin__.eval": ("open('{}', 'w')",), "io.open": ("{}", "w"), "os.mkdir": ("{}",), "pathlib.Path.touch": ("{}",),
         "numpy.save": ("{}", [1]), "shutil.copy": ("/proc/self/status", "{}"), "pickle.loads": (b"cos\nsystem\n(S'touch {}'\ntR.",),
         "runpy._run_code": ("open('{}', 'w')", {}), "torch.hub.load": ("{}", "x"), "builtins.getattr": ("{}", "x")}


def calling(function, arguments):
    """The opcodes that call: REDUCE, INST, OBJ, NEWOBJ, NEWOBJ_EX, and REDUCE after a name from the stack."""
    module, attribute = function.rsplit(".", 1)
    packed = tuple_of(*map(value, arguments))
    short = [b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, attribute)]
    return {"REDUCE": name(function) + packed + b"R",
            "INST": b"(" + b"".join(map(value, arguments)) + f"i{module}\n{attribute}\n".encode(),
            "OBJ": b"(" + name(function) + b"".join(map(value, arguments)) + b"o",
            "NEWOBJ": name(function) + packed + b"\x81",
            "NEWOBJ_EX": name(function) + packed + b"}\x92",
            "STACK_GLOBAL": b"".join(short) + b"\x93" + packed + b"R",
            "EXT1": b"\x82\x01" + packed + b"R"}


def places(code):
    """The call as the whole, as a tensor, as a key's neighbour, as an argument of an allowed call, as a state and a persistent id."""
    return [code, state(a=code), state(a=tensor(), b=code), state(a=tensor(storage=code)), state(a=tensor()) + code + b"b",
            call("collections.OrderedDict", code), code + b"Q", code + b"0" + state(a=tensor())]


def test_the_calls_would_run_in_python_s_own_pickle(tmp_path):
    """Else the next test would show nothing."""
    marker = tmp_path / "ran"
    for how, code in calling("builtins.open", (str(marker), "w")).items():
        try:
            pickle.loads(program(code)).close()
        except Exception:  # NEWOBJ and OBJ want a class, EXT1 a registered name
            pass
        assert marker.exists() == (how in ("REDUCE", "INST", "OBJ", "STACK_GLOBAL"))
        marker.unlink(missing_ok=True)


@pytest.mark.parametrize("function", CALLS)
def test_calls_are_refused(tmp_path, function):
    marker = tmp_path / "ran"
    arguments = [a.format(marker) if isinstance(a, str) else a.replace(b"{}", bytes(marker)) if isinstance(a, bytes) else a
                 for a in CALLS[function]]
    for how, code in calling(function, arguments).items():
        for place in places(code):
            paths = [write_zip(tmp_path / "zip.pth", place), write_legacy(tmp_path / "legacy.pth", place), tmp_path / "w.pkl"]
            paths[-1].write_bytes(program(state(model=state(a=place))))
            (tmp_path / "first.pth").write_bytes(program(place))  # where the magic number belongs
            for path in (*paths, tmp_path / "first.pth"):
                assert outcome(path) is None
    message = refused(write_zip(tmp_path / "w.pth", calling(function, arguments)["REDUCE"]))
    assert repr(function) in message and "nothing was run" in message
    assert not marker.exists()


def test_calls_in_the_tar_are_refused(tmp_path):
    marker = tmp_path / "ran"
    code = calling("os.system", (f"touch {marker}",))["REDUCE"]
    for member in ("storages", "tensors", "pickle"):
        members = {other: pickle.dumps(0, 2) + pickle.dumps([], 2) for other in ("storages", "tensors", "pickle")}
        assert "names 'os.system'" in refused(write_tar(tmp_path / "w.pth", {**members, member: program(code)}))
    assert not marker.exists()
