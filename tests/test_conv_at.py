import numpy as np
import pytest
from reference import seeded
from small_models import fill

from nprcnn.gradcheck import check_gradients
from nprcnn.models import rpn
from nprcnn.models.rpn import RPNHead
from nprcnn.ops.conv import conv2d_backward, conv2d_forward
from nprcnn.ops.conv_at import add_columns, conv2d_backward_at, live_pixels, values_at


def sparse(name, shape, pixels):
    """A map that is zero but at some pixels."""
    y, (image, row, column) = np.zeros(shape), pixels
    y[image, :, row, column] = seeded.normal(name, len(image), shape[1])
    return y


@pytest.mark.parametrize("kernel, options", [
    ((1, 1), {}), ((3, 3), dict(padding=1)), ((3, 3), {}), ((3, 5), dict(stride=2, padding=(1, 2))), ((3, 3), dict(padding=2, dilation=2)),
    ((2, 3), dict(stride=(1, 2), padding=(1, 0), dilation=(2, 1)))], ids=str)
@pytest.mark.parametrize("where", [[], [0], [1, 2, 3], [0, 7, 8, 11, 30, 39], range(8, 40)], ids=str)
def test_the_same_as_conv2d(kernel, options, where):
    """Pixels of both images, at corners, side by side (their patches overlap), none, and all of one image."""
    x, w = seeded.normal("x", 2, 3, 7, 8), seeded.normal("w", 4, 3, *kernel)
    y, cache = conv2d_forward(x, w, seeded.normal("b", 4), **options)
    n, _, height, width = y.shape
    flat = np.unique([k * n * height * width // 40 for k in where]).astype(int)
    pixels = np.unravel_index(flat, (n, height, width))
    dy = sparse("dy", y.shape, pixels)
    found = live_pixels(dy)
    assert [p.tolist() for p in found] == [p.tolist() for p in pixels]
    dcolumns, dw, db = conv2d_backward_at(values_at(dy, found), cache, found)
    for mine, theirs in zip((add_columns(dcolumns, found, cache), dw, db), conv2d_backward(dy, cache)):
        assert mine.shape == theirs.shape
        np.testing.assert_allclose(mine, theirs, rtol=1e-13, atol=1e-13)   # the same products, in another order


def test_live_pixels_are_those_where_any_map_has_a_number():
    a, b = np.zeros((2, 1, 3, 4)), np.zeros((2, 5, 3, 4))
    a[0, 0, 1, 2], b[1, 4, 0, 0], b[1, 2, 2, 3] = 1, np.nan, -1e-300
    assert [p.tolist() for p in live_pixels(a, b)] == [[0, 1, 1], [1, 0, 2], [2, 0, 3]]


def test_float32_stays():
    x, w = seeded.normal("x", 1, 2, 4, 4).astype(np.float32), seeded.normal("w", 3, 2, 3, 3).astype(np.float32)
    y, cache = conv2d_forward(x, w, np.zeros(3, np.float32), padding=1)
    pixels = np.array([0]), np.array([1]), np.array([3])
    gradients = conv2d_backward_at(values_at(y, pixels), cache, pixels)
    assert {g.dtype for g in (*gradients, add_columns(gradients[0], pixels, cache))} == {np.dtype(np.float32)}


@pytest.mark.parametrize("convs", [1, 2])
def test_the_rpn_head_visits_only_pixels_with_a_gradient(monkeypatch, convs):
    """Five pixels of 2 x 13 x 17: the head's gradients are those of the dense pass, and of differences."""
    head = fill(RPNHead(np.random.default_rng(0), 4, 3, convs), "head.")
    for block in head.conv:
        block[0].bias.data += np.array([20, -20, 20, 20])  # each channel on one side of its ReLU's kink
    pixels = np.array([0, 0, 1, 1, 1]), np.array([0, 6, 6, 7, 12]), np.array([0, 3, 4, 4, 16])
    x, dy = seeded.normal("x", 2, 4, 13, 17), (sparse("dlogits", (2, 3, 13, 17), pixels), sparse("ddeltas", (2, 12, 13, 17), pixels))
    dy[0][1, :, 7, 4] = 0  # of this anchor only the box has a loss
    own = head.parameters()

    def forward(x, *values):
        for parameter, value in zip(own, values):
            parameter.data = value
        logits, deltas, cache = head.forward(x, True)
        return (logits * (dy[0] != 0), deltas * (dy[1] != 0)), cache

    def backward(dy_full, cache):
        head.zero_grad()
        return (head.backward(*(d * (m != 0) for d, m in zip(dy_full, dy)), cache), *(p.grad for p in own))

    calls = []
    monkeypatch.setattr(rpn, "add_columns", lambda *args: calls.append(args) or add_columns(*args))
    check_gradients(forward, backward, (x, *(p.data for p in own)))
    assert calls
    cache = forward(x, *(p.data for p in own))[1]
    few = backward(dy, cache)
    monkeypatch.setattr(rpn, "FEW", np.inf)
    calls.clear()
    for mine, theirs in zip(few, backward(dy, cache)):
        np.testing.assert_allclose(mine, theirs, rtol=1e-12, atol=1e-11)
    assert not calls
