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
