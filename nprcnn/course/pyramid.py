"""Exercises of notebook 04: the feature pyramid."""

import numpy as np

from ..ops.resize import resize_nearest, resize_nearest_grad
from .checks import compare


def check_pyramid_shapes(yours):
    """pyramid_shapes(height, width) -> five pairs (rows, columns), P2 to P6."""
    def right(height, width, pad=True, p6=lambda size: (size + 1) // 2, first=2, transpose=False):
        if pad:
            height, width = (-(-size // 32) * 32 for size in (height, width))
        shapes = [(height >> level, width >> level) for level in range(first, first + 4)]
        shapes.append(tuple(p6(size) for size in shapes[-1]))
        return np.array([s[::-1] for s in shapes] if transpose else shapes)

    mistakes = [
        (lambda h, w: right(h, w, pad=False), "the padding is missing: first go up to the next multiples of 32."),
        (lambda h, w: right(h // 32 * 32, w // 32 * 32),
         "it is cut down to a multiple of 32. Padding makes an image larger: round up."),
        (lambda h, w: right(h // 32 * 32 + 32, w // 32 * 32 + 32),
         "a size that is a multiple of 32 already gets no padding: -(-height // 32) * 32."),
        (lambda h, w: np.array([(-(-h // cell), -(-w // cell)) for cell in (4, 8, 16, 32, 64)]),
         "the image is not padded: each level is rounded up by itself. First go up to the next multiples of 32."),
        (lambda h, w: right(-(-h // 64) * 64, -(-w // 64) * 64),
         "it is padded to multiples of 64. Multiples of 32 are meant, and P6 may round."),
        (lambda h, w: right(h, w, p6=lambda size: size // 2),
         "P6 is rounded down. [::2] begins with the first cell, so of 25 rows it takes 13."),
        (lambda h, w: right(h, w, first=1), "it begins with stride 2. P2 has stride 4 = 2 to the power of 2."),
        (lambda h, w: right(h, w, transpose=True), "the pairs are (columns, rows). Rows come first, as in an array's shape."),
    ]
    cases = [(f"{h} x {w}", (h, w)) for h, w in ((800, 1216), (800, 1333), (128, 128), (97, 224), (480, 640))]
    return compare("pyramid_shapes", lambda h, w: _as_array(yours(h, w)), right, cases, ("shapes",), mistakes)


def _as_array(answer):
    """A list of pairs as one output; a stub's None stays what it is."""
    return np.array(answer) if isinstance(answer, list) else answer


def check_fast_nearest_backward(yours):
    """fast_nearest_backward(dy (N, C, OH, OW), x_shape) -> dx of resize_nearest."""
    def spread(dy, x_shape, add=np.add.at, take=lambda n, size: np.arange(n) * size // n):
        dx = np.zeros(x_shape)
        rows, columns = (take(n, size) for n, size in zip(dy.shape[2:], x_shape[2:]))
        add(dx, (slice(None), slice(None), rows[:, None], columns), dy)
        return dx

    def add_once(a, place, values):
        a[place] += values

    def blocks(dy, x_shape):
        n, c, h, w = x_shape
        if dy.shape[2] % h or dy.shape[3] % w:
            return None
        return dy.reshape(n, c, h, dy.shape[2] // h, w, dy.shape[3] // w)

    def mean(dy, x_shape):
        return resize_nearest_grad(dy, x_shape) / resize_nearest_grad(np.ones_like(dy), x_shape)

    def doubled(dy, x_shape):
        return spread(dy, x_shape, take=lambda n, size: np.minimum(np.arange(n) // 2, size - 1))

    def nearest(n, size):
        return np.minimum(np.round(np.arange(n) * size / n).astype(int), size - 1)

    mistakes = [
        (lambda dy, s: spread(dy, s, add_once),
         "of several gradients that go to one cell, all but one are lost: an index that repeats, and `a[index] += values` "
         "adds once. Use np.add.at."),
        (lambda dy, s: spread(dy, s, np.ndarray.__setitem__), "the gradients of copies overwrite one another. They add up."),
        (mean, "it takes the mean over the copies. Each copy has its own effect on the loss, so they add up."),
        (lambda dy, s: resize_nearest(dy, s[2:]), "it picks one copy of each cell. All copies came from it: add them up."),
        (doubled, "it divides the index by 2 whatever the sizes are. Row i came from row i * H // OH."),
        (lambda dy, s: spread(dy, s, take=nearest),
         "the index is rounded to the nearest. Equation (2) rounds down."),
    ]
    rng = np.random.default_rng(12)
    cases = [(f"{small} to {large}", (rng.standard_normal((2, 3, *large)), (2, 3, *small)))
             for small, large in (((3, 4), (6, 8)), ((4, 3), (7, 5)), ((3, 2), (9, 2)), ((13, 5), (25, 12)))]
    return compare("fast_nearest_backward", yours, resize_nearest_grad, cases, ("dx",), mistakes)


def check_top_down_backward(yours):
    """top_down_backward((dinner3, dinner4, dinner5), shapes) -> dl3, dl4, dl5 of notebook 04's top-down path."""
    def right(dy, shapes, keep3=1, keep4=1, down=resize_nearest_grad):
        d3, d4, d5 = dy
        total4 = keep4 * d4 + down(d3, shapes[1])
        return d3, total4, d5 + keep3 * down(total4, shapes[2])

    mistakes = [
        (lambda dy, s: (None, None, dy[2] + resize_nearest_grad(dy[1], s[2])),
         "the bug is still there: what goes on to l5 is the gradient of the *output* inner4 alone. inner4 was also enlarged "
         "into inner3, so its gradient has a second part. Complete it first."),
        (lambda dy, s: (None, None, dy[2] + resize_nearest_grad(resize_nearest_grad(dy[0], s[1]), s[2])),
         "dl5 lacks the gradient of the output inner4."),
        (lambda dy, s: (None, None, dy[2] + resize_nearest_grad(dy[1], s[2]) + resize_nearest_grad(dy[0], s[2])),
         "dinner3 jumps over level 4. inner5 was enlarged twice, so go back twice: first to l4's size, then to l5's."),
        (lambda dy, s: right(dy, s, keep4=0), "dl4 lacks dinner4: inner4 is an output itself."),
        (lambda dy, s: (None, dy[1], None), "dl4 lacks what comes back from inner3, into which inner4 was enlarged."),
        (lambda dy, s: (None, None, dy[2]), "dl5 lacks what comes back from inner4."),
        (lambda dy, s: right(dy, s, down=lambda d, shape: resize_nearest(d, shape[2:])),
         "a gradient is made smaller by picking cells. The way back through copies adds them up: resize_nearest_grad."),
    ]
    rng = np.random.default_rng(13)
    cases = []
    for name, sizes in (("7 x 6, 4 x 3, 2 x 2", ((7, 6), (4, 3), (2, 2))), ("8 x 8, 4 x 4, 2 x 2", ((8, 8), (4, 4), (2, 2)))):
        shapes = tuple((2, 3, *size) for size in sizes)
        cases.append((name, (tuple(rng.standard_normal(s) for s in shapes), shapes)))
    return compare("top_down_backward", yours, right, cases, ("dl3", "dl4", "dl5"), mistakes)
