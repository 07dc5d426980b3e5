"""A small training for several processes: mpiexec -n 2 python -m mpi4py tests/mpi_training.py FOLDER. test_ranks.py starts it.

    --fault KIND:RANK:STEP      let something happen on one rank: kill (SIGKILL), image (cannot be read), nan (in a stage)

And a measurement, with one thread a process: python tests/mpi_training.py --time
"""

import argparse
import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from reference import seeded
from small_models import snapshot, tiny_image_model

from nprcnn.errors import DataError, NprcnnError
from nprcnn.train import train_in_folder
from nprcnn.train.ranks import start_ranks

STEPS, IMAGES = 10, 4  # a step


class OneSize:
    """Twelve images of one size, with unlike numbers of objects; one in six has none."""

    class_names = ("background", "a", "b", "c")

    def __len__(self):
        return 12

    def name(self, i):
        return f"photo{i}.png"

    def __getitem__(self, i):
        images, targets = seeded.scene()
        image, target = images[0], targets[0]
        n = min((2, 0, 1, 3, 1, 2)[i % 6], len(target["labels"]))
        return np.roll(image, 5 * i, axis=1), {k: target[k][:n] for k in ("boxes", "labels", "masks")}


def run(out, ranks=None, accumulate=1, norm="frozen", fault="", steps=STEPS, say=print):
    """A training with IMAGES images each, shared out among the ranks. Returns the model and the rows."""
    model, source = tiny_image_model(norm=norm, head_norm=norm), OneSize()
    count, rank = (ranks.count, ranks.rank) if ranks else (1, 0)
    kind, where, when = fault.split(":") if fault else ("", -1, -1)
    if rank == int(where):
        plant(kind, int(when), model)
    training = dict(steps=steps, batch_size=IMAGES // count // accumulate, accumulate=accumulate, lr=0.02, warmup_steps=2, seed=0)
    config = {"model": {"builder": "small", "arguments": {}}, "data": {"fingerprint": "seeded"}, "training": training}
    rows = train_in_folder(model, source, out, config, resume=True, save_every=2, draw_every=0, progress=False, ranks=ranks, say=say)
    return model, rows


def plant(kind, step, model):
    """Let a fault happen on this rank, in one step (and later ones)."""
    losses, forward, calls = model.losses, model.backbone.forward, []

    def faulty_losses(*args, **options):
        calls.append(1)
        if len(calls) > step and kind == "kill":
            print(f"killed at {time.time()}", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        if len(calls) > step and kind == "image":
            raise DataError("the image cannot be read")
        return losses(*args, **options)

    def faulty_forward(x, *args):
        if len(calls) > step and kind == "nan":
            x = x.copy()
            x[-1] = np.nan
        return forward(x, *args)
    model.losses, model.backbone.forward = faulty_losses, faulty_forward


def measure(images, steps):
    """Print the median of a step's seconds: the tiny model on the built-in scenes. In each rank, for --time."""
    from nprcnn.data.shapes import Shapes
    from nprcnn.models import maskrcnn_tiny
    from nprcnn.train import train
    ranks, model = start_ranks(), maskrcnn_tiny(rng=np.random.default_rng(0), class_names=Shapes.class_names)
    history = train(model, Shapes(steps * images, 0), steps=steps, batch_size=images // ranks.count, seed=0, progress=False, ranks=ranks)
    if ranks.rank == 0:
        print(np.median([row["seconds"] for row in history[2:]]))


def compare(images=8, steps=12, turns=3):
    """The median of a step's seconds with one rank and with two, in turn."""
    seconds = {1: [], 2: []}
    for _ in range(turns):
        for count in seconds:
            command = [*mpiexec(count), __file__, "--measure", str(images), str(steps)]
            done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
            seconds[count].append(float(done.stdout))
    one, two = (np.median(seconds[count]) for count in seconds)
    print(f"{images} images a step of the tiny model: one rank {one:.3f} s, two ranks {two:.3f} s, {one / two:.2f} times as fast; "
          f"all: {seconds}")


def mpiexec(count):
    """How to start `count` ranks: the command up to the script. None if MPI is not installed."""
    from importlib.util import find_spec
    from shutil import which
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    program = which("mpiexec", path=path)
    return program and find_spec("mpi4py") and [program, "-n", str(count), sys.executable, "-m", "mpi4py"]


def environment():
    """One thread a process, NumPy's functions (nothing to compile), and this nprcnn."""
    here = Path(__file__).parent
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(here.parent), str(here)]), "NPRCNN_KERNELS": "numpy", "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1"}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--norm", default="frozen")
    parser.add_argument("--fault", default="")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--measure", type=int, nargs=2)
    args = parser.parse_args()
    if args.time:
        compare()
    elif args.measure:
        measure(*args.measure)
    else:
        ranks = start_ranks()
        try:
            model, _ = run(args.out, ranks, args.accumulate, args.norm, args.fault, args.steps)
        except NprcnnError as error:
            ranks.let_first_speak()
            sys.exit(f"rank {ranks.rank}: {error}")
        weights = hashlib.sha256(repr(sorted(snapshot(model).items())).encode()).hexdigest()
        found = ranks.gather(weights)
        if found is not None:
            print("the weights of all ranks are", "the same" if len(set(found)) == 1 else "NOT THE SAME")
