import math

import numpy as np
import pytest

from nprcnn.errors import ConfigError
from nprcnn.models.anchors import AnchorGenerator, cell_anchors, grid_anchors


def test_cell_anchors_are_torchvisions():
    # the values that torchvision's AnchorGenerator gives: half-even rounding of +-w/2, +-h/2
    assert cell_anchors((32,), (0.5, 1.0, 2.0)).tolist() == [[-23, -11, 23, 11], [-16, -16, 16, 16], [-11, -23, 11, 23]]
    assert cell_anchors((512,), (0.5, 1.0, 2.0)).tolist() == [[-362, -181, 362, 181], [-256, -256, 256, 256],
                                                              [-181, -362, 181, 362]]


def test_single_level_form_has_nine_anchors_ratio_outer_size_inner():
    cell = cell_anchors((128, 256, 512), (0.5, 1.0, 2.0))
    assert cell.shape == (9, 4)
    assert cell[:3, 2].tolist() == [91, 181, 362]  # one ratio, three sizes
    assert cell.dtype == np.float32


def test_grid_order_is_y_x_anchor_on_the_cells_corners():
    cell = cell_anchors((8, 16), (1.0,))
    grid = grid_anchors(cell, (2, 3), (4, 5)).reshape(2, 3, 2, 4)
    for y in range(2):
        for x in range(3):
            np.testing.assert_array_equal(grid[y, x], cell + np.float32([x * 5, y * 4, x * 5, y * 4]))


def test_stride_is_the_padded_size_over_the_grid():
    # at height 800 P5 has 25 rows and P6 13, so P6's stride is 61 and not 64
    anchors = AnchorGenerator(sizes=((32,),), aspect_ratios=(1.0,))((800, 1216), [(13, 19)])[0].reshape(13, 19, 4)
    assert anchors[1, 0, 1] - anchors[0, 0, 1] == 61
    assert anchors[0, 1, 0] - anchors[0, 0, 0] == 64


def test_levels_must_fit():
    with pytest.raises(ConfigError, match="5 levels of anchors for 1"):
        AnchorGenerator()((64, 64), [(16, 16)])
    with pytest.raises(ConfigError, match="same number of anchors"):
        AnchorGenerator(sizes=((32,), (64, 128)))


# ---- Detectron2's: each argument alone ----

@pytest.mark.parametrize("sizes", [(32,), (32, 64, 128, 256, 512), (48, 100)])
def test_unrounded_anchors_size_outer_are_detectron2s(sizes):
    """The formula of its DefaultAnchorGenerator, in double precision and then float32; equal to the last bit."""
    expected = [(-w / 2, -h / 2, w / 2, h / 2) for size in sizes for ratio in (0.5, 1.0, 2.0)
                for w in [math.sqrt(size ** 2 / ratio)] for h in [ratio * w]]
    np.testing.assert_array_equal(cell_anchors(sizes, (0.5, 1.0, 2.0), rounding=False, order="size"), np.float32(expected))


def test_rounding_and_order_are_apart():
    sizes, ratios = (30, 60), (0.5, 1.0, 2.0)
    rounded, plain = cell_anchors(sizes, ratios), cell_anchors(sizes, ratios, rounding=False)
    np.testing.assert_array_equal(rounded, np.round(plain))
    assert (rounded != plain).any()
    # the same anchors; ratio outer: (ratio, size), size outer: (size, ratio)
    for rounding in (False, True):
        outer = cell_anchors(sizes, ratios, rounding, "size").reshape(2, 3, 4)
        np.testing.assert_array_equal(outer.transpose(1, 0, 2), cell_anchors(sizes, ratios, rounding).reshape(3, 2, 4))


def test_offset_is_in_strides():
    generator = AnchorGenerator(((16,),), (1.0,), offset=0.5)
    plain = AnchorGenerator(((16,),), (1.0,))
    shift = generator((64, 96), [(8, 8)])[0] - plain((64, 96), [(8, 8)])[0]
    np.testing.assert_array_equal(shift, np.tile(np.float32([6, 4, 6, 4]), (64, 1)))  # half of 12 and of 8 pixels


def test_fixed_strides():
    """Where the padded height over the rows is 61, the stride stays 64."""
    generator = AnchorGenerator(((32,), (64,)), (1.0,), strides=(32, 64))
    p5, p6 = generator((800, 1216), [(25, 38), (13, 19)])
    assert p5.reshape(25, 38, 4)[1, 2, :2].tolist() == [2 * 32 - 16, 32 - 16]
    assert p6.reshape(13, 19, 4)[1, 2, :2].tolist() == [2 * 64 - 32, 64 - 32]


def test_unknown_order_and_strides_that_do_not_fit():
    with pytest.raises(ConfigError, match="anchor_order='area' is not one of ratio, size"):
        AnchorGenerator(order="area")
    with pytest.raises(ConfigError, match="1 anchor strides for 5 levels"):
        AnchorGenerator(strides=(4,))
