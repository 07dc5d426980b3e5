"""nprcnn demo"""

from pathlib import Path

from .common import check_folder, seed_number


def add(command):
    """Declare the arguments."""
    p = command("demo", run, "train a small Mask R-CNN on built-in scenes, then draw every stage of one image",
                "nprcnn demo --out nprcnn-demo")
    p.add_argument("--out", type=Path, default=Path("nprcnn-demo"), metavar="DIR", help="folder for the pictures (%(default)s)")
    p.add_argument("--quick", action="store_true", help="skip the training")
    p.add_argument("--seed", type=seed_number, default=0, help="of the training and of the new image (%(default)s)")


def run(args):
    from ..demo import demo
    check_folder(args.out)
    demo(args.out, quick=args.quick, seed=args.seed)
