"""RoIAlign: a box of any size, cut out of a feature map and resampled to a fixed grid without rounding.

Each of the oh x ow bins of a RoI averages s x s samples, each interpolated bilinearly between four pixels.
A sample's weight on pixel (i, j) is (weight of its y on row i) times (weight of its x on column j), and the
samples of a bin form a grid; so the whole operation splits into two small matrix products:

    y[r, c] = Wy[r] @ features[n, c] @ Wx[r].T        Wy[r] (oh, H), Wx[r] (ow, W)

Row o of Wy[r] is the mean of the interpolation weights of bin o: at most 2 s nonzero numbers. Backward is the
adjoint, dfeatures[n, c] += Wy[r].T @ dy[r, c] @ Wx[r].

Letters: N images, C channels, H x W feature map, R RoIs, oh x ow output bins.

References: Mask R-CNN (arXiv 1703.06870), section 3, "RoIAlign". The rules at the border are torchvision's;
aligned=True is Detectron2's.
"""

from typing import NamedTuple

import numpy as np


class RoIAlignCache(NamedTuple):
    rois: np.ndarray
    x_shape: tuple
    spatial_scale: float
    output_size: tuple
    sampling_ratio: int
    aligned: bool


def check_rois(rois, x_shape, output_size):
    """The checks that RoIAlign and RoIPool share; returns output_size as a pair.

    Raises
    ------
    ValueError : wrong shapes, RoIs that are not finite, an image index outside 0..N-1, an empty output or
        feature map.
    """
    size = (output_size, output_size) if np.ndim(output_size) == 0 else tuple(output_size)
    if len(x_shape) != 4:
        raise ValueError(f"features must have shape (N, C, H, W), got {tuple(x_shape)}")
    if min(x_shape[2:]) < 1:
        raise ValueError(f"features must have at least one pixel, got shape {tuple(x_shape)}")
    if rois.ndim != 2 or rois.shape[1] != 5:
        raise ValueError(f"rois must have shape (R, 5): image index, x1, y1, x2, y2; got {rois.shape}")
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"output_size must be a positive int or a pair of them, got {output_size}")
    if len(rois):
        if not np.isfinite(rois).all():
            raise ValueError("rois must be finite, got NaN or infinity")
        if rois[:, 0].min() < 0 or rois[:, 0].max() >= x_shape[0]:
            raise ValueError(f"rois name images {rois[:, 0].min():g}..{rois[:, 0].max():g}, but features have "
                             f"shape {tuple(x_shape)}")
    return int(size[0]), int(size[1])


def _interpolation_matrices(start, side, bins, length, sampling_ratio):
    """One axis of RoIAlign for all RoIs: row o of matrix r averages the samples of bin o of RoI r.

    Parameters
    ----------
    start, side : (R,) arrays, where the RoI begins on the feature map and how long it is, in feature pixels
    bins : int, the output's length (oh or ow)
    length : int, the feature map's length (H or W)
    sampling_ratio : int, samples a bin; <= 0: ceil(side / bins), which differs from RoI to RoI

    Returns
    -------
    weights : (R, bins, length) array
    first, stop : lists of R ints; outside first..stop-1 the weights of a RoI are 0
    """
    # All samples lie between the two ends, which a RoI of negative side (only if aligned) has exchanged.
    ends = np.clip(np.stack((start, start + side)), 0, length - 1).astype(np.intp)
    first, stop = ends.min(axis=0), np.minimum(ends.max(axis=0) + 2, length)
    rois, bin_index = np.arange(len(start))[:, None], np.arange(bins)
    start, bin_side = start[:, None], (side / bins)[:, None]
    if sampling_ratio > 0:
        count = np.full_like(bin_side, sampling_ratio)
    else:
        count = np.ceil(bin_side)
    divisor = np.maximum(count, 1)
    bin_start = start + bin_index.astype(start.dtype) * bin_side
    weights = np.zeros((len(start), bins, length), dtype=start.dtype)
    for i in range(int(count.max(initial=0))):
        point = bin_start + (i + 0.5) * bin_side / divisor      # (R, bins)
        # A sample more than a pixel outside the map counts as 0. Not every RoI has an i-th sample.
        share = ((point >= -1) & (point <= length) & (i < count)) / divisor
        point = np.clip(point, 0, length - 1)
        floor = np.floor(point)
        low = floor.astype(np.intp)
        high = np.minimum(low + 1, length - 1)
        fraction = point - floor
        # Within one statement no element is named twice, so that += does not lose any.
        weights[rois, bin_index, low] += (1 - fraction) * share
        weights[rois, bin_index, high] += fraction * share
    return weights, first.tolist(), stop.tolist()


def _roi_matrices(rois, x_shape, spatial_scale, output_size, sampling_ratio, aligned, dtype):
    """Wy, its row ranges, Wx, its column ranges: all that RoIAlign needs to know about the RoIs."""
    boxes = rois[:, 1:].astype(dtype) * float(spatial_scale) - (0.5 if aligned else 0.0)
    start, side = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
    if not aligned:
        side = np.maximum(side, 1)
    wx, x1, x2 = _interpolation_matrices(start[:, 0], side[:, 0], output_size[1], x_shape[3], sampling_ratio)
    wy, y1, y2 = _interpolation_matrices(start[:, 1], side[:, 1], output_size[0], x_shape[2], sampling_ratio)
    return wy, y1, y2, wx, x1, x2


