"""What the tests of the ops share: stored reference values, and arrays with unusual strides."""

import json
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
