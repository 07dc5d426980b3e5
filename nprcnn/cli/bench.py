"""nprcnn bench"""

from pathlib import Path

from .common import check_file, check_folder, positive_number, write_json


def add(command):
    """Declare the arguments."""
    p = command("bench", run, "time prediction and training of maskrcnn_resnet50_fpn, stage by stage, beside other systems",
                "nprcnn bench --rounds 5 --train --json bench.json --plot bench.png")
    p.add_argument("--systems", nargs="+", choices=["nprcnn", "torchvision", "onnxruntime", "openvino"], metavar="NAME",
                   default=["nprcnn", "torchvision", "onnxruntime", "openvino"], help="nprcnn, torchvision, onnxruntime, openvino; "
                   "those that are not installed are left out (all)")
    p.add_argument("--rounds", type=positive_number, default=5, help="how often, in turn; medians are shown (%(default)s)")
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
    if args.onnx:
        check_folder(args.onnx)
        args.onnx.mkdir(parents=True, exist_ok=True)
    if args.threads:
        threads.set_num_threads(args.threads)
    if args.kernels:
        backend.use(args.kernels)
    result = bench.bench(args.systems, args.rounds, not args.no_masks, args.train, not args.no_memory, args.onnx, say)
    if args.branches:
        result["branches"] = bench.compare_branches(args.rounds, say)
    if args.sweep:
        result["sweep"] = bench.sweep(args.rounds, say=say)
    print(bench.format_report(result))
    if args.json:
        write_json(args.json, result)
    if args.plot:
        bench.plot(result, args.plot)
