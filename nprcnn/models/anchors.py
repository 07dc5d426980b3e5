"""Anchors: the boxes of fixed size and shape that the RPN scores and refines (Faster R-CNN, arXiv 1506.01497, section 3.1.1)."""

import numpy as np

from ..errors import ConfigError


ORDERS = ("ratio", "size")


def cell_anchors(sizes, aspect_ratios, rounding=True, order="ratio"):
    """The anchors of one cell, centred on (0, 0).

    Parameters
    ----------
    sizes : sequence of float
        Square roots of the anchors' areas, in pixels of the network's input.
    aspect_ratios : sequence of float
        Height / width.
    rounding : bool
        Round the corners half to even (torchvision's convention): size 32, ratio 1/2 gives (-23, -11, 23, 11). Detectron2 does not.
    order : "ratio" or "size"
        What the outer loop runs over: "ratio" is torchvision's order, "size" Detectron2's.

    Returns
    -------
    (len(aspect_ratios) * len(sizes), 4) float32
    """
    sizes = np.asarray(sizes, np.float32)
    ratios = np.asarray(aspect_ratios, np.float32)
    # w * h = size^2 and h / w = ratio
    h_ratios = np.sqrt(ratios)
    w_ratios = 1 / h_ratios
    w = w_ratios[:, None] * sizes[None, :]
    h = h_ratios[:, None] * sizes[None, :]
    if order == "size":
        w, h = w.T, h.T
    corners = np.stack([-w, -h, w, h], axis=-1).reshape(-1, 4) / 2
    return np.round(corners) if rounding else corners


def grid_anchors(cell, grid_size, stride, offset=0.0):
    """Put the anchors of one cell on every cell of a feature map.

    Parameters
    ----------
    cell : (A, 4) array
        From cell_anchors.
    grid_size, stride : (rows, columns), (y, x)
        Of the feature map, in cells and in pixels.
    offset : float
        Where in its cell an anchor is centred, in strides: 0 is the top-left corner (torchvision, Detectron2), .5 the middle.

    Returns
    -------
    (rows * columns * A, 4) float32, ordered by y, x, anchor: the order of the RPN's outputs.
    """
    y = (np.arange(grid_size[0], dtype=np.float32) + np.float32(offset)) * np.float32(stride[0])
    x = (np.arange(grid_size[1], dtype=np.float32) + np.float32(offset)) * np.float32(stride[1])
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
    rounding, order, offset
        See cell_anchors and grid_anchors.
    strides : one number a level, in pixels, or None
        None: the padded image's height // the level's (torchvision's convention), so that P6's stride can be 61 rather than 64.
        Detectron2's are fixed.

    Raises
    ------
    ConfigError
        The levels have different numbers of anchors a cell, the order is unknown, or (in the call) there are more or fewer levels
        than feature maps.
    """

    def __init__(self, sizes=((32,), (64,), (128,), (256,), (512,)), aspect_ratios=(0.5, 1.0, 2.0), rounding=True, order="ratio",
                 offset=0.0, strides=None):
        if order not in ORDERS:
            raise ConfigError(f"anchor_order={order!r} is not one of {', '.join(ORDERS)}")
        if strides is not None and len(strides) != len(sizes):
            raise ConfigError(f"{len(strides)} anchor strides for {len(sizes)} levels of anchors: give one a level")
        self.cells = [cell_anchors(level_sizes, aspect_ratios, rounding, order) for level_sizes in sizes]
        self.offset, self.strides = offset, strides
        counts = {len(cell) for cell in self.cells}
        if len(counts) != 1:
            raise ConfigError(f"every level needs the same number of anchors a cell, for one RPN head serves all; got {counts}")
        self.anchors_per_cell = counts.pop()

    def __call__(self, image_shape, feature_shapes):
        """image_shape (H, W) of the padded batch; feature_shapes [(h, w)] a level -> list of (h * w * A, 4) float32."""
        if len(feature_shapes) != len(self.cells):
            raise ConfigError(f"{len(self.cells)} levels of anchors for {len(feature_shapes)} feature maps: "
                             "give one tuple of sizes a level")
        strides = ([(image_shape[0] // h, image_shape[1] // w) for h, w in feature_shapes] if self.strides is None else
                   [(stride, stride) for stride in self.strides])
        return [grid_anchors(cell, size, stride, self.offset)
                for cell, size, stride in zip(self.cells, feature_shapes, strides)]
