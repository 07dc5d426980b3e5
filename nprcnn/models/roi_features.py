"""From RoIs to feature maps of one size: which pyramid level, then RoIAlign (or RoIPool) on that level."""

import numpy as np

from .. import backend
from ..ops.boxes import box_area
from ..ops.roi_align import roi_align_backward, roi_align_forward
from ..ops.roi_pool import roi_pool_backward, roi_pool_forward


def assign_levels(boxes, levels, canonical_size=224, canonical_level=4, eps=1e-6, eps_in_log=0.0):
    """The pyramid level of each RoI (FPN, arXiv 1612.03144, equation 1): k = floor(4 + log2(sqrt(area) / 224)).

    An RoI of ImageNet's size, 224, uses level 4; half as large, level 3.

    Parameters
    ----------
    boxes : (R, 4), pixels of the resized image
    levels : int
        How many levels there are, from P2 up; the result is clamped to them.
    canonical_size, canonical_level : float, int
        224 pixels and level 4 in the formula.
    eps, eps_in_log : float
        k = floor(4 + log2(sqrt(area) / 224 + eps_in_log) + eps): a box of exactly 112 pixels must not fall to the level below by
        rounding. torchvision has eps = 1e-6, Detectron2 eps_in_log = 1e-8.

    Returns
    -------
    (R,) int64: 0 for P2, 1 for P3, ...
    """
    if levels == 1:
        return np.zeros(len(boxes), np.int64)
    size = np.sqrt(box_area(boxes))
    with np.errstate(divide="ignore"):
        ratio = size / boxes.dtype.type(canonical_size) + boxes.dtype.type(eps_in_log)
        k = np.floor(canonical_level + np.log2(ratio) + boxes.dtype.type(eps))
    return np.clip(k, 2, 1 + levels).astype(np.int64) - 2


def as_rois(boxes):
    """A list of boxes, one array (R_i, 4) an image -> (R, 5): image index, x1, y1, x2, y2."""
    index = np.concatenate([np.full((len(b), 1), i, b.dtype) for i, b in enumerate(boxes)])
    return np.concatenate([index, np.concatenate(boxes)], axis=1)


class RoIFeatures:
    """Crops of one size for all RoIs.

    Parameters
    ----------
    method : "align" or "pool"
        RoIAlign (Mask R-CNN, section 3) or RoIPool (Fast R-CNN), for the ablation of table 2c.
    output_size : int
    strides : one a level
        In pixels: (4, 8, 16, 32) for P2 .. P5, (16,) for a single map.
    sampling_ratio, aligned
        Of RoIAlign (see nprcnn.ops.roi_align); RoIPool has neither.
    """

    def __init__(self, method, output_size, strides=(4, 8, 16, 32), sampling_ratio=2, aligned=False):
        self.method, self.output_size, self.strides = method, output_size, strides
        self.sampling_ratio, self.aligned = sampling_ratio, aligned

    def forward(self, pyramid, rois, levels, train):
        """pyramid [P2 .. P5] (or one map), rois (R, 5), levels (R,) -> (R, C, s, s), cache. RoIs keep their order."""
        size = self.output_size
        y = np.empty((len(rois), pyramid[0].shape[1], size, size), pyramid[0].dtype, like=pyramid[0])
        caches = []
        for level, (x, stride) in enumerate(zip(pyramid, self.strides)):
            chosen = np.flatnonzero(levels == level)
            if self.method == "align":
                crops, cache = roi_align_forward(x, rois[chosen], 1 / stride, size, self.sampling_ratio, self.aligned,
                                                 kernels=backend.active(x))
            else:
                crops, cache = roi_pool_forward(x, rois[chosen], 1 / stride, size, kernels=backend.active(x))
            y[chosen] = crops
            caches.append((chosen, cache))
        return y, caches if train else None

    def backward(self, dy, caches):
        """dy (R, C, s, s) -> gradients of [P2 .. P5]. The RoIs' coordinates get none."""
        backward = roi_align_backward if self.method == "align" else roi_pool_backward
        # forward: y[chosen] = crops of one level      scatter -> gather
        return [backward(dy[chosen], cache, kernels=backend.active(dy)) for chosen, cache in caches]
