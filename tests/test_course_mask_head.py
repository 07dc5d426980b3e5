"""The exercises of notebook 10: the mask head."""
import numpy as np
import pytest
from exercises import (assert_explained, assert_solutions_pass, assert_stubs_are_not_solved, assert_three_mistakes_each,
                       solutions_of)

from nprcnn.course import mask_head
from nprcnn.gradcheck import check_gradients
from nprcnn.ops.activation import relu_backward
from nprcnn.ops.conv import conv2d_backward
from nprcnn.ops.deconv import conv_transpose2d_backward
from nprcnn.ops.losses import bce_with_logits_backward

NUMBER = "10"


def deconv(x, w, b, place=lambda i, a, size: 2 * i + a, stamp=lambda w, c: w[c], bias=1):
    """In loops, unlike the solution."""
    n, c, height, width = x.shape
    y = np.zeros((n, w.shape[1], 2 * height, 2 * width)) + bias * b[:, None, None]
    for k, channel, i, j in np.ndindex(x.shape):
        for a in range(2):
            for e in range(2):
                y[k, :, place(i, a, height), place(j, e, width)] += x[k, channel, i, j] * stamp(w, channel)[:, a, e]
    return y


def softmax_loss(dy, cache, limit=lambda t: t >= 0.5, count=lambda t: t.size, maps=lambda k, label: True, scale=True):
    z, labels, targets = cache
    dz = np.zeros_like(z)
    for s, i, j in np.ndindex(targets.shape):
        e = np.exp(z[s, :, i, j])
        u = labels[s] if limit(targets[s, i, j]) else 0
        for k in range(z.shape[1]):
            if maps(k, labels[s]):
                dz[s, k, i, j] = (dy if scale else 1) * (e[k] / e.sum() - (k == u)) / count(targets)
    return dz


def branch(dy, cache, place=lambda k, label: k == label, gate=True, every=False):
    deconv_cache, relu_cache, logits_cache, loss_cache, shape, labels = cache
    chosen, dz = bce_with_logits_backward(dy, loss_cache), np.zeros(shape)
    for s in range(shape[0]):
        for k in range(shape[1]):
            if place(k, labels[s]):
                dz[s, k] = chosen[s]
    if every:
        dz[:, labels] = chosen
    dh, dwl, _ = conv2d_backward(dz, logits_cache)
    dx, dwd, _ = conv_transpose2d_backward(relu_backward(dh, relu_cache) if gate else dh, deconv_cache)
    return dx, dwd, dwl


WRONG = [
    ("deconv_2x2", lambda *a: deconv(*a, place=lambda i, e, size: i + e * size), "like tiles"),
    ("deconv_2x2", lambda *a: deconv(*a, stamp=lambda w, c: w[c].transpose(0, 2, 1)), "rows and columns of the filter"),
    ("deconv_2x2", lambda *a: deconv(*a, stamp=lambda w, c: w[c, :, ::-1, ::-1]), "turned around"),
    ("deconv_2x2", lambda *a: deconv(*a, stamp=lambda w, c: w[:, c]), "*input* channel"),
    ("deconv_2x2", lambda *a: deconv(*a, bias=0), "bias is missing"),
    ("deconv_2x2", lambda x, w, b: np.einsum("ncij,coab->noabij", x, w).reshape(len(x), len(b), 2 * x.shape[2], -1) + b[:, None, None],
     "a block of its own"),
    ("softmax_mask_backward", lambda dy, c: softmax_loss(dy, c, maps=lambda k, label: k == label), "only the map"),
    ("softmax_mask_backward", lambda dy, c: softmax_loss(dy, c, limit=lambda t: True), "every pixel is given"),
    ("softmax_mask_backward", lambda dy, c: softmax_loss(dy, c, limit=lambda t: t > 0.5), "exactly 1/2"),
    ("softmax_mask_backward", lambda dy, c: softmax_loss(dy, c, count=len), "not over the RoIs"),
    ("softmax_mask_backward", lambda dy, c: softmax_loss(dy, c, scale=False), "dy is missing"),
    ("branch_backward", lambda dy, c: branch(dy, c, every=True), "bug is still there"),
    ("branch_backward", lambda dy, c: branch(dy, c, place=lambda k, label: True), "all maps of a RoI"),
    ("branch_backward", lambda dy, c: branch(dy, c, place=lambda k, label: k == label - 1), "the map before"),
    ("branch_backward", lambda dy, c: branch(dy, c, gate=False), "gate is missing"),
]


def test_stubs_are_not_solved():
    assert_stubs_are_not_solved(mask_head)


def test_solutions_pass():
    assert_solutions_pass(mask_head, NUMBER)


@pytest.mark.parametrize("exercise, right", [("deconv_2x2", deconv), ("softmax_mask_backward", softmax_loss),
                                             ("branch_backward", branch)])
def test_another_right_answer_passes(exercise, right):
    """So that what makes the wrong answers below wrong is the one thing that is changed in them."""
    assert getattr(mask_head, f"check_{exercise}")(right).passed


@pytest.mark.parametrize("exercise, wrong, expected", WRONG)
def test_a_wrong_answer_gets_its_explanation(exercise, wrong, expected):
    assert_explained(mask_head, exercise, wrong, expected)


def test_each_exercise_tells_three_mistakes_apart():
    assert_three_mistakes_each(mask_head, WRONG)


@pytest.mark.parametrize("rois, seen", [(1, False), (3, True)])
def test_the_planted_bug_is_seen_by_check_gradients_with_several_rois(rois, seen):
    rng = np.random.default_rng(1)
    inputs = [*(rng.standard_normal(s) for s in ((rois, 3, 2, 2), (3, 4, 2, 2), (5, 4, 1, 1))),
              rng.integers(1, 5, rois), rng.uniform(size=(rois, 4, 4))]

    def run():
        return check_gradients(solutions_of(NUMBER)["branch_forward"], lambda dy, c: branch(dy, c, every=True), inputs,
                               wrt=[0, 1, 2])
    if not seen:
        assert not any(row.problem for row in run())
        return
    with pytest.raises(AssertionError) as caught:
        run()
    assert all(row.problem for row in caught.value.rows)
