"""nprcnn train"""

import argparse
from pathlib import Path

from ..errors import ConfigError, NprcnnError
from .common import check_folder, check_images, positive_number, seed_number, setting


def add(command):
    """Declare the arguments."""
    p = command("train", run, "train a model on annotated images, from the beginning or from weights; or `nprcnn train shapes`: the full "
                "recipe behind the weights that come with the package. In four processes, on one machine or on several: mpiexec -n 4 "
                "python -m mpi4py -m nprcnn train ...",
                "nprcnn train --data coco:trainval.json --held-out 4 --model resnet50_fpn --weights r50.npz --freeze stem layer1 "
                "--out runs/fruits --steps 500 --schedule cosine --validate-every 100")
    p.add_argument("recipe", nargs="?", choices=["shapes"], help="the tiny model on the built-in scenes; of the options it takes --out, "
                   "--seed, --steps and --resume")
    p.add_argument("--out", type=Path, metavar="DIR", help="folder for checkpoints, weights, log and curves")
    p.add_argument("--seed", type=seed_number, default=0, help="of initial values, order, augmentation and samples (%(default)s)")
    p.add_argument("--steps", type=positive_number, help="how many (1000; the recipe has its own number)")
    p.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --out, if there is one")
    p.add_argument("--replay", type=Path, metavar="FILE.npz", help="see a step again that diverged, stage by stage, and train nothing")

    g = p.add_argument_group("what to train on")
    g.add_argument("--data", metavar="KIND:PATH", help="such as coco:instances.json; kinds: see nprcnn data --help")
    g.add_argument("--held-out", type=positive_number, metavar="N", help="measure on N of its images, chosen at random, and "
                   "train on the others")
    g.add_argument("--val", metavar="KIND:PATH", help="or measure on this set")
    g.add_argument("--augment", nargs="*", metavar="NAME=VALUE", help="flip half of the images; with values: flip, flip_vertical, "
                   "quarter_turns, scale, crop, brightness, contrast, saturation, such as scale=(0.8,1.25)")
    g.add_argument("--workers", type=int, default=0, metavar="N", help="processes that read and augment images ahead (%(default)s)")

    g = p.add_argument_group("which model")
    g.add_argument("--model", default="tiny", metavar="BUILDER", help="of nprcnn.models: tiny, resnet50_fpn, ... (%(default)s)")
    g.add_argument("--set", action="extend", nargs="+", default=[], metavar="NAME=VALUE", help="arguments of the builder, such "
                   "as min_size=400")
    g.add_argument("--weights", metavar="FILE", help="begin with a detector's weights, or with a backbone's")
    g.add_argument("--freeze", nargs="*", default=[], metavar="PART", help="parts that stay as they are: stem, layer1, ..., fpn, rpn, "
                   "box_head, mask_head, backbone")

    g = p.add_argument_group("how")
    g.add_argument("--batch-size", type=positive_number, default=2, metavar="N", help="images that go through the network at once, "
                   "in each process (%(default)s)")
    g.add_argument("--accumulate", type=positive_number, default=1, metavar="K", help="batches that make a step together (%(default)s)")
    g.add_argument("--lr", type=rate, default=0.01, help="learning rate (%(default)s)")
    g.add_argument("--schedule", choices=["step", "cosine"], default="cosine", help="of the learning rate (%(default)s)")
    g.add_argument("--drops", type=float, nargs="*", default=[2 / 3, 8 / 9], metavar="PART", help="of the schedule step: where the rate is "
                   "divided by 10, as parts of the whole (2/3 8/9)")
    g.add_argument("--warmup", type=int, default=100, metavar="N", help="steps in which the rate rises (%(default)s)")
    g.add_argument("--weight-decay", type=float, default=1e-4, help="%(default)s")
    g.add_argument("--validate-every", type=positive_number, metavar="N",
                   help="steps between validations (a tenth of all, but at least 50)")
    g.add_argument("--device", choices=["cpu", "cuda"], default="cpu",
                   help="where to compute; cuda: an NVIDIA GPU, through CuPy (%(default)s)")
    g.add_argument("--save-every", type=positive_number, default=100, metavar="N", help="steps between checkpoints (%(default)s)")


