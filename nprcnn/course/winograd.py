"""Exercises of notebook 14: Winograd on the CPU."""

import numpy as np

from .checks import Result, compare


class Counted:
    """A number that counts how often two such numbers are multiplied. Times a plain number is free: it can be prepared."""

    products = 0

    def __init__(self, value):
        self.value = value

    def _with(self, other, operation):
        return Counted(operation(self.value, other.value if isinstance(other, Counted) else other))

    def __add__(self, other):
        return self._with(other, lambda a, b: a + b)

    def __sub__(self, other):
        return self._with(other, lambda a, b: a - b)

    def __rsub__(self, other):
        return self._with(other, lambda a, b: b - a)

    def __mul__(self, other):
        if isinstance(other, Counted):
            Counted.products += 1
        return self._with(other, lambda a, b: a * b)

    def __truediv__(self, other):
        return self._with(other, lambda a, b: a / b)

    def __neg__(self):
        return Counted(-self.value)

    __radd__, __rmul__ = __add__, __mul__


def check_two_outputs(yours):
    """two_outputs(d0, d1, d2, d3, g0, g1, g2) -> y0, y1: a filter of three taps at two places, with four products."""
    def right(d0, d1, d2, d3, g0, g1, g2):
        return d0 * g0 + d1 * g1 + d2 * g2, d1 * g0 + d2 * g1 + d3 * g2

    def products(d0, d1, d2, d3, g0, g1, g2):
        return (d0 - d2) * g0, (d1 + d2) * (g0 + g1 + g2) / 2, (d2 - d1) * (g0 - g1 + g2) / 2, (d1 - d3) * g2

    def signs(*args):
        m0, m1, m2, m3 = products(*args)
        return m0 + m1 + m2, m1 - m2 + m3

    def no_half(*args):
        m0, m1, m2, m3 = products(*args)
        return m0 + 2 * m1 + 2 * m2, 2 * m1 - 2 * m2 - m3

    def other_m2(*args):
        m0, m1, m2, m3 = products(*args)
        return m0 + m1 - m2, m1 + m2 - m3

    mistakes = [
        (lambda *a: (right(*a[:4], *a[:3:-1])[0], right(*a[:4], *a[:3:-1])[1]),
         "the filter is turned round: y0 = d0 g0 + d1 g1 + d2 g2, not d0 g2 + d1 g1 + d2 g0."),
        (signs, "the last product has the wrong sign: with m3 = (d1 - d3) g2, it is y1 = m1 - m2 - m3."),
        (other_m2, "the third product has the wrong sign: m2 = (d2 - d1) (g0 - g1 + g2) / 2, and y1 = m1 - m2 - m3."),
        (no_half, "the halves of G are missing: m1 and m2 come out twice as large."),
        (lambda *a: right(*a)[::-1], "y0 and y1 have changed places."),
    ]
    rng = np.random.default_rng(14)
    cases = [("one input is 1, the others 0", (0.0, 1.0, 0.0, 0.0, 1.0, 2.0, 4.0)),
             ("ones", (1.0, 1.0, 1.0, 1.0, 1.0, 2.0, 4.0)),
             ("random numbers", tuple(float(v) for v in rng.standard_normal(7)))]
    result = compare("two_outputs", yours, right, cases, ("y0", "y1"), mistakes)
    if not result.passed:
        return result
    Counted.products = 0
    yours(*(Counted(value) for value in cases[-1][1]))
    if Counted.products > 4:
        return Result("two_outputs", False, f"two_outputs: right, but with {Counted.products} products of an input with a filter tap.\n"
                      "Why, perhaps: it is the definition, which takes six. Mix the inputs and the taps first, then take four products.")
    return Result("two_outputs", True, result.text + " It takes four products.")


def check_saving(yours):
    """saving(height, width, m) -> direct products over Winograd's, for a map (height, width), 3x3, tiles of m x m outputs."""
    def right(height, width, m):
        return 9 * height * width / ((m + 2) ** 2 * -(-height // m) * -(-width // m))

    mistakes = [
        (lambda h, w, m: 9 * m * m / (m + 2) ** 2,
         "this is a whole tile's saving. At the lower and right edge tiles stick out, and all their products are paid."),
        (lambda h, w, m: 9 * h * w / ((m + 2) ** 2 * (h // m) * (w // m)) if h >= m <= w else None,
         "it counts whole tiles only, so some outputs are never made: round the number of tiles up, not down."),
        (lambda h, w, m: 9 * h * w / (m * m * -(-h // m) * -(-w // m)),
         "a tile has (m + 2) x (m + 2) products, one for each input, not one for each output."),
        (lambda h, w, m: 9 * h * w / ((m + 2) ** 2 * -(-h * w // (m * m))),
         "tiles are counted by area. They are rectangles on a grid: round up along each axis, then multiply."),
        (lambda h, w, m: 1 / right(h, w, m), "it is upside down: direct products over Winograd's, so that more is better."),
    ]
    cases = [("RoIs of 14 x 14, tiles of 4", (14, 14, 4)), ("P6, 13 x 19, tiles of 4", (13, 19, 4)),
             ("P6, tiles of 2", (13, 19, 2)), ("C5, 25 x 38, tiles of 6", (25, 38, 6)), ("P2, 200 x 304, tiles of 4", (200, 304, 4))]
    return compare("saving", yours, right, cases, ("saving",), mistakes)


def check_tiles_backward(yours):
    """tiles_backward(dV, BT) -> dd: the backward of V = B^T d B, for tiles V and d (T, n, n) and B^T (n, n)."""
    def right(dV, BT):
        return BT.T @ dV @ BT

    mistakes = [
        (lambda dV, BT: BT @ dV @ BT.T, "this is the forward pass again. Backward, each matrix is transposed: B^T becomes B."),
        (lambda dV, BT: np.linalg.inv(BT) @ dV @ np.linalg.inv(BT).T,
         "this undoes the forward pass. The gradient does not go through the inverse but through the transpose."),
        (lambda dV, BT: BT.T @ dV @ BT.T, "the right factor is not transposed: forward d stands between B^T and B, so dV stands between B and B^T."),
        (lambda dV, BT: BT.T @ dV, "only one axis is done: V = B^T d B has a matrix on each side."),
        (lambda dV, BT: BT.T @ dV.swapaxes(1, 2) @ BT, "the tiles are transposed."),
    ]
    rng = np.random.default_rng(15)
    BT = np.array([[1.0, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
    one = np.zeros((1, 4, 4))
    one[0, 0, 1] = 1
    cases = [("one number is 1", (one, BT)), ("three tiles", (rng.standard_normal((3, 4, 4)), BT)),
             ("another matrix", (rng.standard_normal((2, 6, 6)), rng.standard_normal((6, 6))))]
    return compare("tiles_backward", yours, right, cases, ("dd",), mistakes)
