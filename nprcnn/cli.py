"""The command line: nprcnn demo | train | evaluate | predict | compare | bench | gradcheck. Each has --help with an example.

Errors that are the user's to mend are printed as one sentence, without a traceback, and the exit code is 2.
"""

import argparse
import json
import os
import sys
from pathlib import Path

from .errors import ConfigError, NprcnnError, WeightsError


def main(argv=None):
    """Run one command; returns the exit code."""
    args = parser().parse_args(argv)
    try:
        code = args.run(args) or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # of `nprcnn gradcheck | head`: who reads has seen enough
        # Python would flush once more on its way out, and complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # as a shell says for a program that SIGPIPE ended
    except NprcnnError as error:
        print(f"nprcnn {args.command}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"nprcnn {args.command}: {error.filename or 'file system'}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nnprcnn {args.command}: stopped", file=sys.stderr)
        return 130


def parser():
    """The argument parser of all commands."""
    top = argparse.ArgumentParser(prog="nprcnn", description="A Mask R-CNN written from scratch in NumPy.")
    commands = top.add_subparsers(dest="command", required=True, metavar="command")

    def command(name, run, text, example):
        sub = commands.add_parser(name, help=text, description=text, epilog=f"example: {example}")
        sub.set_defaults(run=run)
        return sub

    p = command("demo", run_demo, "train a small Mask R-CNN on built-in scenes, then draw every stage of one image",
                "nprcnn demo --out nprcnn-demo")
    p.add_argument("--out", type=Path, default=Path("nprcnn-demo"), metavar="DIR", help="folder for the pictures (%(default)s)")
    p.add_argument("--quick", action="store_true", help="skip the training")
    p.add_argument("--seed", type=seed_number, default=0, help="of the training and of the new image (%(default)s)")

    p = command("train", run_train, "train the tiny model on the built-in scenes by the full recipe",
                "nprcnn train shapes --out runs/shapes --seed 0")
    p.add_argument("data", choices=["shapes"], help="what to train on")
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the weights, the log and the measured AP")
    p.add_argument("--seed", type=seed_number, default=0, help="of the initial values, the scenes and the samples (%(default)s)")
    p.add_argument("--steps", type=positive_number, help="train for fewer steps than the recipe, to try things out")

    p = command("evaluate", run_evaluate, "measure COCO's AP of boxes and masks on held-out scenes",
                "nprcnn evaluate shapes --weights shapes --count 200")
    p.add_argument("data", choices=["shapes"], help="what to evaluate on")
    p.add_argument("--weights", default="shapes", help='a file, or "shapes" for those that come with the package (%(default)s)')
    p.add_argument("--count", type=positive_number, default=200, help="how many scenes (%(default)s)")
    p.add_argument("--difficulty", choices=["easy", "full"], default="full", help="of the scenes (%(default)s)")
    p.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to a file, too")

    p = command("predict", run_predict, "find the objects in one image and draw them; the weights tell which model",
                "nprcnn predict photo.jpg --weights maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth")
    p.add_argument("image", type=Path, help="an image file")
    p.add_argument("--weights", default="shapes", help='a file, or "shapes" for those that come with the package (%(default)s)')
    p.add_argument("--out", type=Path, metavar="PNG", help="where to write the picture (photo_found.png, in the current folder)")
    p.add_argument("--score", type=float, default=0.5, help="draw what scores at least this (%(default)s)")

    p = command("compare", run_compare, "run two models on one image and find the first stage at which they part (exit code 1 if any)",
                "nprcnn compare mine.safetensors theirs.pth --image photo.jpg")
    p.add_argument("a", metavar="A", help="a file of weights; the model is recognised from it")
    p.add_argument("b", metavar="B", nargs="?", help="weights for the same model, or an .npz of stages that --save wrote")
    p.add_argument("--image", type=Path, help="an image file (a built-in scene, with the model's min_size at most 320)")
    p.add_argument("--tolerance", type=float, default=1e-4, help="of max|a-b| / max|b| (%(default)s)")
    p.add_argument("--dtype", choices=["float32", "float64"], default="float32", help="to compute in (%(default)s)")
    p.add_argument("--save", type=Path, metavar="FILE.npz", help="write the stages of A")
    p.add_argument("--model", metavar="BUILDER", help="of nprcnn.models, instead of the one that is recognised")
    p.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="an argument of the builder, such as min_size=400")

    p = command("bench", run_bench, "time prediction and training of maskrcnn_resnet50_fpn, stage by stage, beside other systems",
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

    p = command("gradcheck", run_gradcheck, "check every hand-written backward pass against numerical differences",
                "nprcnn gradcheck")
    p.add_argument("--json", type=Path, metavar="FILE", help="write the errors to a file, too")
    return top


def seed_number(text):
    """argparse type: an integer that random generators accept."""
    value = int(text)
    if not 0 <= value < 2 ** 31:
        raise argparse.ArgumentTypeError(f"{text} is outside 0..2147483647")
    return value


def positive_number(text):
    """argparse type: how many of something, in 1..1000000 (more would not fit into the memory, or into a lifetime)."""
    value = int(text)
    if not 1 <= value <= 1_000_000:
        raise argparse.ArgumentTypeError(f"{text} is outside 1..1000000")
    return value


# Where results will go is looked at before the work that makes them.

def check_folder(path):
    """Raise ConfigError if `path` cannot be a folder to write into, which may still have to be made."""
    if path.exists() and not path.is_dir():
        raise ConfigError(f"--out {path} is a file; give a folder")


def check_file(path):
    """Raise ConfigError if `path` cannot be a file to write."""
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; give the name of a file to write")
    if not path.parent.is_dir():
        raise ConfigError(f"{path} cannot be written: there is no folder {path.parent}; make it first")


def write_json(path, content):
    """The file appears whole or not at all."""
    from .data.images import write_whole
    write_whole(path, lambda file: file.write((json.dumps(content, indent=1) + "\n").encode()))


# Each command imports what it needs when it runs, so that `nprcnn --help` answers at once.

def run_demo(args):
    """nprcnn demo"""
    from .demo import demo
    check_folder(args.out)
    demo(args.out, quick=args.quick, seed=args.seed)


def run_train(args):
    """nprcnn train"""
    from .recipes import train_shapes
    check_folder(args.out)
    train_shapes(args.out, seed=args.seed, steps=args.steps)


def run_evaluate(args):
    """nprcnn evaluate"""
    from .data.shapes import Shapes
    from .evaluate import evaluate, format_metrics
    from .models import maskrcnn_tiny
    if args.json:
        check_file(args.json)
    model = maskrcnn_tiny(weights=args.weights)
    metrics = evaluate(model, Shapes.held_out(args.count, args.difficulty))
    print(format_metrics(metrics))
    if args.json:
        write_json(args.json, metrics)


def run_predict(args):
    """nprcnn predict"""
    from .data.images import read_image
    from .pretrained import load_model
    from .viz import draw_detections, save
    if args.out and args.out.suffix.lower() != ".png":
        raise ConfigError(f"--out {args.out}: pictures are written as PNG; give a name that ends in .png")
    if not 0 <= args.score <= 1:
        raise ConfigError(f"--score {args.score}: scores lie in 0..1")
    out = args.out or unused(Path(f"{args.image.stem}_found.png"))
    check_file(out)
    image = read_image(args.image)
    model, report = load_model(args.weights)
    print("\n".join(report.notes))
    result = model.predict(image)
    keep = result.scores >= args.score
    names = model.class_names
    width = max((len(names[label]) for label in result.labels[keep]), default=0)
    for box, label, score in zip(result.boxes[keep], result.labels[keep], result.scores[keep]):
        print(f"{names[label]:<{width}}  {score:.3f}   box " + " ".join(f"{v:.1f}" for v in box))
    print(f"{keep.sum()} objects with a score of at least {args.score}")
    masks = None if result.masks is None else result.masks[keep]
    save(draw_detections(image, result.boxes[keep], result.labels[keep], result.scores[keep], masks, class_names=names), out)
    print(f"wrote {out}")


def unused(path):
    """The path, or with -2, -3, ... before its suffix the first that does not exist."""
    k, first = 2, path
    while path.exists():
        path, k = first.with_stem(f"{first.stem}-{k}"), k + 1
    return path


def run_compare(args):
    """nprcnn compare"""
    import numpy as np
    from .compare import compare_traces, explain, first_difference, format_rows
    from .data.images import read_image
    from .data.shapes import Shapes
    from .stage_files import holds_stages, load_stages, save_stages
    from .trace import Trace
    if not (args.b or args.save):
        raise ConfigError("there is nothing to do: give a second file to compare with, or --save FILE.npz")
    if not args.tolerance >= 0:
        raise ConfigError(f"--tolerance {args.tolerance}: a number of at least 0 is needed")
    if args.save:
        check_file(args.save)
        if args.save.suffix != ".npz":
            raise ConfigError(f"--save {args.save}: stages are written as .npz; give a name that ends so")
    image = Shapes(1, 0, size=(256, 320))[0][0] if args.image is None else read_image(args.image)
    stages = load_stages(args.b) if args.b and holds_stages(args.b) else None
    models = comparable_models([args.a] if stages or not args.b else [args.a, args.b], args.model, dict(map(setting, args.set)))
    traces = []
    for model in models:
        if args.image is None and not any(text.startswith("min_size=") for text in args.set):
            model.min_size = min(model.min_size, 320)  # a forward pass at 800 takes long, and shows no more
        traces.append(Trace())
        model.astype(np.dtype(args.dtype)).predict(image, trace=traces[-1])
    if args.save:
        save_stages(traces[0], args.save)
        print(f"wrote {args.save}")
    if not args.b:
        return 0
    print(f"B {args.b}: {'stages in a file' if stages else 'these weights in the same model'}\n")
    rows = compare_traces(traces[0], stages or traces[1], args.tolerance)
    print(f"{format_rows(rows)}\n\n{explain(rows, *(models if len(models) == 2 else ()))}")
    return 1 if first_difference(rows) else 0


def comparable_models(paths, builder, settings):
    """The model that the first file is recognised as, once with the weights of each file. Prints what it is."""
    from .models import builders
    from .pretrained import load_model
    from .weights import read_weights
    from .weights.recognise import recognise
    try:
        found = recognise(read_weights(paths[0]))
    except WeightsError as error:
        raise WeightsError(f"{paths[0]}: {error}") from None
    if builder:
        if not (builder.startswith(("maskrcnn_", "fasterrcnn_")) and hasattr(builders, builder)):
            raise ConfigError(f"--model {builder}: there is no such builder in nprcnn.models")
        found = found._replace(builder=builder)
    print(f"A {paths[0]}: {found}")
    models = []
    for path in paths:
        model, report = load_model(path, found, **settings)
        models.append(model)
        for note in report.notes[1:]:
            print(f"  {note}")
    return models


def setting(text):
    """"min_size=400" -> ("min_size", 400)."""
    import ast
    name, equals, value = text.partition("=")
    if not (name.isidentifier() and equals):
        raise ConfigError(f"--set {text}: give NAME=VALUE, such as min_size=400")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def run_bench(args):
    """nprcnn bench"""
    from . import backend, bench, threads
    from .bench.run import say_on_stderr as say
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


def run_gradcheck(args):
    """nprcnn gradcheck"""
    from .pairs import format_table, run_all
    if args.json:
        check_file(args.json)
    rows = run_all()
    print(format_table(rows))
    if args.json:
        write_json(args.json, [row._asdict() for row in rows])
    return 0 if all(row.passed for row in rows) else 1
