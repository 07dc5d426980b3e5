"""nprcnn train"""

from pathlib import Path

from .common import check_folder, positive_number, seed_number


def add(command):
    """Declare the arguments."""
    p = command("train", run, "train the tiny model on the built-in scenes by the full recipe",
                "nprcnn train shapes --out runs/shapes --seed 0")
    p.add_argument("data", choices=["shapes"], help="what to train on")
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the weights, the log and the measured AP")
    p.add_argument("--seed", type=seed_number, default=0, help="of the initial values, the scenes and the samples (%(default)s)")
    p.add_argument("--steps", type=positive_number, help="train for fewer steps than the recipe, to try things out")


def run(args):
    from ..recipes import train_shapes
    check_folder(args.out)
    train_shapes(args.out, seed=args.seed, steps=args.steps)
