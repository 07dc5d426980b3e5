import numpy as np
import pytest
from reference import seeded

from nprcnn.ops import paste as module
from nprcnn.ops.paste import paste_masks, paste_masks_continuous
from reference_values import load_cases, strided
from small_models import VARIANTS

CASES = load_cases("paste.npz")
EDGES = CASES.pop("edges")


@pytest.mark.parametrize("change", [lambda a: a, strided], ids=["contiguous", "strided"])
@pytest.mark.parametrize("case", CASES)
def test_equals_torchvision(case, change, kernels):
    ref = CASES[case]
    pasted = kernels.paste_masks(change(ref["masks"]), change(ref["boxes"]), ref["size"])
    np.testing.assert_allclose(pasted, ref["pasted"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_float32(case, kernels):
    """1e-5: positions of up to 30 are rounded by 4e-6, y and x, between values that differ by at most 1.

    The largest difference measured is 1e-6.
    """
    ref = CASES[case]
    for box_dtype in (np.float32, np.float64):
        pasted = kernels.paste_masks(ref["masks"].astype(np.float32), ref["boxes"].astype(box_dtype), ref["size"])
        assert pasted.dtype == np.float32
        np.testing.assert_allclose(pasted, ref["pasted"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_binary_masks(case, kernels):
    """But for pixels within rounding of the threshold, of which a mask of random numbers has none."""
    ref = CASES[case]
    soft = kernels.paste_masks(ref["masks"], ref["boxes"], ref["size"])
    assert np.abs(soft - 0.4).min() > 1e-9 and (soft >= 0.4).any()
    binary = kernels.paste_masks(ref["masks"], ref["boxes"], ref["size"], threshold=0.4)
    assert binary.dtype == bool
    np.testing.assert_array_equal(binary, soft >= 0.4)


@pytest.mark.parametrize("dtype, other", [(np.float64, 32), (np.float32, 64)])
def test_boxes_are_cut_where_torchvision_cuts_them(dtype, other):
    """The boxes grow to whole numbers but for rounding: another order of operations, or another dtype, shows."""
    corners = module._grown_corners(EDGES["boxes"].astype(dtype), 28)
    np.testing.assert_array_equal(corners, EDGES[f"corners{8 * np.dtype(dtype).itemsize}"])
    assert (corners != EDGES[f"corners{other}"]).any()


def test_truncation_is_towards_zero():
    """A mask of side 1 grows by 3: x from -0.1..0.5 to -0.7..1.1, y from 0.8..1.7 to -0.1..2.6."""
    corners = module._grown_corners(np.array([[-0.1, 0.8, 0.5, 1.7]]), 1)
    np.testing.assert_array_equal(corners, [[0, 0, 1, 2]])


def test_full_mask_fills_its_box(kernels):
    """Inside the box a full mask is 1; it fades over the border of zeros, which lies around the box."""
    pasted = kernels.paste_masks(np.ones((1, 28, 28)), np.array([[20.0, 10, 48, 38]]), (60, 70))[0]
    np.testing.assert_allclose(pasted[12:36, 22:46], 1, rtol=0, atol=1e-12)
    assert not pasted[:9].any() and not pasted[40:].any()
    assert not pasted[:, :19].any() and not pasted[:, 50:].any()


def test_boxes_outside_the_image_or_with_exchanged_corners_leave_it_empty(kernels):
    boxes = np.array([[-50.0, 2, -20, 9], [40, 2, 60, 9], [2, -50, 9, -20], [2, 40, 9, 60], [9, 2, 2, 9]])
    assert not kernels.paste_masks(np.ones((5, 7, 7)), boxes, (23, 31)).any()


def test_a_huge_box_costs_no_more_than_the_image(kernels):
    """Stretched as a whole it would have 1e14 pixels."""
    pasted = kernels.paste_masks(np.ones((1, 28, 28)), np.array([[-5e6, -5e6, 5e6, 5e6]]), (23, 31))
    np.testing.assert_allclose(pasted, 1, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_masks(dtype, kernels):
    pasted = kernels.paste_masks(np.zeros((0, 28, 28), dtype), np.zeros((0, 4), dtype), (23, 31))
    assert pasted.shape == (0, 23, 31) and pasted.dtype == dtype


@pytest.mark.parametrize("masks, boxes, message", [
    (np.ones((28, 28)), np.ones((1, 4)), r"\(28, 28\)"),
    (np.ones((1, 28, 14)), np.ones((1, 4)), r"\(1, 28, 14\)"),
    (np.ones((2, 28, 28)), np.ones((1, 4)), r"\(2, 4\), one for each mask, got \(1, 4\)"),
    (np.ones((1, 28, 28)), np.ones((1, 5)), r"\(1, 5\)"),
    (np.ones((1, 28, 28), bool), np.ones((1, 4)), "bool"),
    (np.ones((1, 28, 28)), np.ones((1, 4), int), "int64"),
    (np.ones((1, 28, 28)), np.array([[0, 0, np.nan, 1]]), "finite"),
])
def test_bad_arguments(masks, boxes, message, kernels):
    with pytest.raises(ValueError, match=message):
        kernels.paste_masks(masks, boxes, (23, 31))


# ---- the continuous form: Detectron2's, no kernel of its own ----

def continuous_case(dtype=np.float64):
    boxes = VARIANTS["paste.boxes"]
    masks = seeded.uniform("paste continuous masks", 0, 1, len(boxes), 7, 7)
    return masks.astype(dtype), boxes.astype(dtype), tuple(VARIANTS["paste.size"].tolist())


@pytest.mark.parametrize("change", [lambda a: a, strided], ids=["contiguous", "strided"])
def test_continuous_equals_grid_sample(change):
    """Boxes over the border, outside the image and smaller than a pixel; measured: 1e-15. Binary at .5, too."""
    masks, boxes, size = continuous_case()
    pasted = paste_masks_continuous(change(masks), change(boxes), size)
    np.testing.assert_allclose(pasted, VARIANTS["paste.pasted"], rtol=0, atol=1e-12)
    np.testing.assert_array_equal(pasted >= 0.5, VARIANTS["paste.pasted"] >= 0.5)
    np.testing.assert_array_equal(paste_masks_continuous(change(masks), change(boxes), size, 0.5), VARIANTS["paste.pasted"] >= 0.5)
    assert (pasted >= 0.5).any((1, 2)).sum() > 8 and not pasted[-1].any()


def test_continuous_in_float32():
    """1e-5: positions of up to 30 are rounded by 2e-6, times a slope of at most 1 mask pixel; in the boxes of .2 pixels by 60 times more."""
    masks, boxes, size = continuous_case(np.float32)
    pasted = paste_masks_continuous(masks, boxes, size)
    assert pasted.dtype == np.float32
    large = (boxes[:, 2:] - boxes[:, :2]).min(1) > 0.5
    np.testing.assert_allclose(pasted[large], VARIANTS["paste.pasted"][large], rtol=0, atol=2e-5)


def test_a_continuous_full_mask_covers_the_pixels_whose_centres_are_in_the_box():
    box = np.array([[2.4, 3.6, 10.4, 9.6]])
    found = paste_masks_continuous(np.ones((1, 28, 28)), box, (12, 14))[0] >= 0.5
    expected = np.zeros((12, 14), bool)
    expected[4:10, 2:10] = True  # centres 4.5 .. 9.5 and 2.5 .. 9.5
    np.testing.assert_array_equal(found, expected)
    # paste_masks cuts the corners to integers, and its border fades further out
    assert (paste_masks(np.ones((1, 28, 28)), box, (12, 14))[0] >= 0.5).sum() > found.sum()


def test_continuous_edge_cases():
    boxes = np.array([[5.0, 5, 5, 9], [9, 2, 2, 9], [-50, -50, -40, -40], [-5e6, -5e6, 5e6, 5e6]])
    pasted = paste_masks_continuous(np.ones((4, 7, 7)), boxes, (23, 31))
    assert not pasted[:3].any()  # without area, corners exchanged, outside
    np.testing.assert_allclose(pasted[3], 1, rtol=0, atol=1e-12)
    assert paste_masks_continuous(np.zeros((0, 28, 28), np.float32), np.zeros((0, 4), np.float32), (23, 31)).shape == (0, 23, 31)
