"""Anchors: the boxes of fixed size and shape that the RPN scores and refines (Faster R-CNN, arXiv 1506.01497, section 3.1.1)."""

import numpy as np

from ..errors import ConfigError


def cell_anchors(sizes, aspect_ratios):
    """The anchors of one cell, centred on (0, 0).

    Parameters
    ----------
    sizes : sequence of float
        Square roots of the anchors' areas, in pixels of the network's input.
    aspect_ratios : sequence of float
        Height / width.

    Returns
    -------
    (len(aspect_ratios) * len(sizes), 4) float32; ratios in the outer loop, sizes in the inner one. Corners are rounded
    half to even (torchvision's convention): size 32, ratio 1/2 gives (-23, -11, 23, 11).
    """
    sizes = np.asarray(sizes, np.float32)
    ratios = np.asarray(aspect_ratios, np.float32)
    # w * h = size^2 and h / w = ratio
    h_ratios = np.sqrt(ratios)
    w_ratios = 1 / h_ratios
    w = (w_ratios[:, None] * sizes[None, :]).ravel()
    h = (h_ratios[:, None] * sizes[None, :]).ravel()
    return np.round(np.stack([-w, -h, w, h], axis=1) / 2)


def grid_anchors(cell, grid_size, stride):
    """Put the anchors of one cell on every cell of a feature map.

    Parameters
    ----------
    cell : (A, 4) array
        From cell_anchors.
    grid_size, stride : (rows, columns), (y, x)
        Of the feature map, in cells and in pixels.

    Returns
    -------
    (rows * columns * A, 4) float32, ordered by y, x, anchor: the order of the RPN's outputs. Centres lie on the cells'
    top-left corners (torchvision's convention: no half stride).
    """
    y = np.arange(grid_size[0], dtype=np.float32) * np.float32(stride[0])
    x = np.arange(grid_size[1], dtype=np.float32) * np.float32(stride[1])
    y, x = np.meshgrid(y, x, indexing="ij")
    shifts = np.stack([x.ravel(), y.ravel(), x.ravel(), y.ravel()], axis=1)
    return (shifts[:, None] + cell[None]).reshape(-1, 4)


class AnchorGenerator:
    """Anchors for every level of a pyramid.

    Parameters
    ----------
    sizes : one tuple of sizes a level
        FPN: one size a level, ((32,), (64,), (128,), (256,), (512,)). The single-level form of Faster R-CNN:
        ((128, 256, 512),), which with three ratios makes 9 anchors a cell.
    aspect_ratios : tuple of float
        Height / width, the same on every level.

    Raises
    ------
    ConfigError
        The levels have different numbers of anchors a cell, or (in the call) there are more or fewer levels than feature maps.
    """

    def __init__(self, sizes=((32,), (64,), (128,), (256,), (512,)), aspect_ratios=(0.5, 1.0, 2.0)):
        self.cells = [cell_anchors(level_sizes, aspect_ratios) for level_sizes in sizes]
        counts = {len(cell) for cell in self.cells}
        if len(counts) != 1:
            raise ConfigError(f"every level needs the same number of anchors a cell, for one RPN head serves all; got {counts}")
        self.anchors_per_cell = counts.pop()

    def __call__(self, image_shape, feature_shapes):
        """image_shape (H, W) of the padded batch; feature_shapes [(h, w)] a level -> list of (h * w * A, 4) float32.

        A level's stride is H // h, in pixels (torchvision's convention), so that of P6 can be 61 rather than 64.
        """
        if len(feature_shapes) != len(self.cells):
            raise ConfigError(f"{len(self.cells)} levels of anchors for {len(feature_shapes)} feature maps: "
                             "give one tuple of sizes a level")
        return [grid_anchors(cell, (h, w), (image_shape[0] // h, image_shape[1] // w))
                for cell, (h, w) in zip(self.cells, feature_shapes)]
