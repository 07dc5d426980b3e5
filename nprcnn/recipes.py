"""The two trainings that the package ships: the full one, whose weights come with it, and the demo's two minutes."""

import json
import time

import numpy as np

from .data.shapes import Shapes
from .errors import ConfigError
from .evaluate import evaluate, format_metrics
from .models import maskrcnn_tiny
from .train import train
from .weights import save_weights

HELD_OUT = 200  # scenes that the full recipe is measured on

FULL = dict(steps=6000, batch_size=8, lr=0.03, warmup_steps=200, drops=(0.7, 0.9))

DEMO = dict(steps=300, batch_size=8, lr=0.03, warmup_steps=30, drops=(0.8,))
DEMO_HELD_OUT = 50


def train_shapes(out, seed=0, steps=None):
    """`nprcnn train shapes`: the full recipe, from random weights.

    Writes tiny_shapes.safetensors, history.jsonl (the losses of every step) and result.json (seed, AP, time) to the folder `out`.
    """
    recipe = {**FULL, **({} if steps is None else {"steps": steps})}
    if (out / "result.json").exists():
        raise ConfigError(f"{out} already holds a finished training; give another --out, or remove it")
    out.mkdir(parents=True, exist_ok=True)
    model = maskrcnn_tiny(rng=np.random.default_rng(seed))
    start = time.perf_counter()
    history = train(model, Shapes(recipe["steps"] * recipe["batch_size"], seed), seed=seed, **recipe)
    seconds = time.perf_counter() - start
    save_weights(model, out / "tiny_shapes.safetensors")
    (out / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in history))
    metrics = evaluate(model, Shapes.held_out(HELD_OUT))
    (out / "result.json").write_text(json.dumps(
        {"command": f"nprcnn train shapes --out {out.name} --seed {seed}" + (f" --steps {steps}" if steps else ""),
         "seed": seed, "recipe": recipe, "minutes": round(seconds / 60, 1), "held_out_scenes": HELD_OUT,
         "metrics": metrics}, indent=1) + "\n")
    print(format_metrics(metrics))
    print(f"wrote {out / 'tiny_shapes.safetensors'}")


def train_demo(seed=0):
    """The demo's training on easy scenes. Returns the model and its mask AP50 on held-out ones."""
    model = maskrcnn_tiny(rng=np.random.default_rng(seed), **DEMO_MODEL)
    train(model, Shapes(DEMO["steps"] * DEMO["batch_size"], seed, "easy"), seed=seed, **DEMO)
    metrics = evaluate(model, Shapes.held_out(DEMO_HELD_OUT, "easy"), progress=False)
    return model, metrics["segm"]["AP50"]


DEMO_MODEL = dict(min_size=96)
