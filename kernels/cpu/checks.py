"""What the kernels' Python halves share: the arrays that compiled code takes, and the checks that more than one operation makes.

The messages are those of nprcnn.ops: a mistake reads the same whatever does the work.
"""

import numpy as np

# Constants of compiled code. With a Python number float32 would become float64; with these float32 and float64 both stay as they are.
ZERO, HALF, ONE = np.float32(0), np.float32(0.5), np.float32(1)


def plain(x, dtype=None):
    """`x` as a C-ordered, writable array; itself if it is one already.

    To Numba each layout is a type of its own, and so is a read-only array: it would compile the kernel anew for each.
    """
    x = np.asarray(x, dtype)
    return x if x.flags.c_contiguous and x.flags.writeable else np.array(x, order="C")


def check_rois(rois, x_shape, output_size):
    """The checks that RoIAlign and RoIPool share; returns output_size as a pair. ValueError as nprcnn.ops.roi_align.check_rois."""
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


def check_floating(x, name):
    """ValueError unless the array's numbers are floating point."""
    if x.dtype.kind != "f":
        raise ValueError(f"{name} must be floating point, got {x.dtype}")


def rois_by_image(rois, images):
    """RoIs in the order of their images.

    Returns
    -------
    order : (R,) int64 array; the RoIs of image n are order[starts[n]:starts[n + 1]], in their own order
    starts : (images + 1,) int64 array
    """
    image = rois[:, 0].astype(np.int64)
    order = np.argsort(image, kind="stable")
    return order, np.searchsorted(image[order], np.arange(images + 1))
