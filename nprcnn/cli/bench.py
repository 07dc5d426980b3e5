"""nprcnn bench"""

from pathlib import Path

from ..errors import ConfigError
from .common import check_file, check_folder, positive_number, write_json

SYSTEMS = ["nprcnn", "torchvision", "onnxruntime", "openvino"]


def add(command):
    """Declare the arguments."""
    p = command("bench", run, "time prediction and training of maskrcnn_resnet50_fpn, stage by stage, beside other systems",
                "nprcnn bench --rounds 5 --train --json bench.json --plot bench.png")
    p.add_argument("--device", choices=["cpu", "cuda"], default="cpu",
                   help="cuda: time every kernel and the whole model on a GPU, beside torch "
                   "and torchvision; of the other arguments it takes --rounds, --json and --only (%(default)s)")
    p.add_argument("--only", metavar="NAME",
                   help="with --device cuda: only the kernels whose names begin so, such as conv2d or nms, and not the "
                   "model; \"models\": the model alone")
    p.add_argument("--systems", nargs="+", choices=SYSTEMS, metavar="NAME", help="nprcnn, torchvision, onnxruntime, openvino; "
                   "those that are not installed are left out (all)")
    p.add_argument("--rounds", type=positive_number, help="how often, in turn; medians are shown (5; 10 on a GPU)")
    p.add_argument("--threads", type=positive_number, help="of every system (the physical cores, or OMP_NUM_THREADS)")
    p.add_argument("--kernels", help="of nprcnn: numpy or numba")
    p.add_argument("--train", action="store_true", help="time a training step, too")
    p.add_argument("--no-masks", action="store_true", help="Faster R-CNN instead")
    p.add_argument("--branches", action="store_true", help="compare Faster R-CNN with Mask R-CNN, too")
    p.add_argument("--sweep", action="store_true", help="cost against image size, RoIs and batch, too")
    p.add_argument("--no-memory", action="store_true", help="leave out peak memory, for which each system runs once more")
    p.add_argument("--onnx", type=Path, metavar="DIR", help="keep the exported models here, or take them from here")
    p.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to a file, too")
    p.add_argument("--plot", type=Path, metavar="PNG", help="draw the stages and the sweep")


def run(args):
    from .. import backend, bench, threads
    from ..bench.run import say_on_stderr as say
    for path in (args.json, args.plot):
        if path:
            check_file(path)
    if args.device == "cuda":
        return run_on_gpu(args, say)
    if args.only:
        raise ConfigError("--only goes with --device cuda")
    if args.onnx:
        check_folder(args.onnx)
        args.onnx.mkdir(parents=True, exist_ok=True)
    if args.threads:
        threads.set_num_threads(args.threads)
    if args.kernels:
        backend.use(args.kernels)
    rounds = args.rounds or 5
    result = bench.bench(args.systems or SYSTEMS, rounds, not args.no_masks, args.train, not args.no_memory, args.onnx, say)
    if args.branches:
        result["branches"] = bench.compare_branches(rounds, say)
    if args.sweep:
        result["sweep"] = bench.sweep(rounds, say=say)
    print(bench.format_report(result))
    if args.json:
        write_json(args.json, result)
    if args.plot:
        bench.plot(result, args.plot)


def run_on_gpu(args, say):
    """Exit code 1: something failed, a kernel's result is wrong, or the float32 detections are not torchvision's."""
    from ..bench import cuda
    given = {"--systems": args.systems, "--threads": args.threads, "--kernels": args.kernels, "--train": args.train,
             "--no-masks": args.no_masks,
             "--branches": args.branches, "--sweep": args.sweep, "--no-memory": args.no_memory, "--onnx": args.onnx, "--plot": args.plot}
    for name, value in given.items():
        if value:
            raise ConfigError(f"{name} does not go with --device cuda, which times all kernels, and prediction and training")
    parts = cuda.PARTS if args.only is None else ("models",) if args.only == "models" else ("kernels",)
    save = (lambda result: write_json(args.json, result)) if args.json else None
    result = cuda.bench(args.rounds or 10, parts, None if args.only == "models" else args.only, say, save)
    if save:
        save(result)
    print(cuda.format_report(result))
    return 0 if cuda.is_good(result) else 1
