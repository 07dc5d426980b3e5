"""The vectors of compiled code, and the matrix product made of them."""

import numpy as np
import pytest

numba = pytest.importorskip("numba")

from nprcnn.kernels.cpu.conv_product import PANEL, ROWS, multiply  # noqa: E402
from nprcnn.kernels.cpu.vectors import (LANES, collect_2, collect_4, deal_2, deal_4, keep_lanes, load, number, relu,  # noqa: E402
                                        set_number, store, zeros_like)

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
def deal_and_collect(a, start, dealt, collected):
    for k, vector in enumerate(deal_4(a, start)):
        store(dealt, LANES * k, vector)
    for k, vector in enumerate(collect_4(deal_4(a, start))):
        store(collected, LANES * k, vector)
    for k, vector in enumerate(deal_2(a, start)):
        store(dealt, LANES * (4 + k), vector)
    for k, vector in enumerate(collect_2(deal_2(a, start))):
        store(collected, LANES * (4 + k), vector)


@pytest.mark.parametrize("dtype", DTYPES)
def test_deal_takes_turns_and_collect_is_its_opposite(dtype):
    a = np.arange(5 * LANES, dtype=dtype)
    dealt, collected = np.zeros((2, 6 * LANES), dtype)
    deal_and_collect(a, 3, dealt, collected)
    four, two = a[3:3 + 4 * LANES], a[3:3 + 2 * LANES]
    np.testing.assert_array_equal(dealt.reshape(6, LANES), [four[k::4] for k in range(4)] + [two[k::2] for k in range(2)])
    np.testing.assert_array_equal(collected, np.concatenate([four, two]))


@numba.njit
def keep(a, first, behind, out):
    store(out, 0, keep_lanes(load(a, 0), first, behind))


@pytest.mark.parametrize("first, behind", [(0, LANES), (-3, 5), (4, 99), (7, 7), (9, 2), (-5, -1), (3, 4)])
def test_keep_lanes(first, behind):
    a, out = np.full(LANES, np.nan, np.float32), np.ones(LANES, np.float32)
    keep(a, first, behind, out)
    lanes = np.arange(LANES)
    np.testing.assert_array_equal(np.isnan(out), (first <= lanes) & (lanes < behind))
    assert not out[~np.isnan(out)].any()      # NaN outside is gone, not multiplied by 0


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
