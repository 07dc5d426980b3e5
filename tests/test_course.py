"""The exercises' checks: stubs are not solved, solutions pass, and typical wrong answers get the explanation that fits."""
import runpy
from pathlib import Path

import numpy as np
import pytest

from nprcnn import course
from nprcnn.gradcheck import check_gradients
from nprcnn.ops.conv import conv2d
from nprcnn.ops.deconv import conv_transpose2d

SOLUTIONS = Path(__file__).parents[1] / "notebooks" / "src" / "solutions"
EXERCISES = ["residual_backward", "pyramid_backward", "bce_backward",
             "receptive_field", "conv_transpose", "grad_x_by_convolution",
             "roi_levels", "deltas_to", "best_class_map"]


@pytest.fixture(scope="module")
def solutions():
    """The names that the solution notebooks define; they also check their gradients as they run."""
    names = {}
    for path in sorted(SOLUTIONS.glob("*.py")):
        names.update(runpy.run_path(str(path)))
    return names


def check(exercise, function):
    return getattr(course, f"check_{exercise}")(function)


def not_written(*args):
    raise NotImplementedError


@pytest.mark.parametrize("exercise", EXERCISES)
@pytest.mark.parametrize("stub", [lambda *args: None, lambda *args: ..., not_written, lambda *args: (None, None, None)])
def test_a_stub_is_not_solved(exercise, stub):
    result = check(exercise, stub)
    assert not result.passed and not result
    assert repr(result) == result.text and "not solved yet" in result.text


@pytest.mark.parametrize("exercise", EXERCISES)
def test_the_solution_passes(exercise, solutions):
    result = check(exercise, solutions[exercise])
    assert result.passed and result and "passed" in result.text, result.text


def test_every_check_is_covered():
    assert sorted(name for name in dir(course) if name.startswith("check_")) == sorted(f"check_{e}" for e in EXERCISES)


# ---- wrong answers: each exercise, function, what the text must say ----

def residual(dy, cache, skip=True, gate=lambda x, z: z > 0):
    x, w, z = cache
    dz = dy * gate(x, z)
    return (dy if skip else 0) + dz @ w, dz.T @ x, dz.sum(axis=0)


def pyramid(dy, cache, upsampling=True, p6=True):
    c5, w, index = cache
    dinner = dy[:, :, len(index):len(index) + c5.shape[2]].copy()
    dinner[:, :, ::2] += dy[:, :, len(index) + c5.shape[2]:] if p6 else 0
    dinner[:, :, index] += dy[:, :, :len(index)] if upsampling else 0        # the bug of the notebook
    return dy[:, :, :len(index)], w.T @ dinner, np.einsum("ncl,ndl->cd", dinner, c5)


def bce(dy, cache):
    z, t = cache
    return 1 / (1 + np.exp(-np.clip(z, -30, 30))) - t


def stamps(x, w, stride, size=None):
    y = np.zeros((len(x), w.shape[1], *((n - 1) * stride + k for n, k in zip(x.shape[2:], w.shape[2:]))))
    for i, j in np.ndindex(x.shape[2:]):
        part = np.einsum("nc,coij->noij", x[:, :, i, j], w)
        y[:, :, i * stride:i * stride + w.shape[2], j * stride:j * stride + w.shape[3]] = part
    return y


def grad_x(dy, w, x_shape, stride, padding, turn=-1, rest=True, pad=None):
    k = w.shape[2]
    sizes = [n + 2 * padding - k + 1 if rest else (m - 1) * stride + 1 for n, m in zip(x_shape[2:], dy.shape[2:])]
    z = np.zeros((*dy.shape[:2], *sizes))
    z[:, :, ::stride, ::stride][:, :, :dy.shape[2], :dy.shape[3]] = dy
    return conv2d(z, w[:, :, ::turn, ::turn].swapaxes(0, 1), padding=k - 1 - padding if pad is None else pad)


def levels(boxes, size, round=np.floor, low=2, high=5):
    side = np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))
    return np.clip(round(4 + np.log2(side / size)), low, high).astype(int)


def deltas(boxes, anchors, centre=0.5, log=np.log, relative=True):
    (wh, wh_a), (xy, xy_a) = (b[:, 2:] - b[:, :2] for b in (boxes, anchors)), (b[:, :2] for b in (boxes, anchors))
    d = xy + centre * wh - xy_a - centre * wh_a
    return np.hstack([d / wh_a if relative else d, log(wh / wh_a)])


def paint(labels, masks, order):
    y = np.zeros(masks.shape[1:], int)
    for i in order:
        y[masks[i]] = labels[i]
    return y


