"""The same operations by torch and torchvision, on the same GPU: cuDNN's convolution, torchvision's RoIAlign, NMS and pasting.

Each method takes NumPy arrays, puts them on the GPU, and returns a function of nothing that computes there.
"""

import importlib.util
import warnings
from contextlib import contextmanager

from ...errors import ConfigError


class Torch:
    """device: "cuda"; "cpu" where only the calls are to be tried.

    Raises
    ------
    ConfigError
        torch or torchvision is not installed, or cannot use the GPU.
    """

    name = "torch"

    def __init__(self, device="cuda"):
        for package in ("torch", "torchvision"):
            if importlib.util.find_spec(package) is None:
                raise ConfigError(f"torch and torchvision are left out: {package} is not installed")
        try:
            import torch
            import torchvision
        except Exception as error:      # wrong builds fail in many ways, and the bench goes on without them
            raise ConfigError(f"torch and torchvision are left out: {type(error).__name__}: {str(error).splitlines()[0][:200]}") from error
        if device == "cuda" and not torch.cuda.is_available():
            raise ConfigError(f"torch and torchvision are left out: torch {torch.__version__} finds no GPU")
        self.torch, self.vision, self.device = torch, torchvision, device

    def describe(self):
        """Versions."""
        torch = self.torch
        return {"torch": torch.__version__, "torchvision": self.vision.__version__, "torch_cuda": torch.version.cuda,
                "cudnn": torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None}

    @contextmanager
    def precision(self, tf32):
        """While the block runs, convolutions and products may (or may not) round their factors to TF32; cuDNN tries its algorithms
        and takes the fastest."""
        cudnn, matmul = self.torch.backends.cudnn, self.torch.backends.cuda.matmul
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")     # torch has other names for these, too
            before = cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark
            cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark = tf32, tf32, True
            try:
                yield
            finally:
                cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark = before

    def _up(self, *arrays):
        return [self.torch.from_numpy(array).to(self.device) for array in arrays]

    def _quietly(self, function):
        """Without a record for gradients."""
        def run():
            with self.torch.no_grad():
                return function()
        return run

    def numpy(self, result):
        """What such a function returns, in the memory of the CPU: a list of arrays."""
        return [tensor.detach().cpu().numpy() for tensor in (result if isinstance(result, (tuple, list)) else (result,))]

    def convolution(self, kind, a, b, shape, stride, padding):
        """As operations.convolution: a, b are x, w; dy, w; or dy, x."""
        a, b = self._up(a, b)
        grad = self.torch.nn.grad
        return self._quietly({"conv2d": lambda: self.torch.nn.functional.conv2d(a, b, None, stride, padding),
                              "conv2d_grad_x": lambda: grad.conv2d_input(shape, b, a, stride, padding),
                              "conv2d_grad_w": lambda: grad.conv2d_weight(b, shape, a, stride, padding)}[kind])

    def roi_align(self, features, rois, scale, bins):
        features, rois = self._up(features, rois)
        return self._quietly(lambda: self.vision.ops.roi_align(features, rois, bins, scale, 2, False))

    def roi_align_grad(self, dy, rois, shape, scale, bins):
        dy, rois = self._up(dy, rois)
        features = self.torch.zeros(shape, device=self.device, requires_grad=True)
        y = self.vision.ops.roi_align(features, rois, bins, scale, 2, False)
        return lambda: self.torch.autograd.grad(y, features, dy, retain_graph=True)

    def nms(self, boxes, scores, threshold):
        boxes, scores = self._up(boxes, scores)
        return self._quietly(lambda: self.vision.ops.nms(boxes, scores, threshold))

    def batched_nms(self, boxes, scores, groups, threshold):
        boxes, scores, groups = self._up(boxes, scores, groups)
        return self._quietly(lambda: self.vision.ops.batched_nms(boxes, scores, groups, threshold))

    def max_pool(self, x):
        x, = self._up(x)
        return self._quietly(lambda: self.torch.nn.functional.max_pool2d(x, 3, 2, 1, return_indices=True))

    def norm_relu(self, x, scale, shift, residual):
        x, scale, shift, residual = self._up(x, scale, shift, residual)
        return self._quietly(lambda: self.torch.relu(x * scale[:, None, None] + shift[:, None, None] + residual))

    def resize(self, name, x, size):
        x, = self._up(x)
        options = {"mode": "nearest"} if name == "resize_nearest" else {"mode": "bilinear", "align_corners": False}
        return self._quietly(lambda: self.torch.nn.functional.interpolate(x, size=size, **options))

    def paste_masks(self, masks, boxes, size):
        from torchvision.models.detection.roi_heads import paste_masks_in_image
        masks, boxes = self._up(masks, boxes)
        return self._quietly(lambda: paste_masks_in_image(masks[:, None], boxes, size)[:, 0])

    def roi_pool(self, features, rois, scale, bins):
        features, rois = self._up(features, rois)
        return self._quietly(lambda: self.vision.ops.roi_pool(features, rois, bins, scale))