def roi_align(features, rois, spatial_scale, output_size, sampling_ratio=2, aligned=False):
    """RoIAlign of every RoI.

    Parameters
    ----------
    features : (N, C, H, W) float array
    rois : (R, 5) array: image index in 0..N-1, then x1, y1, x2, y2 in pixels of the image
    spatial_scale : float, feature pixels an image pixel (1/16 for stride 16)
    output_size : int or (oh, ow)
    sampling_ratio : int, samples a bin and axis; <= 0: ceil(RoI side / output side), adaptive
    aligned : True shifts by half a pixel, so that pixel centres lie at integers + .5 (Detectron2); False does
        not, and gives RoIs a least side of 1 (torchvision's default)

    Returns
    -------
    (R, C, oh, ow) array of the features' dtype.

    Raises
    ------
    ValueError : see `check_rois`; features that are not floating point.
    """
    out_h, out_w = check_rois(rois, features.shape, output_size)
    if features.dtype.kind != "f":
        raise ValueError(f"features must be floating point, got {features.dtype}")
    channels = features.shape[1]
    wy, y1, y2, wx, x1, x2 = _roi_matrices(rois, features.shape, spatial_scale, (out_h, out_w), sampling_ratio,
                                           aligned, features.dtype)
    y = np.empty((len(rois), out_h, out_w, channels), dtype=features.dtype)
    image_of_roi = rois[:, 0].astype(np.intp)
    for image in np.unique(image_of_roi):
        # Channels last: a few products with rows of w * C or C numbers, not C products of tiny matrices.
        plane = np.ascontiguousarray(features[image].transpose(1, 2, 0))      # (H, W, C)
        for r in np.flatnonzero(image_of_roi == image).tolist():
            rows, cols = slice(y1[r], y2[r]), slice(x1[r], x2[r])
            crop = plane[rows, cols]
            h, w, _ = crop.shape
            columns = wy[r, :, rows] @ crop.reshape(h, w * channels)          # (oh, w C)
            np.matmul(wx[r, :, cols], columns.reshape(out_h, w, channels), out=y[r])
    return np.ascontiguousarray(y.transpose(0, 3, 1, 2))


def roi_align_grad(dy, rois, x_shape, spatial_scale, output_size, sampling_ratio=2, aligned=False):
    """Gradient of the features from the gradient dy (R, C, oh, ow) of `roi_align`'s output.

    The other parameters are `roi_align`'s; x_shape is (N, C, H, W).

    Returns
    -------
    (N, C, H, W) array of dy's dtype.
    """
    out_h, out_w = check_rois(rois, x_shape, output_size)
    n, channels, height, width = x_shape
    if dy.shape != (len(rois), channels, out_h, out_w):
        raise ValueError(f"dy must have shape {(len(rois), channels, out_h, out_w)}, got {dy.shape}")
    wy, y1, y2, wx, x1, x2 = _roi_matrices(rois, x_shape, spatial_scale, (out_h, out_w), sampling_ratio,
                                           aligned, dy.dtype)
    dy = np.ascontiguousarray(dy.transpose(0, 2, 3, 1))                       # (R, oh, ow, C)
    dx = np.zeros((n, channels, height, width), dtype=dy.dtype)
    image_of_roi = rois[:, 0].astype(np.intp)
    for image in np.unique(image_of_roi):
        dplane = np.zeros((height, width, channels), dtype=dy.dtype)
        for r in np.flatnonzero(image_of_roi == image).tolist():
            rows, cols = slice(y1[r], y2[r]), slice(x1[r], x2[r])
            h, w = y2[r] - y1[r], x2[r] - x1[r]
            # forward: y = Wx @ columns, so dcolumns = Wx.T @ dy
            dcolumns = wx[r, :, cols].T @ dy[r]                               # (oh, w, C)
            # forward: columns = Wy @ crop, so dcrop = Wy.T @ dcolumns; RoIs overlap, so their gradients add
            dcrop = wy[r, :, rows].T @ dcolumns.reshape(out_h, w * channels)
            dplane[rows, cols] += dcrop.reshape(h, w, channels)
        dx[image] = dplane.transpose(2, 0, 1)
    return dx


def roi_align_forward(features, rois, spatial_scale, output_size, sampling_ratio=2, aligned=False,
                      kernels=None):
    """`roi_align`, and the cache for its backward. `kernels`: the KernelSet that does the work (None: NumPy).

    Returns
    -------
    y : (R, C, oh, ow) array
    cache : RoIAlignCache
    """
    align = roi_align if kernels is None else kernels.roi_align
    y = align(features, rois, spatial_scale, output_size, sampling_ratio, aligned)
    return y, RoIAlignCache(rois, features.shape, spatial_scale, output_size, sampling_ratio, aligned)


def roi_align_backward(dy, cache, kernels=None):
    """Gradient of the features, (N, C, H, W). The RoIs get none: the second stage takes them as constants."""
    grad = roi_align_grad if kernels is None else kernels.roi_align_grad
    return grad(dy, cache.rois, cache.x_shape, cache.spatial_scale, cache.output_size, cache.sampling_ratio,
                cache.aligned)