WRONG = [
    ("residual_backward", lambda dy, c: residual(dy, c, skip=False), "lacks the short cut"),
    ("residual_backward", lambda dy, c: residual(dy, c, gate=lambda x, z: 1), "gate is missing"),
    ("residual_backward", lambda dy, c: residual(dy, c, gate=lambda x, z: x > 0), "gate looks at x"),
    ("residual_backward", lambda dy, c: residual(dy, c)[:2] + (dy * (c[2] > 0),), "sum over axis 0 is missing"),
    ("residual_backward", lambda dy, c: residual(dy, c)[:1] + (residual(dy, c)[1].T, residual(dy, c)[2]), "dw is transposed"),
    ("pyramid_backward", pyramid, "index that repeats"),
    ("pyramid_backward", lambda dy, c: pyramid(dy, c, upsampling=False), "path through the upsampling is missing"),
    ("pyramid_backward", lambda dy, c: (pyramid(dy, c)[0], None, None), "return NumPy arrays"),
    ("bce_backward", lambda dy, c: dy * bce(dy, c), "share of 1 / z.size"),
    ("bce_backward", lambda dy, c: bce(dy, c) / c[0].size, "dy is missing"),
    ("bce_backward", lambda dy, c: -dy * bce(dy, c) / c[0].size, "the sign"),
    ("bce_backward", lambda dy, c: dy * (np.exp(c[0]) / (1 + np.exp(c[0])) - c[1]) / c[0].size, "overflows"),
    ("receptive_field", lambda layers: 1 + sum(d * (k - 1) for k, s, d in layers), "strides have no effect"),
    ("receptive_field", lambda layers: sum(k for k, s, d in layers), "adds k - 1 pixels"),
    ("receptive_field", lambda layers: 1 + sum((k - 1) * 2 ** (i + (layers[0][1] > 1)) for i, (k, s, d) in enumerate(layers)),
     "a layer's own stride"),
    ("conv_transpose", stamps, "overwrite one another"),
    ("conv_transpose", lambda x, w, s: conv_transpose2d(x, w[:, :, ::-1, ::-1], None, s), "turned round"),
    ("conv_transpose", lambda x, w, s: conv_transpose2d(x, w, None, 1), "1 pixel apart"),
    ("grad_x_by_convolution", lambda *a: grad_x(*a, turn=1), "not turned round"),
    ("grad_x_by_convolution", lambda *a: grad_x(*a, rest=False), "last rows or columns"),
    ("grad_x_by_convolution", lambda *a: grad_x(*a, pad=a[4]), "forward's padding"),
    ("roi_levels", lambda b, s: levels(b, s, low=-9, high=99), "P2 to P5 only"),
    ("roi_levels", lambda b, s: levels(b, s, low=-9), "smaller than 2"),
    ("roi_levels", lambda b, s: levels(b, s, high=99), "larger than 5"),
    ("roi_levels", lambda b, s: levels(b, s, high=6), "P6 is for the RPN alone"),
    ("roi_levels", lambda b, s: levels(b, s, round=np.round), "The formula rounds down"),
    ("roi_levels", lambda b, s: levels(b, s) - 2, "counts from 0"),
    ("roi_levels", lambda b, s: levels(b, 112), "size has no effect"),
    ("deltas_to", lambda b, a: deltas(b, a, centre=0), "centres of the boxes"),
    ("deltas_to", lambda b, a: deltas(b, a, relative=False), "dx and dy are relative"),
    ("deltas_to", lambda b, a: deltas(b, a, log=lambda r: r), "logarithm is missing"),
    ("deltas_to", lambda b, a: deltas(a, b), "the other way round"),
    ("best_class_map", lambda l, s, m: (l[:, None, None] * m).max(axis=0, initial=0), "takes the larger label"),
    ("best_class_map", lambda l, s, m: paint(l, m, np.argsort(-s)), "worst score wins"),
    ("best_class_map", lambda l, s, m: paint(l, m, range(len(l))), "last instance of the list"),
    ("best_class_map", lambda l, s, m: paint(l, m, range(len(l))[::-1]), "first instance of the list"),
]


@pytest.mark.parametrize("exercise, wrong, expected", WRONG)
def test_a_wrong_answer_gets_its_explanation(exercise, wrong, expected):
    result = check(exercise, wrong)
    assert not result.passed
    assert "Why, perhaps:" in result.text and expected in result.text, result.text


def test_each_exercise_tells_three_mistakes_apart():
    for exercise in EXERCISES:
        texts = {check(exercise, wrong).text for name, wrong, _ in WRONG if name == exercise}
        assert len(texts) >= 3, exercise


# ---- what the text says about any function ----

def compare(yours, reference=lambda x: x, x=np.arange(1.0, 13).reshape(3, 4)):
    return course.compare("f", yours, reference, [("a case", (x,))], ("y",)).text


def test_it_reports_shape_error_and_first_bad_index():
    def yours(x):
        y = x.copy()
        y[1, 2] += 0.5
        y[2, 0] -= 2.0
        return y
    text = compare(yours)
    assert "(case: a case)" in text and "shape (3, 4) is right, 2 of 12 numbers are wrong, the first at [1, 2]" in text
    assert "largest error 2 at [2, 0]: yours 7, expected 9" in text
    assert "shape (4, 3), expected (3, 4)" in compare(lambda x: x.T) and "transposed" in compare(lambda x: x.T)
    assert "yours 77, expected 78" in compare(lambda x: 77, lambda x: x.sum())


def test_it_knows_general_patterns():
    assert "the sign is wrong" in compare(lambda x: -x)
    assert "0.25 times" in compare(lambda x: x / 4)
    assert "not finite" in compare(lambda x: x / 0)
    assert "only the border" in compare(lambda x: np.pad(x[1:-1, 1:-1], 1), x=np.ones((5, 6)))
    assert "never arrives" in compare(lambda x: np.where(x == 6, 0, x))
    assert "returns 2 and should return 1" in compare(lambda x: (x, x))


def test_it_shows_exceptions_and_writes():
    def raises(x):
        return x @ x

    def writes(x):
        x *= 1.5
        return x / 1.5
    assert "It raises ValueError" in compare(raises) and "in the line   return x @ x" in compare(raises)
    assert "writes into one of its arguments" in compare(writes)


def test_rounding_passes():
    assert "passed" in compare(lambda x: x * (1 + 1e-14)) and "passed" not in compare(lambda x: x * (1 + 1e-8))


def test_the_bug_of_exercise_2_is_seen_by_check_gradients(solutions):
    with pytest.raises(AssertionError) as caught:
        check_gradients(solutions["pyramid_forward"], pyramid,
                        [np.random.default_rng(0).standard_normal(s) for s in ((2, 3, 6), (2, 4, 3), (3, 4))])
    assert [bool(row.problem) for row in caught.value.rows] == [False, True, True]
