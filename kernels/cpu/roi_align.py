"""RoIAlign and its gradient: y[r, c] = Wy[r] @ features[n, c] @ Wx[r].T (nprcnn/ops/roi_align.py derives it).

A bin averages samples between neighbouring pixels, so its row of Wy or Wx has a few weights side by side (its "taps") and zeros
elsewhere. They are found once a RoI and used for all channels. Then, for one RoI of one plane, bin row after bin row:

    columns = Wy[i] @ plane         a weighted sum of a few rows: the inner loop runs along them, where memory does
    y[i] = columns @ Wx.T           a few products a bin

The outer loop goes through the planes, four at a time, and there RoI by RoI, so that the planes stay in the cache. Backward walks the same
way, plane by plane: a thread owns a plane of the gradient and adds all its RoIs to it, so that no two threads write to one place and no
atomics are needed.
"""

import numpy as np
from numba import njit

from . import workers
from .checks import HALF, ONE, ZERO, check_floating, check_rois, plain, rois_by_image
from .lock import alone
from .vectors import LANES, load, number, set_number, store


@njit(cache=True)
def _clip(point, last):
    return min(max(point, ZERO), last)


@njit(cache=True, error_model="numpy")
def _axis_taps(start, side, length, sampling_ratio, first, count, weights):
    """One axis of all RoIs: bin b of RoI r averages pixels first[r, b] .. first + count - 1, with weights[r, b].

    start, side : (R,) on the feature map; length : of the feature map.
    first, count (R, bins), weights (R, bins, span) : what comes out; the weights must be 0 before.
    """
    number = weights.dtype.type
    last = number(length - 1)
    bins = first.shape[1]
    for r in range(len(start)):
        bin_side = side[r] / number(bins)
        samples = sampling_ratio if sampling_ratio > 0 else int(np.ceil(bin_side))
        divisor = number(max(samples, 1))
        for b in range(bins):
            count[r, b] = 0
            first[r, b] = 0
            if samples < 1:
                continue
            bin_start = start[r] + number(b) * bin_side
            end1 = _clip(bin_start + HALF * bin_side / divisor, last)
            end2 = _clip(bin_start + (number(samples) - HALF) * bin_side / divisor, last)
            low = int(min(end1, end2))
            first[r, b] = low
            count[r, b] = min(int(max(end1, end2)) + 1, length - 1) - low + 1
            for i in range(samples):
                point = bin_start + (number(i) + HALF) * bin_side / divisor
                # A sample more than a pixel outside the map counts as 0
                if point < -ONE or point > number(length):
                    continue
                point = _clip(point, last)
                pixel = int(point)
                fraction = point - number(pixel)
                weights[r, b, pixel - low] += (ONE - fraction) / divisor
                weights[r, b, min(pixel + 1, length - 1) - low] += fraction / divisor


