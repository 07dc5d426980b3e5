import math
import warnings
from fractions import Fraction

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from nprcnn.ops.boxes import box_area, box_iou, clip_boxes, decode_boxes, encode_boxes, remove_small_boxes
from reference_values import load_cases, strided

CASES = load_cases("boxes.npz")
INPUTS = CASES["inputs"]
A, B, SIZE, MIN_SIZE = (INPUTS[name] for name in ("a", "b", "size", "min_size"))
CODERS = {name: CASES[name] for name in ("rpn", "head")}


@pytest.mark.parametrize("change", [lambda a: a, strided], ids=["contiguous", "strided"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_geometry_equals_torchvision_bit_for_bit(dtype, change, kernels):
    ref = CASES[np.dtype(dtype).name]
    a, b = change(A.astype(dtype)), change(B.astype(dtype))
    for mine, name in ((box_area(a), "area"), (kernels.box_iou(a, b), "iou"), (clip_boxes(a, SIZE), "clipped"),
                       (remove_small_boxes(b, MIN_SIZE), "large")):
        np.testing.assert_array_equal(mine, ref[name], err_msg=name)
        assert mine.dtype == ref[name].dtype, name
    assert 0 < len(ref["large"]) < len(b) and (ref["iou"] > 0).any()


@pytest.mark.parametrize("change", [lambda a: a, strided], ids=["contiguous", "strided"])
@pytest.mark.parametrize("name", CODERS)
def test_coder_equals_torchvision(name, change):
    """Relative 1e-14: exp and log of another library, and a few roundings."""
    ref = CODERS[name]
    encoded = encode_boxes(change(A[:19]), change(B), **ref["options"])
    decoded = decode_boxes(change(ref["deltas"]), change(B)[:, None], **ref["options"])
    np.testing.assert_allclose(encoded, ref["encoded"], rtol=1e-14, atol=1e-14)
    np.testing.assert_allclose(decoded.reshape(19, -1, 4), ref["decoded"], rtol=1e-14, atol=1e-12)


def test_float32_stays_float32():
    """The dtype is that of the first argument; the values are float64's to a few roundings of 100 pixels."""
    a, b = A[:19].astype(np.float32), B.astype(np.float32)
    for ref in CODERS.values():
        weights = tuple(np.float64(w) for w in ref["options"]["weights"])
        for anchors in (b, B):
            encoded = encode_boxes(a, anchors, weights)
            decoded = decode_boxes(ref["encoded"].astype(np.float32), anchors, weights)
            assert encoded.dtype == decoded.dtype == np.float32
            np.testing.assert_allclose(encoded, ref["encoded"], rtol=2e-6, atol=2e-5)
            np.testing.assert_allclose(decoded, A[:19], rtol=2e-6, atol=2e-5)
    assert clip_boxes(a, np.array([60.0, 70.0])).dtype == np.float32


def test_inputs_are_not_written_to():
    for array in (A, B, *(ref["deltas"] for ref in CODERS.values())):
        assert not array.flags.writeable        # so every test above would have failed


def test_log_scale_is_clamped():
    anchor = np.array([0.0, 0.0, 16.0, 16.0])
    boxes = decode_boxes(np.array([[0, 0, 1000.0, math.log(2)], [0, 0, -1000.0, 0]]), anchor)
    np.testing.assert_allclose(boxes, [[8 - 500, -8, 8 + 500, 24], [8, 0, 8, 16]], rtol=1e-14)
    # The clamp is on dw after its weight is divided out, and the caller may choose another.
    boxes = decode_boxes(np.array([[0, 0, 50.0, 0]]), anchor, (10, 10, 5, 5), max_log_scale=math.log(3))
    np.testing.assert_allclose(boxes, [[-16, 0, 32, 16]], rtol=1e-14)


def test_decode_broadcasts():
    deltas = CODERS["head"]["deltas"]
    all_classes = decode_boxes(deltas, B[:, None])
    for k in range(3):
        np.testing.assert_array_equal(all_classes[:, k], decode_boxes(deltas[:, k], B))
    np.testing.assert_array_equal(decode_boxes(deltas[0, 0], B), decode_boxes(deltas[:1, 0], B))


def boxes_of(elements, smallest_side):
    """Strategy: (n, 4) boxes with sides of at least `smallest_side`."""
    corners = hnp.arrays(np.float64, st.tuples(st.integers(0, 6), st.just(4)), elements=elements)
    return corners.map(lambda c: np.hstack([c[:, :2], c[:, :2] + np.abs(c[:, 2:]) + smallest_side]))


@settings(deadline=None)
@given(a=boxes_of(st.floats(-1e3, 1e3, width=32), 0), b=boxes_of(st.floats(-1e3, 1e3, width=32), 0),
       dtype=st.sampled_from([np.float32, np.float64]))
def test_iou_is_symmetric_and_between_0_and_1(a, b, dtype, kernels):
    """Exactly, rounding included: inter <= each area, so fl(area_a + area_b) >= 2 inter, so union >= inter."""
    a, b = a.astype(dtype), b.astype(dtype)
    iou = kernels.box_iou(a, b)
    assert iou.dtype == dtype and iou.shape == (len(a), len(b))
    assert ((iou >= 0) & (iou <= 1)).all()
    np.testing.assert_array_equal(iou, kernels.box_iou(b, a).T)
    np.testing.assert_array_equal(np.diag(kernels.box_iou(a, a)), box_area(a) > 0)


@settings(deadline=None)
@given(a=boxes_of(st.integers(-8, 8), 0), b=boxes_of(st.integers(-8, 8), 0))
def test_iou_of_whole_pixels_is_counted(a, b, kernels):
    """A box of whole numbers is a set of pixels, and IoU is a count."""
    def pixels(box):
        x1, y1, x2, y2 = box.astype(int)
        return {(x, y) for x in range(x1, x2) for y in range(y1, y2)}

    iou = kernels.box_iou(a, b)
    for i, p in enumerate(map(pixels, a)):
        for j, q in enumerate(map(pixels, b)):
            assert iou[i, j] == (float(Fraction(len(p & q), len(p | q))) if p | q else 0)


def test_iou_of_empty_boxes_is_0_and_quiet(kernels):
    boxes = np.array([[3.0, 4, 3, 4], [3, 4, 3, 4], [1, 1, 1, 9], [0, 0, 10, 10]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        iou = kernels.box_iou(boxes, boxes)
    expected = np.zeros((4, 4))
    expected[3, 3] = 1
    np.testing.assert_array_equal(iou, expected)


@settings(deadline=None)
@given(targets=boxes_of(st.floats(-500, 500), 1), data=st.data(),
       weights=st.sampled_from([(1.0,) * 4, (10.0, 10.0, 5.0, 5.0)]))
def test_decode_undoes_encode(targets, data, weights):
    """To 1e-11 pixels: coordinates of up to 1500, each rounded a few times by 1500 * 1.1e-16 = 2e-13.

    Sides are 1..501 and 16..516, so that no target is 62.5 times as long as its anchor: there the clamp begins.
    """
    corners = data.draw(hnp.arrays(np.float64, targets.shape, elements=st.floats(-500, 500)))
    anchors = np.concatenate([corners[:, :2], corners[:, :2] + np.abs(corners[:, 2:]) + 16], axis=1)
    deltas = encode_boxes(targets, anchors, weights)
    np.testing.assert_allclose(decode_boxes(deltas, anchors, weights), targets, rtol=0, atol=1e-11)


@settings(deadline=None)
@given(boxes=boxes_of(st.floats(-100, 100), 0))
def test_clip_leaves_boxes_inside(boxes):
    clipped = clip_boxes(boxes, (30, 40))
    assert ((clipped >= 0) & (clipped <= [40, 30, 40, 30])).all()
    inside = ((boxes >= 0) & (boxes <= [40, 30, 40, 30])).all(axis=1)
    np.testing.assert_array_equal(clipped[inside], boxes[inside])
    np.testing.assert_array_equal(clip_boxes(clipped, (30, 40)), clipped)


def test_a_side_of_exactly_the_least_stays():
    boxes = np.array([[0, 0, 2.0, 2], [0, 0, 2, 1.99], [0, 0, 1.99, 2], [5, 5, 5, 5]])
    kept = remove_small_boxes(boxes, 2)
    np.testing.assert_array_equal(kept, [0])
    np.testing.assert_array_equal(remove_small_boxes(boxes, 0), [0, 1, 2, 3])


def test_iou_of_what_is_no_box(kernels):
    boxes = np.ones((3, 4))
    for bad, message in ((np.ones((3, 5)), r"\(3, 5\)"), (np.ones(4), r"\(4,\)"), (np.ones((3, 4), np.int64), "int64")):
        for a, b in ((bad, boxes), (boxes, bad)):
            with pytest.raises(ValueError, match=message):
                kernels.box_iou(a, b)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_boxes(dtype, kernels):
    none, some = np.zeros((0, 4), dtype), np.ones((3, 4), dtype)
    assert box_area(none).shape == (0,)
    assert kernels.box_iou(none, some).shape == (0, 3) and kernels.box_iou(some, none).shape == (3, 0)
    for result in (clip_boxes(none, (5, 5)), encode_boxes(none, none), decode_boxes(none, none)):
        assert result.shape == (0, 4) and result.dtype == dtype
    assert decode_boxes(np.zeros((0, 7, 4), dtype), none[:, None]).shape == (0, 7, 4)
    assert remove_small_boxes(none, 1).shape == (0,) and remove_small_boxes(none, 1).dtype == np.int64


@pytest.mark.parametrize("call", [
    lambda bad, good: box_area(bad),
    lambda bad, good: box_iou(bad, good),
    lambda bad, good: box_iou(good, bad),
    lambda bad, good: clip_boxes(bad, (5, 5)),
    lambda bad, good: remove_small_boxes(bad, 1),
    lambda bad, good: encode_boxes(bad, good),
    lambda bad, good: encode_boxes(good, bad),
    lambda bad, good: decode_boxes(bad, good),
    lambda bad, good: decode_boxes(good, bad),
])
def test_bad_shapes(call):
    good = np.ones((3, 4))
    for shape in ((3, 5), (12,), ()):
        with pytest.raises(ValueError, match=str(shape).replace("(", r"\(").replace(")", r"\)")):
            call(np.ones(shape), good)


def test_whole_numbers_are_refused():
    """A delta rounded to the integer type of its box would be a silent error."""
    floats, integers = np.ones((3, 4)), np.ones((3, 4), np.int64)
    for call in (lambda: box_iou(floats, integers), lambda: encode_boxes(integers, floats),
                 lambda: decode_boxes(floats, integers), lambda: clip_boxes(integers, (5, 5))):
        with pytest.raises(ValueError, match="int64"):
            call()


@pytest.mark.parametrize("call", [lambda a: box_iou(a, a), lambda a: remove_small_boxes(a, 1)])
def test_two_dimensions_are_needed(call):
    with pytest.raises(ValueError, match=r"\(2, 3, 4\)"):
        call(np.ones((2, 3, 4)))
