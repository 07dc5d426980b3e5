"""The vectors of compiled code, and the matrix product made of them."""

import numpy as np
import pytest

numba = pytest.importorskip("numba")

from nprcnn.kernels.cpu.conv_product import PANEL, ROWS, multiply  # noqa: E402
from nprcnn.kernels.cpu.vectors import (HALF, LANES, collect_2, collect_4, gather, keep_where, load, load_half, number,  # noqa: E402
                                        prefetch, relu, set_number, store, zeros_like)

DTYPES = (np.float32, np.float64)


@numba.njit
def arithmetic(a, b, factor, out):
    x, y = load(a, 1), load(b, 2)
    store(out, 0, (x + y) * factor - x * y + zeros_like(a))


@pytest.mark.parametrize("dtype", DTYPES)
def test_arithmetic_is_that_of_numbers(dtype):
    rng = np.random.default_rng(0)
    a, b = rng.uniform(1, 2, (2, LANES + 3)).astype(dtype)
    out = np.zeros(LANES + 1, dtype)
    arithmetic(a, b, np.float32(3), out)      # a float32 constant serves both dtypes
    x, y = a[1:1 + LANES], b[2:2 + LANES]
    np.testing.assert_allclose(out[:LANES], (x + y) * dtype(3) - x * y, rtol=8 * np.finfo(dtype).eps)
    assert out[LANES] == 0                    # nothing behind the vector is written


@numba.njit
def gather_eight(a, places, at, shift, out):
    for k, vector in enumerate(gather(a, places, at, shift)):
        store(out, LANES * k, vector)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gather_makes_columns_of_rows_that_lie_anywhere(dtype):
    rng = np.random.default_rng(0)
    a, places = rng.standard_normal(100).astype(dtype), rng.integers(-3, 90, 2 + LANES)
    out = np.zeros((HALF, LANES), dtype)
    gather_eight(a, places, 2, 3, out.reshape(-1))
    np.testing.assert_array_equal(out, a[places[2:] + 3 + np.arange(HALF)[:, None]])


@numba.njit
def collect_both(a, out):
    for k, vector in enumerate(collect_4((load(a, 0), load(a, LANES), load(a, 2 * LANES), load(a, 3 * LANES)))):
        store(out, LANES * k, vector)
    for k, vector in enumerate(collect_2((load(a, 0), load(a, LANES)))):
        store(out, LANES * (4 + k), vector)


@pytest.mark.parametrize("dtype", DTYPES)
def test_collect_goes_lane_by_lane(dtype):
    a, out = np.arange(4 * LANES, dtype=dtype).reshape(4, LANES), np.zeros(6 * LANES, dtype)
    collect_both(a.reshape(-1), out)
    np.testing.assert_array_equal(out, np.concatenate([a.T.reshape(-1), a[:2].T.reshape(-1)]))


@numba.njit
def keep(a, mask, start, out):
    store(out, 0, keep_where(load(a, 0), mask, start))


@pytest.mark.parametrize("dtype", DTYPES)
def test_keep_where(dtype):
    rng = np.random.default_rng(0)
    a, out, mask = np.full(LANES, np.nan, dtype), np.ones(LANES, dtype), rng.integers(0, 2, LANES + 5).astype(np.float32)
    keep(a, mask, 5, out)
    np.testing.assert_array_equal(np.isnan(out), mask[5:] == 1)
    assert not out[~np.isnan(out)].any()      # NaN outside is gone, not multiplied by 0


@numba.njit
def halves(a, out):
    prefetch(a, -10 ** 9)                     # far outside: nothing happens
    store(out, 1, relu(load_half(a, 2) * np.float32(2) - load_half(a, 0)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_half_a_vector(dtype):
    a, out = np.random.default_rng(0).standard_normal(HALF + 2).astype(dtype), np.zeros(HALF + 2, dtype)
    halves(a, out)
    np.testing.assert_allclose(out[1:-1], np.maximum(2 * a[2:] - a[:-2], 0), rtol=8 * np.finfo(dtype).eps)
    assert out[0] == out[-1] == 0


@numba.njit
def rectify(a, out):
    store(out, 0, relu(load(a, 0)))


def test_relu_keeps_nan_and_infinity():
    a, out = np.resize(np.float32([-1, 2, np.nan, np.inf, -np.inf, 0]), LANES), np.empty(LANES, np.float32)
    rectify(a, out)
    np.testing.assert_array_equal(out, np.where(a < 0, 0, a))


@numba.njit
def copy_one(a, i, out, j):
    set_number(out, j, number(a, i))


def test_one_number():
    a, out = np.arange(4, dtype=np.float32), np.zeros(4, np.float32)
    copy_one(a, 3, out, 1)
    np.testing.assert_array_equal(out, [0, 3, 0, 0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count, rows, depth, columns", [(1, 4, 1, 16), (3, 8, 5, 48), (2, 12, 300, 16)])
def test_product_of_panels(dtype, count, rows, depth, columns):
    rng = np.random.default_rng(0)
    U, V = rng.standard_normal((count, rows, depth)).astype(dtype), rng.standard_normal((count, depth, columns)).astype(dtype)
    M = np.empty((count, columns // PANEL, rows, PANEL), dtype)
    multiply(np.ascontiguousarray(U.reshape(count, -1, ROWS, depth).swapaxes(2, 3)),
             np.ascontiguousarray(V.reshape(count, depth, -1, PANEL).swapaxes(1, 2)), M)
    product = M.swapaxes(1, 2).reshape(count, rows, columns)
    # A sum of `depth` products of numbers around 1, each step rounded: by less than depth times the dtype's eps
    np.testing.assert_allclose(product, U.astype(np.float64) @ V.astype(np.float64), rtol=0, atol=4 * depth * np.finfo(dtype).eps)
