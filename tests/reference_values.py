"""What the tests of the ops share: stored reference values, and arrays with unusual strides or in unusual places."""

import ctypes
import json
import mmap
from pathlib import Path

import numpy as np


def load_cases(file):
    """tests/reference/FILE -> {case: {name: array}}; "options" becomes a dict.

    The arrays are read-only: an operation that writes into its inputs or into dy fails in every test.
    """
    cases = {}
    for key, value in np.load(Path(__file__).parent / "reference" / file).items():
        case, name = key.split("/")
        value.flags.writeable = False
        cases.setdefault(case, {"options": {}})[name] = json.loads(str(value)) if name == "options" else value
    return cases


def strided(a):
    """Equal values, neither contiguous nor in C order: every other element of a larger, transposed array."""
    large = np.full([2 * n for n in reversed(a.shape)], np.nan, a.dtype)
    view = large.T[tuple(slice(None, None, 2) for _ in a.shape)]
    view[...] = a
    view.flags.writeable = False
    return view


def assert_adjoint(dy, ax, at_dy, x):
    """<dy, A x> = <A' dy, x>, to 1e-12 of the product of the lengths |dy| |A x| (rounding: about 1e-15)."""
    scale = np.linalg.norm(dy) * np.linalg.norm(ax)
    assert abs(np.vdot(dy, ax) - np.vdot(at_dy, x)) <= 1e-12 * scale


def fenced(a, at_end):
    """A copy of `a` between two pages that nobody may touch, right behind the first or right before the second: one number too far there,
    and the process dies."""
    page = mmap.PAGESIZE
    size = -(-a.nbytes // page) * page
    memory = mmap.mmap(-1, size + 2 * page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    for fence in (address, address + page + size):
        assert libc.mprotect(ctypes.c_void_p(fence), ctypes.c_size_t(page), 0) == 0
    start = page + (size - a.nbytes if at_end else 0)
    copy = np.frombuffer(memory, a.dtype, a.size, start).reshape(a.shape)
    copy[...] = a
    return copy
