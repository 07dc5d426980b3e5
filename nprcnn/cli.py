"""The command line: nprcnn demo | train | evaluate | predict | gradcheck. Each has --help with an example.

Errors that are the user's to mend are printed as one sentence, without a traceback, and the exit code is 2.
"""

import argparse
import json
import sys
from pathlib import Path

from .errors import ConfigError, NprcnnError


def main(argv=None):
    """Run one command; returns the exit code."""
    args = parser().parse_args(argv)
    try:
        return args.run(args) or 0
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

    p = command("predict", run_predict, "find the objects in one image and draw them",
                "nprcnn predict scene.png --weights shapes --out found.png")
    p.add_argument("image", type=Path, help="an image file")
    p.add_argument("--weights", default="shapes", help='a file, or "shapes" for those that come with the package (%(default)s)')
    p.add_argument("--out", type=Path, required=True, metavar="PNG", help="where to write the picture")
    p.add_argument("--score", type=float, default=0.5, help="draw what scores at least this (%(default)s)")

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
    from .data.shapes import CLASS_NAMES
    from .models import maskrcnn_tiny
    from .viz import draw_detections, save
    if args.out.suffix.lower() != ".png":
        raise ConfigError(f"--out {args.out}: pictures are written as PNG; give a name that ends in .png")
    if not 0 <= args.score <= 1:
        raise ConfigError(f"--score {args.score}: scores lie in 0..1")
    check_file(args.out)
    image = read_image(args.image)
    result = maskrcnn_tiny(weights=args.weights).predict(image)
    keep = result.scores >= args.score
    for box, label, score in zip(result.boxes[keep], result.labels[keep], result.scores[keep]):
        print(f"{CLASS_NAMES[label]:<10} {score:.3f}   box " + " ".join(f"{v:.1f}" for v in box))
    print(f"{keep.sum()} objects with a score of at least {args.score}")
    save(draw_detections(image, result.boxes[keep], result.labels[keep], result.scores[keep], result.masks[keep],
                         class_names=CLASS_NAMES), args.out)
    print(f"wrote {args.out}")


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
