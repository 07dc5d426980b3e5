"""A training so small that it can be killed and repeated many times; as a program it does one: python tests/tiny_training.py FOLDER.

--die POINT:N ends it by SIGKILL at the N-th time that a file is written in this way: "write" (half of the bytes), "fsync", "replace".
"""

import argparse
import os
import signal

import numpy as np
from reference import seeded
from small_models import tiny_image_model

from nprcnn.train import train_in_folder

STEPS, SAVE_EVERY = 8, 2


class Source:
    """The two images of seeded.py, in turn and mirrored: any object with a length and items is a data source."""

    class_names = ("background", "a", "b", "c")

    def __init__(self, count=6):
        self.count = count
        self.visited = []

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        assert isinstance(i, int) and 0 <= i < self.count
        self.visited.append(i)
        images, targets = seeded.scene()
        image, target = images[i % 2], targets[i % 2]
        if i // 2 % 2:
            width = image.shape[1]
            boxes = target["boxes"].copy()
            boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
            image, target = image[:, ::-1], {**target, "boxes": boxes, "masks": target["masks"][:, :, ::-1]}
        return image, target


def tiny_model(**options):
    """Batch norm everywhere, so that there are running statistics, and images of 64 x 32 at most."""
    return tiny_image_model(**{**dict(dtype=np.float32, min_size=32, max_size=64), **options})


TRAINING = dict(steps=STEPS, batch_size=2, lr=0.02, warmup_steps=2, schedule="cosine", seed=0)


def tiny_config(**changes):
    return {"model": {"builder": "small", "arguments": {}}, "data": {"fingerprint": "seeded"}, "training": {**TRAINING, **changes}}


def tiny_run(out, resume=True, model=None, source=None, config=None, validate=None, save_every=SAVE_EVERY, say=lambda text: None,
             **changes):
    """A training in the folder `out`: the model and the rows of its log. changes: of TRAINING."""
    model = model or tiny_model()
    rows = train_in_folder(model, source or Source(), out, config or tiny_config(**changes), resume=resume, save_every=save_every,
                           draw_every=0, progress=False, validate=validate, validate_every=3 if validate else 0, say=say)
    return model, rows


def stored(out):
    """What a finished training left, to the last bit: the bytes of its weights and of its checkpoint, and its log without times."""
    from nprcnn.train.log import read_log
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in read_log(out / "history.jsonl")]
    return {"weights": (out / "weights.safetensors").read_bytes(), "checkpoint": (out / "checkpoint.safetensors").read_bytes(), "log": rows}


def die_at(point, count):
    """Let this process kill itself at the count-th call of os.fsync or os.replace, or in the middle of the count-th file written."""
    left = [count]

    def time_to_die():
        left[0] -= 1
        return left[0] == 0

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    if point == "write":
        import builtins
        real = builtins.open

        class Half:
            def __init__(self, file):
                self.file = file

            def __enter__(self):
                return self

            def __exit__(self, *error):
                self.file.close()

            def __getattr__(self, name):
                return getattr(self.file, name)

            def write(self, content):
                if time_to_die():
                    self.file.write(content[:len(content) // 2])
                    self.file.flush()
                    die()
                return self.file.write(content)

        def opened(path, mode="r", *args, **options):
            file = real(path, mode, *args, **options)
            return Half(file) if mode == "wb" else file
        builtins.open = opened
        return
    real = getattr(os, point)

    def fatal(*args):
        if time_to_die():
            die()
        return real(*args)
    setattr(os, point, fatal)


if __name__ == "__main__":
    from pathlib import Path
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--save-every", type=int, default=SAVE_EVERY)
    parser.add_argument("--die", default="")
    args = parser.parse_args()
    if args.die:
        die_at(args.die.split(":")[0], int(args.die.split(":")[1]))
    tiny_run(args.out, save_every=args.save_every, steps=args.steps, say=print)
