"""The two trainings that the package ships: the full one, whose weights come with it, and the demo's two minutes."""

import json
from contextlib import contextmanager

import numpy as np

from .data.shapes import Shapes
from .errors import ConfigError
from .evaluate import evaluate, format_metrics
from .models import maskrcnn_tiny
from .threads import get_num_threads, set_num_threads
from .train import train, train_in_folder
from .weights import save_weights

HELD_OUT = 200  # scenes that the full recipe is measured on

FULL = dict(steps=10_000, batch_size=4, lr=0.01, warmup_steps=200, drops=(0.7, 0.9))
SAVE_EVERY = 500  # steps

DEMO = dict(steps=1000, batch_size=4, lr=0.01, warmup_steps=40, drops=(0.8,))
DEMO_MODEL = dict(min_size=96, width=16, blocks=(1, 1, 1, 1), fpn_channels=32, mask_channels=(32, 32))
DEMO_HELD_OUT = 50


@contextmanager
def for_small_arrays():
    """One thread: of the tiny model's arrays there is nothing to share, and a second thread waits for the first one."""
    threads = get_num_threads()
    set_num_threads(1)
    try:
        yield
    finally:
        set_num_threads(threads)


def train_shapes(out, seed=0, steps=None, resume=False):
    """`nprcnn train shapes`: the full recipe, from random weights.

    Writes to the folder `out` what train_in_folder writes (history.jsonl, checkpoints to go on from, curves.png), and at the end
    tiny_shapes.safetensors, the weights, and result.json, the seed, the time and the AP on HELD_OUT scenes.
    """
    recipe = {**FULL, **({} if steps is None else {"steps": steps})}
    if (out / "result.json").exists():
        raise ConfigError(f"{out} already holds a finished training; give another --out, or remove it")
    source = Shapes(recipe["steps"] * recipe["batch_size"], seed)
    model = maskrcnn_tiny(rng=np.random.default_rng(seed), class_names=Shapes.class_names)
    config = {"model": {"builder": "maskrcnn_tiny", "arguments": {"class_names": Shapes.class_names}},
              "data": {"scenes": len(source), "seed": seed}, "training": {**recipe, "seed": seed}}
    with for_small_arrays():
        rows = train_in_folder(model, source, out, config, save_every=SAVE_EVERY, resume=resume)
    save_weights(model, out / "tiny_shapes.safetensors")
    metrics = evaluate(model, Shapes.held_out(HELD_OUT))
    (out / "result.json").write_text(json.dumps(
        {"command": f"nprcnn train shapes --out {out.name} --seed {seed}" + (f" --steps {steps}" if steps else ""),
         "seed": seed, "recipe": recipe, "minutes": round(sum(row["seconds"] for row in rows) / 60, 1), "held_out_scenes": HELD_OUT,
         "metrics": metrics}, indent=1) + "\n")
    print(format_metrics(metrics))
    print(f"wrote {out / 'tiny_shapes.safetensors'}")


def train_demo(seed=0):
    """The demo's training on easy scenes. Returns the model and its mask AP50 on held-out ones."""
    model = maskrcnn_tiny(rng=np.random.default_rng(seed), **DEMO_MODEL)
    with for_small_arrays():
        train(model, Shapes(DEMO["steps"] * DEMO["batch_size"], seed, "easy"), seed=seed, **DEMO)
    metrics = evaluate(model, Shapes.held_out(DEMO_HELD_OUT, "easy"), progress=False)
    return model, metrics["segm"]["AP50"]