def rate(text):
    """argparse type: a positive number."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no positive number")
    return value


def run(args):
    if args.replay:
        from ..train.replay import replay
        print(replay(args.replay))
        return
    from ..train.ranks import start_ranks
    ranks = start_ranks()
    try:
        run_training(args, ranks)
    except NprcnnError:
        ranks.let_first_speak()
        raise


def run_training(args, ranks):
    """Look at the arguments, and train by a recipe or on a data set."""
    if args.out is None:
        raise ConfigError("--out DIR is missing: the folder for checkpoints, weights, log and curves")
    check_folder(args.out)
    if args.recipe:
        if args.data:
            raise ConfigError("either the recipe `shapes` or --data; --data shapes:1000 trains on the built-in scenes in your own way")
        if ranks.count > 1:
            raise ConfigError("the recipe `shapes` is for one process; in several, train with --data shapes:1000")
        from ..recipes import train_shapes
        train_shapes(args.out, seed=args.seed, steps=args.steps, resume=args.resume)
        return
    if args.data is None:
        raise ConfigError("--data KIND:PATH is missing, such as coco:instances.json; or train the built-in recipe: nprcnn train shapes")
    train_on(args, ranks)


def train_on(args, ranks):
    """Put source, model and configuration together, and train."""
    import numpy as np
    from ..pretrained import build_model
    from ..train import train_in_folder
    from ..train.start import freeze, norm_eps, start_from
    steps = args.steps or 1000
    if not 0 <= args.weight_decay < float("inf"):
        raise ConfigError(f"--weight-decay {args.weight_decay}: a number of at least 0 is needed")
    if not all(0 <= part <= 1 for part in args.drops):
        raise ConfigError(f"--drops {' '.join(map(str, args.drops))}: parts of the whole training are needed, in 0..1")
    if args.workers < 0 or not 0 <= args.warmup < steps:
        raise ConfigError(f"--workers {args.workers}, --warmup {args.warmup}: at least 0 is needed, and a warm-up shorter than {steps} "
                          "steps")
    source, held_out = open_data(args)
    model_settings = {"num_classes": len(source.class_names), "class_names": source.class_names, **dict(map(setting, args.set))}
    check_classes(model_settings, source.class_names)
    model = build_model(args.model, model_settings, np.random.default_rng(args.seed))
    say = print if ranks.rank == 0 else (lambda text: None)
    if args.weights:
        say("\n".join(start_from(model, args.weights)))
        model_settings.update(norm_eps(model))
    freeze(model, split(args.freeze))
    if args.device != "cpu" and ranks.count > 1:
        raise ConfigError("--device cuda is for one process")
    model.to(args.device)
    training = dict(steps=steps, batch_size=args.batch_size, accumulate=args.accumulate, lr=args.lr, schedule=args.schedule,
                    warmup_steps=args.warmup, drops=args.drops, weight_decay=args.weight_decay, seed=args.seed,
                    augment=augmentation(args.augment), workers=args.workers)
    config = {"model": {"builder": args.model, "arguments": model_settings}, "data": {"fingerprint": source.fingerprint()},
              "freeze": split(args.freeze), "weights": args.weights and Path(args.weights).name, "training": training}
    every = args.validate_every or max(steps // 10, min(steps, 50))
    processes = f" in {ranks.count} processes" if ranks.count > 1 else ""
    say(f"{len(source)} images to train on, {len(held_out) if held_out else 'none'} to measure on; "
        f"{', '.join(source.class_names[1:])}; {args.batch_size * args.accumulate * ranks.count} images a step{processes}")
    rows = train_in_folder(model, source, args.out, config, resume=args.resume, save_every=args.save_every,
                           validate=held_out and (lambda m: evaluate_together(m, held_out, ranks)), validate_every=every, ranks=ranks)
    if ranks.rank == 0:
        print(summary(rows, args.out))


def check_classes(settings, names):
    """ConfigError if --set gives a model that has other classes than the data set."""
    count, own = settings["num_classes"], settings["class_names"]
    if not isinstance(count, int) or count < len(names) or not isinstance(own, (tuple, list)) or len(own) != count:
        raise ConfigError(f"the data set has {len(names)} classes with the background: {', '.join(names)}; the model takes them "
                          "from there, so leave num_classes and class_names out of --set, or give both")


def evaluate_together(model, source, ranks):
    """nprcnn.evaluate.evaluate, each rank a share of the images: the metrics on the first one, None on the others."""
    from ..evaluate import coco_metrics, collect, join
    parts = ranks.gather(collect(model, source, progress=False, share=ranks.share))
    if parts is None:
        return None
    whole = join(parts)
    return coco_metrics(whole.truths, whole.found, whole.sizes, source.class_names, whole.kinds)


def open_data(args):
    """The source to train on, and that to measure on or None."""
    from ..data.sources import open_source
    if args.held_out and args.val:
        raise ConfigError("either --held-out or --val")
    if args.held_out:
        parts = [open_source(args.data, held_out=args.held_out, part=part) for part in ("train", "held_out")]
        if not len(parts[0]):
            raise ConfigError(f"--held-out {args.held_out}: {args.data} holds no more images, so none is left to train on")
        return parts
    source, held_out = open_source(args.data), open_source(args.val) if args.val else None
    check_images(source, args.data)
    if held_out is not None:
        check_images(held_out, args.val)
    if held_out is not None and held_out.class_names != source.class_names:
        raise ConfigError(f"--val has the classes {', '.join(held_out.class_names[1:])}, --data has {', '.join(source.class_names[1:])}")
    return source, held_out


def split(names):
    """--freeze stem,layer1 and --freeze stem layer1 alike."""
    return [name for text in names for name in text.split(",") if name]


def augmentation(texts):
    """--augment's settings as a dict, or None where it was not given."""
    from ..data.transforms import Augment
    if texts is None:
        return None
    given = dict(setting(text, "--augment") for text in texts)
    unknown = [name for name in given if name not in Augment._fields]
    if unknown:
        raise ConfigError(f"--augment {unknown[0]}: there is no such change; choose from {', '.join(Augment._fields)}")
    return Augment(**given).check()._asdict()


def summary(rows, out):
    """The last lines that a user sees."""
    measured = [row for row in rows if "validation" in row]
    minutes = sum(row.get("seconds", 0) for row in rows) / 60
    lines = [f"{minutes:.1f} minutes of training"]
    if measured:
        kind = "segm" if "segm" in measured[-1]["validation"] else "bbox"
        word = {"segm": "mask", "bbox": "box"}[kind]
        best = max(measured, key=lambda row: row["validation"][kind]["AP"])
        for name, row in (("at the end", measured[-1]), ("best", best)):
            ap = row["validation"][kind]
            lines.append(f"{word} AP {ap['AP']:.3f}, AP50 {ap['AP50']:.3f} {name} (step {row['step'] + 1})")
        lines.append(f"wrote {out / 'best.safetensors'}")
    return "\n".join(lines + [f"wrote {out / 'weights.safetensors'}, {out / 'curves.png'}"])
