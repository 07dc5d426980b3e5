"""What is timed: every kernel, in every version, at the sizes it has in maskrcnn_resnet50_fpn on an image of 800 x 1216.

Each function below makes an Operation: its arrays are drawn and put on the GPU, and what is to be timed waits in functions of
nothing. `up` puts a NumPy array on the GPU; `rival` is a rivals.Torch or None.
"""

from typing import Callable, NamedTuple

import numpy as np

from ...kernels.cuda import conv2d as conv
from ...kernels.cuda import nms, norm_relu, paste, pool, resize, roi_align, roi_pool


class Layer(NamedTuple):
    """A convolution: N images of C channels and H x W pixels, O filters of K x K."""

    name: str
    n: int
    channels: int
    height: int
    width: int
    out_channels: int
    k: int
    stride: int

    @property
    def padding(self):
        return self.k // 2

    @property
    def x_shape(self):
        return self.n, self.channels, self.height, self.width

    @property
    def w_shape(self):
        return self.out_channels, self.channels, self.k, self.k

    @property
    def y_shape(self):
        return self.n, self.out_channels, -(-self.height // self.stride), -(-self.width // self.stride)

    @property
    def gflop(self):
        return 2 * np.prod(self.y_shape) * np.prod(self.w_shape[1:]) / 1e9

    def __str__(self):
        return f"{self.n} x {self.channels} x {self.height} x {self.width} -> {self.out_channels}, {self.k} x {self.k} / {self.stride}"


# The ten layers of ResNet-50 with FPN that have the most arithmetic, each shape once (tests/test_bench_cuda.py counts them in the
# model; layer4 has a second one as large as its first), and the mask head's on 100 detections. The RPN's head has the shape of the first.
LAYERS = (
    Layer("FPN output P2", 1, 256, 200, 304, 256, 3, 1),
    Layer("FPN output P3", 1, 256, 100, 152, 256, 3, 1),
    Layer("FPN lateral P2", 1, 256, 200, 304, 256, 1, 1),
    Layer("stem", 1, 3, 800, 1216, 64, 7, 2),
    Layer("layer1 conv2", 1, 64, 200, 304, 64, 3, 1),
    Layer("layer2 conv2, first", 1, 128, 200, 304, 128, 3, 2),
    Layer("layer2 conv2", 1, 128, 100, 152, 128, 3, 1),
    Layer("layer3 conv2, first", 1, 256, 100, 152, 256, 3, 2),
    Layer("layer3 conv2, FPN output P4", 1, 256, 50, 76, 256, 3, 1),
    Layer("layer4 conv2, first", 1, 512, 50, 76, 512, 3, 2),
)
CONV_TOLERANCE = 3e-4       # Winograd's algorithm rounds about ten times as much as the plain sums, and cuDNN may choose it, too
MASK_HEAD = Layer("mask head", 100, 256, 14, 14, 256, 3, 1)


class Operation(NamedTuple):
    """name, shape : str
    versions : {label: function of nothing -> array or tuple of arrays}
    rival : the same by another library, or None
    gflop : of the plain algorithm; None where that says nothing (NMS)
    gbyte : that must be moved at least: each input read once, each output written once
    tolerance : largest difference from each other, relative to the largest number
    may_differ : share of the numbers that may differ by more, where rounding decides between two pixels
    """

    name: str
    shape: str
    versions: dict
    rival: Callable | None
    gflop: float | None
    gbyte: float
    tolerance: float
    may_differ: float = 0.0


def convolution(up, rival, layer, kind):
    """kind: "conv2d", "conv2d_grad_x" or "conv2d_grad_w". The versions are those that conv2d.py has, whatever they take."""
    rng = np.random.default_rng(0)
    arrays = {"conv2d": (layer.x_shape, layer.w_shape), "conv2d_grad_x": (layer.y_shape, layer.w_shape),
              "conv2d_grad_w": (layer.y_shape, layer.x_shape)}[kind]
    a, b = (rng.standard_normal(shape, np.float32) for shape in arrays)
    first, second = up(a), up(b)
    function, size = getattr(conv, kind), (layer.stride, layer.padding)
    result = {"conv2d": None, "conv2d_grad_x": layer.x_shape, "conv2d_grad_w": layer.w_shape}[kind]
    middle = (None,) if result is None else (result,)       # conv2d takes a bias there, the gradients the result's shape

    def run(version):
        return lambda: function(first, second, *middle, *size, version=version)
    numbers = np.prod(layer.x_shape) + np.prod(layer.w_shape) + np.prod(layer.y_shape)
    return Operation(kind, f"{layer.name}: {layer}", {str(v): run(v) for v in conv.FILES},
                     rival and rival.convolution(kind, a, b, result, *size), layer.gflop, 4 * numbers / 1e9, CONV_TOLERANCE)


def random_boxes(rng, count, size, sides):
    """Boxes (count, 4) with sides between those two, in an image (H, W)."""
    wh = rng.uniform(*sides, (count, 2))
    corner = rng.uniform(0, 1, (count, 2)) * (np.array(size[::-1]) - wh)
    return np.hstack([corner, corner + wh]).astype(np.float32)


def _rois(rng, count, features, scale):
    size = tuple(int(side / scale) for side in features[2:])
    return np.hstack([np.zeros((count, 1), np.float32), random_boxes(rng, count, size, (min(size) / 40, min(size) / 3))])


def roi_align_forward(up, rival, features=(1, 256, 200, 304), rois=1000, bins=7, scale=0.25):
    rng = np.random.default_rng(1)
    x, boxes = rng.standard_normal(features, np.float32), _rois(rng, rois, features, scale)
    on_gpu, rois_on_gpu = up(x), up(boxes)
    samples = rois * features[1] * bins**2 * 4
    return Operation("roi_align", f"{rois} RoIs of {bins} x {bins} from {' x '.join(map(str, features))}",
                     {str(v): lambda v=v: roi_align.roi_align(on_gpu, rois_on_gpu, scale, bins, version=v) for v in roi_align.FORWARD},
                     rival and rival.roi_align(x, boxes, scale, bins), 8 * samples / 1e9, 4 * (x.size + samples / 4) / 1e9, 1e-4)


def roi_align_backward(up, rival, features=(1, 256, 200, 304), rois=512, bins=7, scale=0.25):
    rng = np.random.default_rng(2)
    boxes = _rois(rng, rois, features, scale)
    dy = rng.standard_normal((rois, features[1], bins, bins), np.float32)
    on_gpu, rois_on_gpu = up(dy), up(boxes)
    return Operation("roi_align_grad", f"{rois} RoIs of {bins} x {bins} to {' x '.join(map(str, features))}",
                     {str(v): lambda v=v: roi_align.roi_align_grad(on_gpu, rois_on_gpu, features, scale, bins, version=v)
                      for v in roi_align.BACKWARD},
                     rival and rival.roi_align_grad(dy, boxes, features, scale, bins), 8 * dy.size * 4 / 1e9,
                     4 * (np.prod(features) + dy.size) / 1e9, 1e-4)


def nms_one_group(up, rival, count=2000):
    """The RPN's on a level, before the best 1000 are taken."""
    rng = np.random.default_rng(3)
    boxes = random_boxes(rng, count, (800, 1216), (30, 300))
    scores = rng.random(count, np.float32)
    on_gpu, scores_on_gpu = up(boxes), up(scores)
    return Operation("nms", f"{count} boxes", {str(v): lambda v=v: nms.nms(on_gpu, scores_on_gpu, 0.7, version=v) for v in nms.FILES},
                     rival and rival.nms(boxes, scores, 0.7), None, 4 * boxes.size / 1e9, 0)


def nms_of_classes(up, rival, count=5000, classes=90):
    """What is left of the second stage's classes, above the least score."""
    rng = np.random.default_rng(4)
    boxes = random_boxes(rng, count, (800, 1216), (30, 300))
    scores, groups = rng.random(count, np.float32), rng.integers(0, classes, count)
    arrays = up(boxes), up(scores), up(groups)
    return Operation("batched_nms", f"{count} boxes of {classes} classes", {"2": lambda: nms.batched_nms(*arrays, 0.5)},
                     rival and rival.batched_nms(boxes, scores, groups, 0.5), None, 4 * boxes.size / 1e9, 0)


def max_pool(up, rival, size=(1, 64, 400, 608)):
    x = np.random.default_rng(5).standard_normal(size, np.float32)
    on_gpu = up(x)
    pixels = x.size / 4
    return Operation("max_pool2d", " x ".join(map(str, size)), {"1": lambda: pool.max_pool2d(on_gpu, 3, 2, 1)},
                     rival and rival.max_pool(x), 9 * pixels / 1e9, (4 * x.size + 12 * pixels) / 1e9, 0)


def norm_and_relu(up, rival, size=(1, 256, 200, 304)):
    rng = np.random.default_rng(6)
    arrays = [rng.standard_normal(shape, np.float32) for shape in (size, size[1:2], size[1:2], size)]
    on_gpu = [up(a) for a in arrays]
    return Operation("norm_relu", " x ".join(map(str, size)) + ", with a residual", {"1": lambda: norm_relu.norm_relu(*on_gpu)},
                     rival and rival.norm_relu(*arrays), 4 * arrays[0].size / 1e9, 12 * arrays[0].size / 1e9, 1e-5)


def resizing(up, rival, name, x_size, size):
    """name: "resize_nearest" or "resize_bilinear"."""
    x = np.random.default_rng(7).standard_normal(x_size, np.float32)
    on_gpu, function = up(x), getattr(resize, name)
    numbers = np.prod(x_size[:2]) * np.prod(size)
    return Operation(name, f"{' x '.join(map(str, x_size))} -> {' x '.join(map(str, size))}", {"1": lambda: function(on_gpu, size)},
                     rival and rival.resize(name, x, size), (8 if name == "resize_bilinear" else 0) * numbers / 1e9,
                     4 * (x.size + numbers) / 1e9, 1e-5)


def pasting(up, rival, count=100, size=(480, 730)):
    rng = np.random.default_rng(8)
    masks, boxes = rng.random((count, 28, 28), np.float32), random_boxes(rng, count, size, (20, 300))
    on_gpu = up(masks)
    numbers = count * np.prod(size)
    return Operation("paste_masks", f"{count} masks into {' x '.join(map(str, size))}",
                     {"1": lambda: paste.paste_masks(on_gpu, boxes, size)},
                     rival and rival.paste_masks(masks, boxes, size), None, 4 * (masks.size + numbers) / 1e9, 1e-4)


def roi_pooling(up, rival, features=(1, 512, 50, 76), rois=300, bins=7, scale=1 / 16):
    rng = np.random.default_rng(9)
    x, boxes = rng.standard_normal(features, np.float32), _rois(rng, rois, features, scale)
    on_gpu, rois_on_gpu = up(x), up(boxes)
    numbers = rois * features[1] * bins**2
    return Operation("roi_pool", f"{rois} RoIs of {bins} x {bins} from {' x '.join(map(str, features))}",
                     {"1": lambda: roi_pool.roi_pool(on_gpu, rois_on_gpu, scale, bins)[0]},
                     rival and rival.roi_pool(x, boxes, scale, bins), None,
                     (4 * x.size + 12 * numbers) / 1e9, 0, may_differ=1e-3)


def makers():
    """{name: function (up, rival) -> Operation}: all of them, in the order of the tables. Each is made when its turn comes."""
    found = {f"{kind}, {layer.name}": lambda up, rival, layer=layer, kind=kind: convolution(up, rival, layer, kind)
             for kind in ("conv2d", "conv2d_grad_x", "conv2d_grad_w") for layer in (*LAYERS, MASK_HEAD)}
    rest = {
        "roi_align, boxes": roi_align_forward,
        "roi_align, masks": lambda up, rival: roi_align_forward(up, rival, rois=100, bins=14),
        "roi_align_grad": roi_align_backward,
        "nms": nms_one_group,
        "batched_nms": nms_of_classes,
        "max_pool2d": max_pool,
        "norm_relu": norm_and_relu,
        "resize_nearest": lambda up, rival: resizing(up, rival, "resize_nearest", (1, 256, 100, 152), (200, 304)),
        "resize_bilinear": lambda up, rival: resizing(up, rival, "resize_bilinear", (1, 3, 480, 730), (800, 1216)),
        "paste_masks": pasting,
        "roi_pool": roi_pooling,
    }
    return {**rest, **found}