def _taps(start, side, bins, length, sampling_ratio):
    # Between a bin's first and last sample lie at most bin-side pixels, and each has a neighbour
    longest = np.abs(side).max(initial=0) / bins
    span = -(-int(min(length, np.ceil(longest) + 2)) // 4) * 4  # whole groups of four
    first, count = np.empty((2, len(start), bins), np.int64)
    weights = np.zeros((len(start), bins, span), start.dtype)
    _axis_taps(start, side, length, sampling_ratio, first, count, weights)
    return first, count, weights


def _roi_taps(rois, x_shape, spatial_scale, output_size, sampling_ratio, aligned, dtype):
    """The taps of both axes, vertical first."""
    boxes = rois[:, 1:].astype(dtype) * float(spatial_scale) - (0.5 if aligned else 0.0)
    start, side = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
    if not aligned:
        side = np.maximum(side, 1)
    return [_taps(start[:, axis].copy(), side[:, axis].copy(), output_size[1 - axis], x_shape[3 - axis], int(sampling_ratio))
            for axis in (1, 0)]


@njit(cache=True)
def _extent(first, count):
    """The pixels first .. stop - 1 that any bin of a RoI touches."""
    start, stop = first[0], first[0] + count[0]
    for b in range(1, len(first)):
        start, stop = min(start, first[b]), max(stop, first[b] + count[b])
    return start, stop


@njit(cache=True, fastmath={"contract"})
def _blend_rows(features, plane, width, first, count, weights, place, left, blocks, columns, to):
    """columns[to + j] = the sum over k < count of weights[place + k] * features[first + k, left + j] of a plane, for j in blocks of LANES.

    features, weights, columns are flat; the plane begins at features[plane].
    Four rows at a time; weights are 0 from `count` on, and there the last row stands in, so that no other pixel is looked at.
    """
    start, last = plane + left, first + count - 1
    for k in range(0, count, 4):
        row0, row1 = start + (first + k) * width, start + min(first + k + 1, last) * width
        row2, row3 = start + min(first + k + 2, last) * width, start + min(first + k + 3, last) * width
        w0, w1 = number(weights, place + k), number(weights, place + k + 1)
        w2, w3 = number(weights, place + k + 2), number(weights, place + k + 3)
        for j in range(0, blocks * LANES, LANES):
            total = load(features, row0 + j) * w0 + load(features, row1 + j) * w1
            total = total + load(features, row2 + j) * w2 + load(features, row3 + j) * w3
            store(columns, to + j, total if k == 0 else load(columns, to + j) + total)


@njit(cache=True, fastmath={"contract"})
def _align(features, planes, width, r, y_first, y_count, y_weights, x_first, x_count, x_weights, columns, y, starts):
    """RoI r of four planes, which begin at features[planes[i]] -> oh * ow numbers each, from y[starts[i]] on.

    Four at once, because an output is a sum of three or four products: to find out how many costs more time than one sum. Measured, 1000
    RoIs of 7x7: half the time of one plane after the other.

    columns : scratch, four times W + LANES numbers
    """
    left, right = _extent(x_first[r], x_count[r])
    blocks, length = -(-(right - left) // LANES), width + LANES
    # A whole number of blocks, moved to the left where it would reach beyond the map; if the map itself is narrower, none
    if blocks * LANES <= width:
        left = min(left, width - blocks * LANES)
    else:
        blocks = 0
    bins_y, bins_x, y_span, x_span = y_first.shape[1], x_first.shape[1], y_weights.shape[2], x_weights.shape[2]
    wy, wx, x_start, x_number = y_weights.reshape(-1), x_weights.reshape(-1), x_first.reshape(-1), x_count.reshape(-1)
    plane0, plane1, plane2, plane3 = planes
    to0, to1, to2, to3 = starts
    for i in range(bins_y):
        first, count, place = y_first[r, i], y_count[r, i], (r * bins_y + i) * y_span
        if blocks > 0 and count > 0:
            _blend_rows(features, plane0, width, first, count, wy, place, left, blocks, columns, 0)
            _blend_rows(features, plane1, width, first, count, wy, place, left, blocks, columns, length)
            _blend_rows(features, plane2, width, first, count, wy, place, left, blocks, columns, 2 * length)
            _blend_rows(features, plane3, width, first, count, wy, place, left, blocks, columns, 3 * length)
        else:
            for c in range(4):
                for j in range(right - left):
                    total = y.dtype.type(0)
                    for k in range(count):
                        total += wy[place + k] * features[planes[c] + (first + k) * width + left + j]
                    columns[c * length + j] = total
        for o in range(bins_x):
            sum0 = sum1 = sum2 = sum3 = y.dtype.type(0)
            b = r * bins_x + o
            column, weights = number(x_start, b) - left, b * x_span
            for k in range(number(x_number, b)):
                weight = number(wx, weights + k)
                sum0 += weight * number(columns, column + k)
                sum1 += weight * number(columns, column + k + length)
                sum2 += weight * number(columns, column + k + 2 * length)
                sum3 += weight * number(columns, column + k + 3 * length)
            bin_ = i * bins_x + o
            set_number(y, to0 + bin_, sum0)
            set_number(y, to1 + bin_, sum1)
            set_number(y, to2 + bin_, sum2)
            set_number(y, to3 + bin_, sum3)


@njit(cache=True, nogil=True)
def _align_all(start, stop, features, image, order, y_first, y_count, y_weights, x_first, x_count, x_weights, y):
    """Tasks start .. stop - 1; one task is a RoI of four channels. Where there are no four left, the last channel is done again."""
    rois, (_, channels, height, width) = len(y), features.shape
    columns = np.empty(4 * (width + LANES), features.dtype)
    area, bins, flat, y_flat = height * width, y.shape[2] * y.shape[3], features.reshape(-1), y.reshape(-1)
    for task in range(start, stop):
        r, last = order[task % rois], channels - 1
        c0 = task // rois * 4
        c1, c2, c3 = min(c0 + 1, last), min(c0 + 2, last), min(c0 + 3, last)
        n, m = image[r] * channels, r * channels
        _align(flat, ((n + c0) * area, (n + c1) * area, (n + c2) * area, (n + c3) * area), width, r, y_first, y_count, y_weights,
               x_first, x_count, x_weights, columns, y_flat, ((m + c0) * bins, (m + c1) * bins, (m + c2) * bins, (m + c3) * bins))


@alone
def roi_align(features, rois, spatial_scale, output_size, sampling_ratio=2, aligned=False):
    """RoIAlign of every RoI: features (N, C, H, W), rois (R, 5) -> (R, C, oh, ow). See nprcnn.ops.roi_align."""
    out_h, out_w = check_rois(rois, features.shape, output_size)
    check_floating(features, "features")
    y = np.empty((len(rois), features.shape[1], out_h, out_w), features.dtype)
    if y.size:
        vertical, horizontal = _roi_taps(rois, features.shape, spatial_scale, (out_h, out_w), sampling_ratio, aligned,
                                         features.dtype)
        order, _ = rois_by_image(rois, len(features))
        workers.share(_align_all, len(y) * -(-y.shape[1] // 4), workers.MOVED * y.size, plain(features), rois[:, 0].astype(np.int64), order,
                      *vertical, *horizontal, y)
    return y


@njit(cache=True, fastmath={"contract"})
def _align_grad(dy, y_first, y_count, y_weights, x_first, x_count, x_weights, dcolumns, dplane):
    """Add one RoI's dy (oh, ow) to its plane (H, W). dcolumns (W,): scratch."""
    left, right = _extent(x_first, x_count)
    width = right - left
    for i in range(dy.shape[0]):
        # forward: y[i] = columns @ Wx.T, so dcolumns = dy[i] @ Wx
        dcolumns[:width] = ZERO
        for o in range(dy.shape[1]):
            place = x_first[o] - left
            for k in range(x_count[o]):
                dcolumns[place + k] += x_weights[o, k] * dy[i, o]
        # forward: columns = Wy[i] @ plane, so dplane += Wy[i].T @ dcolumns
        for k in range(y_count[i]):
            weight = y_weights[i, k]
            if weight != ZERO:
                row = dplane[y_first[i] + k, left:right]
                for j in range(width):
                    row[j] += weight * dcolumns[j]


@njit(cache=True, nogil=True)
def _align_grad_all(start, stop, dy, order, starts, y_first, y_count, y_weights, x_first, x_count, x_weights, dx):
    channels = dx.shape[1]
    for plane in range(start, stop):
        n, c = plane // channels, plane % channels
        dcolumns = np.empty(dx.shape[3], dx.dtype)
        dx[n, c] = 0
        for r in order[starts[n]:starts[n + 1]]:
            _align_grad(dy[r, c], y_first[r], y_count[r], y_weights[r], x_first[r], x_count[r], x_weights[r], dcolumns, dx[n, c])


@alone
def roi_align_grad(dy, rois, x_shape, spatial_scale, output_size, sampling_ratio=2, aligned=False):
    """Gradient of the features (N, C, H, W) from that of `roi_align`'s output, dy (R, C, oh, ow)."""
    out_h, out_w = check_rois(rois, x_shape, output_size)
    if dy.shape != (len(rois), x_shape[1], out_h, out_w):
        raise ValueError(f"dy must have shape {(len(rois), x_shape[1], out_h, out_w)}, got {dy.shape}")
    if dy.size == 0:
        return np.zeros(x_shape, dy.dtype)
    dx = np.empty(x_shape, dy.dtype)
    vertical, horizontal = _roi_taps(rois, x_shape, spatial_scale, (out_h, out_w), sampling_ratio, aligned, dy.dtype)
    workers.share(_align_grad_all, dx.shape[0] * dx.shape[1], workers.MOVED * (dy.size + dx.size), plain(dy),
                  *rois_by_image(rois, x_shape[0]), *vertical, *horizontal, dx)
    return dx
