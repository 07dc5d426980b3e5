"""The exercises of notebook 02: convolution."""
import numpy as np
import pytest
from exercises import assert_explained, assert_solutions_pass, assert_stubs_are_not_solved, assert_three_mistakes_each

from nprcnn.course import convolution
from nprcnn.ops.conv import conv2d
from nprcnn.ops.deconv import conv_transpose2d

NUMBER = "02"


def stamps(x, w, stride, size=None):
    y = np.zeros((len(x), w.shape[1], *((n - 1) * stride + k for n, k in zip(x.shape[2:], w.shape[2:]))))
    for i, j in np.ndindex(x.shape[2:]):
        part = np.einsum("nc,coij->noij", x[:, :, i, j], w)
        y[:, :, i * stride:i * stride + w.shape[2], j * stride:j * stride + w.shape[3]] = part
    return y


def grad_x(dy, w, x_shape, stride, padding, turn=-1, rest=True, pad=None, copied=False):
    k = w.shape[2]
    sizes = [n + 2 * padding - k + 1 if rest else (m - 1) * stride + 1 for n, m in zip(x_shape[2:], dy.shape[2:])]
    z = np.zeros((*dy.shape[:2], *sizes))
    for i, j in np.ndindex(z.shape[2:]):
        if copied or i % stride == j % stride == 0:
            z[:, :, i, j] = dy[:, :, i // stride, j // stride]
    return conv2d(z, w[:, :, ::turn, ::turn].swapaxes(0, 1), padding=k - 1 - padding if pad is None else pad)


WRONG = [
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
    ("grad_x_by_convolution", lambda *a: grad_x(*a, copied=True), "copied to the places in between"),
]


def test_stubs_are_not_solved():
    assert_stubs_are_not_solved(convolution)


def test_solutions_pass():
    assert_solutions_pass(convolution, NUMBER)


@pytest.mark.parametrize("exercise, wrong, expected", WRONG)
def test_a_wrong_answer_gets_its_explanation(exercise, wrong, expected):
    assert_explained(convolution, exercise, wrong, expected)


def test_each_exercise_tells_three_mistakes_apart():
    assert_three_mistakes_each(convolution, WRONG)
