"""`nprcnn bench --device cuda`: how fast the kernels and the whole model are on a GPU, beside what others do on the same GPU.

    operations   what is timed: every version of every kernel, at the sizes of maskrcnn_resnet50_fpn on an image of 800 x 1216
    rivals       the same by torch and torchvision (cuDNN's convolution, RoIAlign, NMS), if they are installed
    models       the whole model, prediction and training step, beside torchvision's
    clock        how it is timed: CUDA events, the wall clock, synchronisations
    device       what the numbers depend on, and the most that this GPU can do, measured
    run, report  all of it in turn, in one process; tables

Everything in one process, so that all of it meets the same GPU in the same state.
"""

from .report import format_report, is_good
from .run import PARTS, bench

__all__ = ["PARTS", "bench", "format_report", "is_good"]
