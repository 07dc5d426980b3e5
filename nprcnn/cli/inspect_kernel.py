"""nprcnn inspect-kernel"""

from pathlib import Path

from ..errors import ConfigError
from .common import check_file, positive_number

KERNELS = ("roi_align", "nms", "conv2d")


def add(command):
    """Declare the arguments."""
    p = command("inspect-kernel", run, "follow one thread of a CUDA kernel, without a GPU: list and draw what it reads and writes",
                "nprcnn inspect-kernel roi_align --roi 3 --thread 5")
    p.add_argument("kernel", choices=KERNELS, help="of kernels/numba_cuda, on a small built-in example")
    p.add_argument("--thread", type=int, default=5, metavar="N", help="roi_align: number within the RoI; else: in the grid (%(default)s)")
    p.add_argument("--roi", type=int, metavar="N", help="roi_align: which of the example's five RoIs (3)")
    p.add_argument("--output-size", type=positive_number, metavar="N", help="roi_align: N x N bins (7)")
    p.add_argument("--sampling-ratio", type=int, metavar="N", help="roi_align: N x N samples a bin; 0: adaptive (2)")
    p.add_argument("--aligned", action="store_true", default=None, help="roi_align: shift by half a pixel")
    p.add_argument("--version", type=int, choices=[1, 2], help="conv2d: 1, naive, or 2, tiles in shared memory (1)")
    p.add_argument("--out", type=Path, metavar="PNG", help="draw a picture, too")


def run(args):
    from .. import kernel_threads
    if args.out:
        if args.out.suffix.lower() != ".png":
            raise ConfigError(f"--out {args.out}: pictures are written as PNG; give a name that ends in .png")
        check_file(args.out)
    launch = _launch(args)
    accesses = kernel_threads.record(launch)
    table = {"roi_align": kernel_threads.roi_align_table, "nms": kernel_threads.nms_table, "conv2d": kernel_threads.conv2d_table}
    print(table[args.kernel](launch, accesses))
    if args.out:
        from ..canvas import save
        from ..kernel_pictures import draw_conv2d, draw_nms, draw_roi_align
        draw = {"roi_align": draw_roi_align, "nms": draw_nms, "conv2d": draw_conv2d}
        save(draw[args.kernel](launch, accesses), args.out)
        print(f"wrote {args.out}")


def _launch(args):
    """The example that the arguments ask for. ConfigError: an option of another kernel, or one that the example does not have."""
    from ..kernel_threads import conv2d_launch, nms_launch, roi_align_launch
    own = {"roi_align": ("roi", "output_size", "sampling_ratio", "aligned"), "conv2d": ("version",), "nms": ()}
    given = {name: getattr(args, name) for names in own.values() for name in names if getattr(args, name) is not None}
    for name in given:
        if name not in own[args.kernel]:
            raise ConfigError(f"--{name.replace('_', '-')} is no option of {args.kernel}")
    if args.kernel == "roi_align":
        if given.get("output_size", 7) > 14 or given.get("sampling_ratio", 2) > 8:
            raise ConfigError("the simulator is slow: give an --output-size of at most 14 and a --sampling-ratio of at most 8")
        return roi_align_launch(given.pop("roi", 3), args.thread, **given)
    return conv2d_launch(args.thread, **given) if args.kernel == "conv2d" else nms_launch(args.thread)
