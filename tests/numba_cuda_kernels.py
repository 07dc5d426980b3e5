"""What test_numba_cuda.py runs in a process of its own, in Numba's simulator and, where there is one, on a GPU. Not collected by itself.

The bodies are those that every implementation runs, with one KernelSet; left out are those with large arrays or hundreds of launches,
for which the simulator is too slow.
"""

import numpy as np
import pytest

import test_conv
import test_nms
import test_roi_align
from nprcnn import backend
from nprcnn.kernels.numba_cuda import conv2d, roi_align
from nprcnn.ops.nms import nms as numpy_nms
from reference_values import strided


@pytest.fixture(scope="session")
def kernels():
    found = backend.kernel_set("numba-cuda")
    assert found.name == "numba-cuda" and found.nms is not backend.NUMPY.nms
    return found


def test_roi_align_and_nms_and_convolution_are_all_there(kernels):
    replaced = {name for name in kernels._fields if getattr(kernels, name) is not getattr(backend.NUMPY, name)}
    assert replaced == {"name", "conv2d", "conv2d_grad_x", "conv2d_grad_w", "roi_align", "roi_align_grad", "nms"}


class TestRoIAlign:
    test_no_rois = staticmethod(test_roi_align.test_no_rois)
    test_bad_arguments = staticmethod(test_roi_align.test_bad_arguments)
    test_bad_gradient = staticmethod(test_roi_align.test_bad_gradient)

    @staticmethod
    @pytest.mark.parametrize("case", ["plain 2", "aligned -1"])
    def test_equals_torchvision(case, kernels):
        test_roi_align.test_equals_torchvision(case, strided, kernels)


class TestNMS:
    test_exactly_at_the_threshold_stays = staticmethod(test_nms.test_exactly_at_the_threshold_stays)
    test_equal_boxes_and_equal_scores = staticmethod(test_nms.test_equal_boxes_and_equal_scores)
    test_boxes_without_area_are_all_kept = staticmethod(test_nms.test_boxes_without_area_are_all_kept)
    test_a_suppressed_box_suppresses_nothing = staticmethod(test_nms.test_a_suppressed_box_suppresses_nothing)
    test_no_boxes = staticmethod(test_nms.test_no_boxes)
    test_bad_shapes = staticmethod(test_nms.test_bad_shapes)

    @staticmethod
    def test_equals_torchvision(kernels):
        """150 boxes, three words: equal scores, equal and empty boxes, IoUs of exactly 0.3, which in float32 is above 0.3."""
        kept = kernels.nms(strided(test_nms.BOXES.astype(np.float32)), test_nms.SCORES.astype(np.float32), 0.3)
        np.testing.assert_array_equal(kept, test_nms.CASES["threshold 0.30"]["kept32"])

    @staticmethod
    @pytest.mark.parametrize("count", [64, 65])
    def test_equals_numpy_at_the_edges_of_words(count, kernels):
        boxes, scores = test_nms.random_boxes(count, count)
        np.testing.assert_array_equal(kernels.nms(boxes, scores, 0.4), numpy_nms(boxes, scores, 0.4))


class TestConvolution:
    test_options_as_one_int = staticmethod(test_conv.test_options_as_one_int)
    test_bad_arguments = staticmethod(test_conv.test_bad_arguments)
    test_bad_dy = staticmethod(test_conv.test_bad_dy)
    test_empty_batch = staticmethod(test_conv.test_empty_batch)

    @staticmethod
    @pytest.mark.parametrize("case", ["3x3", "uneven_everything", "groups_stride2", "dilated_stride2", "1x1_padded",
                                      "padding_beyond_kernel"])
    def test_equals_pytorch(case, kernels):
        test_conv.test_equals_pytorch(case, kernels)

    @staticmethod
    @pytest.mark.parametrize("case", ["3x3", "uneven_everything", "1x1"])
    def test_tiles_equal_pytorch(case):
        """Version 2; tiles that no side of the matrices fills."""
        ref = test_conv.CASES[case]
        y = conv2d.conv2d(ref["x"], ref["w"], ref["b"], **ref["options"], version=2)
        np.testing.assert_allclose(y, ref["y"], **test_conv.CLOSE)

    @staticmethod
    def test_tiles_take_no_groups():
        ref = test_conv.CASES["groups"]
        with pytest.raises(ValueError, match="version 2 .* no groups, got 2"):
            conv2d.conv2d(ref["x"], ref["w"], ref["b"], **ref["options"], version=2)


def test_float32_stays_float32(kernels):
    """In the simulator by NumPy's rules; what the compiler makes of them is in test_numba_cuda_ptx.py."""
    features, rois, dy = (test_roi_align.INPUTS[name][:4].astype(np.float32) for name in ("features", "rois", "dy"))
    assert kernels.roi_align(features, rois, 0.5, (4, 3)).dtype == np.float32
    assert kernels.roi_align_grad(dy, rois, features.shape, 0.5, (4, 3)).dtype == np.float32
    axis = roi_align.make_axis.py_func(rois[0], 0, np.float32(0.5), 3, 2, True)
    tap = roi_align.make_tap.py_func(np.float32(1.5), 9)
    assert [type(number) for number in (*axis[:2], tap[3])] == 3 * [np.float32]
    ref = test_conv.CASES["3x3"]
    x, w, b, dy = (ref[name].astype(np.float32) for name in ("x", "w", "b", "dy"))
    assert kernels.conv2d(x, w, b, **ref["options"]).dtype == np.float32
    assert kernels.conv2d_grad_x(dy, w, x.shape, **ref["options"]).dtype == np.float32
    assert kernels.conv2d_grad_w(dy, x, w.shape, **ref["options"]).dtype == np.float32
