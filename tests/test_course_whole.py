"""The exercises of notebook 11: five losses, one backward pass."""
import matplotlib
import numpy as np
import pytest
from exercises import (assert_explained, assert_solutions_pass, assert_stubs_are_not_solved, assert_three_mistakes_each,
                       solutions_of)

from nprcnn.course import whole
from nprcnn.gradcheck import check_gradients
from nprcnn.ops.conv import conv2d_backward
from nprcnn.trace import NAMES

NUMBER = "11"


def rules(dy, cache, add=True, paths=(1, 1), cut=len, half=1, factor=True):
    """In loops, unlike the solution."""
    s, w, index = cache
    k = cut(index)
    ds, dw = np.zeros_like(s), np.zeros_like(w)
    for c in range(s.shape[0]):
        for j, column in enumerate(index):
            ds[c, column] = (ds[c, column] if add else 0) + paths[0] * dy[c, j + (0 if k == len(index) else s.shape[1])]
        for column in range(s.shape[1]):
            g = dy[c, column + (len(index) if k == len(index) else 0)]
            ds[c, column] += paths[1] * g * (w[c, 0] if factor else 1)
            dw[c, 0] += g * s[c, column]
    return ds / half, ds / half, dw


def share(gradients, by=lambda g, total: np.sum(g * total), over=lambda gs, total: np.sum(total * total), sign=True):
    total = sum(gradients)
    if not total.any():
        return np.zeros(len(gradients))
    values = np.array([by(g, total) for g in gradients]) / over(gradients, total)
    return values if sign else np.abs(values)


def pyramid(dy, cache, ways=((0, 0), (0, 1), (1, 0), (1, 1)), scale=1, p6=lambda old, new: old + new, levels=(1, 1)):
    dp4, dp5, dp6 = dy
    cache4, cache5, out4, out5 = cache
    dp5 = dp5.copy()
    dp5[:, :, ::2, ::2] = p6(dp5[:, :, ::2, ::2], dp6)
    di4, dw_4, _ = conv2d_backward(dp4, out4)
    di5, dw_5, _ = conv2d_backward(dp5, out5)
    di5 = di5 + scale * sum((di4[:, :, a::2, b::2] for a, b in ways), 0 * di5)
    dc4, dw4, _ = conv2d_backward(di4, cache4)
    dc5, dw5, _ = conv2d_backward(di5, cache5)
    return dc4, dc5, dw4, dw5, levels[0] * dw_4 + levels[1] * dw_5


WRONG = [
    ("rules_backward", lambda dy, c: rules(dy, c, add=False), "picked twice"),
    ("rules_backward", lambda dy, c: rules(dy, c, paths=(0, 1)), "path through a is missing"),
    ("rules_backward", lambda dy, c: rules(dy, c, paths=(1, 0)), "path through b is missing"),
    ("rules_backward", lambda dy, c: rules(dy, c, cut=lambda index: -1), "cut at the wrong place"),
    ("rules_backward", lambda dy, c: rules(dy, c, half=2), "shared out between p and q"),
    ("rules_backward", lambda dy, c: rules(dy, c, factor=False), "factor w is missing"),
    ("shares", lambda g: share(g, lambda g, t: np.linalg.norm(g), lambda gs, t: sum(map(np.linalg.norm, gs))),
     "shares of the norms"),
    ("shares", lambda g: share(g, lambda g, t: np.sum(g * g)), "<g_l, g_l> / <g, g>"),
    ("shares", lambda g: share(g, over=lambda gs, t: np.linalg.norm(t)), "divided by the norm"),
    ("shares", lambda g: share(g, over=lambda gs, t: 1), "not divided"),
    ("shares", lambda g: share(g, sign=False), "sign is lost"),
    ("shares", lambda g: np.array([np.sum(x * g.sum(axis=0)) for x in g]) / np.sum(g.sum(axis=0) ** 2),
     "a division by 0"),
    ("two_level_backward", lambda dy, c: pyramid(dy, c, ways=((0, 0),)), "bug is still there"),
    ("two_level_backward", lambda dy, c: pyramid(dy, c, scale=0.25), "sum, not mean"),
    ("two_level_backward", lambda dy, c: pyramid(dy, c, ways=()), "top-down path is missing"),
    ("two_level_backward", lambda dy, c: pyramid(dy, c, p6=lambda old, new: new), "overwrites"),
    ("two_level_backward", lambda dy, c: pyramid(dy, c, levels=(1, 0)), "P5's is missing"),
]


def test_stubs_are_not_solved():
    assert_stubs_are_not_solved(whole)


def test_solutions_pass():
    assert_solutions_pass(whole, NUMBER)


@pytest.mark.parametrize("exercise, right", [("rules_backward", rules), ("shares", share),
                                             ("two_level_backward", pyramid)])
def test_another_right_answer_passes(exercise, right):
    """So that what makes the wrong answers below wrong is the one thing that is changed in them."""
    assert getattr(whole, f"check_{exercise}")(right).passed


@pytest.mark.parametrize("exercise, wrong, expected", WRONG)
def test_a_wrong_answer_gets_its_explanation(exercise, wrong, expected):
    assert_explained(whole, exercise, wrong, expected)


def test_each_exercise_tells_three_mistakes_apart():
    assert_three_mistakes_each(whole, WRONG)


def test_the_drawing_knows_every_stage_with_a_gradient():
    """All names that backward records, but for the RPN's single levels."""
    parts = "backbone.", "fpn.", "losses.", "rpn.objectness", "rpn.deltas", "roi_heads."
    recorded = {name for name in NAMES if name.startswith(parts)}
    without = {f"rpn.deltas.p{k}" for k in range(2, 7)} | {"roi_heads.levels", "roi_heads.mask_probabilities",
                                                          "roi_heads.mask_targets"}
    assert recorded - without == set(whole.PLACES) - {"rpn head"}
    assert {stage for link in whole.LINKS + whole.TOP_DOWN for stage in link} == set(whole.PLACES)


def test_the_drawing_shows_each_norm():
    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    gradients = {name: np.full(4, 0.5) for name in whole.PLACES if name != "rpn head"} | {"fpn.p6": np.zeros(4)}
    whole.draw_gradients(gradients)
    texts = [text.get_text() for text in plt.gca().texts]
    plt.close()
    assert "P2\n1e+00" in texts and "P6\n0" in texts and "RPN head" in texts and len(texts) == len(whole.PLACES)


def test_the_planted_bug_is_seen_by_check_gradients():
    rng = np.random.default_rng(1)
    inputs = [rng.standard_normal(s) for s in ((1, 2, 4, 6), (1, 3, 2, 3), (4, 2, 1, 1), (4, 3, 1, 1), (4, 4, 3, 3))]
    with pytest.raises(AssertionError) as caught:
        check_gradients(solutions_of(NUMBER)["two_level_forward"], lambda dy, c: pyramid(dy, c, ways=((0, 0),)), inputs)
    assert [bool(row.problem) for row in caught.value.rows] == [False, True, False, True, False]
