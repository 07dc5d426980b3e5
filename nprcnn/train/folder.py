"""A training in a folder: it can be killed at any moment and goes on where its last checkpoint was.

    history.jsonl                      a line a step (log.py)
    curves.png                         drawn from it
    checkpoint.safetensors             to go on from (checkpoint.py); checkpoint-previous.safetensors: the one before
    best.safetensors                   the weights with the best validation AP so far
    weights.safetensors                the weights at the end
    replay.npz, failed.safetensors     only where the training diverged (guards.py)
"""

import json
from pathlib import Path

from ..errors import ConfigError, DataError, NprcnnError, WeightsError
from ..weights import save_weights
from .checkpoint import LAST, PREVIOUS, differences, latest_checkpoint, restore, save_checkpoint
from .guards import save_replay
from .log import Log, draw_curves
from .loop import train
from .sgd import SGD
from .start import model_metadata

# What may change when a training goes on: nothing that is computed depends on it.
FREE = ("workers",)
# And what changes roundings only: K batches of B images are one of K * B. A step must have as many images as before.
ROUNDING = ("batch_size", "accumulate")


def train_in_folder(model, source, out, config, *, validate=None, validate_every=0, save_every=100, draw_every=None, resume=False,
                    progress=True, say=print):
    """Train in a folder.

    Parameters
    ----------
    model : MaskRCNN
        With its initial values, those loaded, and what is frozen.
    source : data source
    out : path
        The folder; made if it is not there.
    config : dict of dicts, which JSON can hold
        "training": the arguments of `train`. "model": {"builder", "arguments"}. "data", and whatever else a training that goes on must
        have in common with the one before.
    validate : function model -> metrics, optional
        See nprcnn.evaluate. The best model by the AP of masks (else of boxes) is kept.
    validate_every, save_every, draw_every : int
        Steps between validations (0: none), checkpoints and drawings of the curves (0: none; None: with each checkpoint). The last
        step is followed by all three.
    resume : bool
        Go on from the last checkpoint in `out`, if there is one.
    say : function str -> None
        Takes the sentences that a user should read.

    Returns
    -------
    list of dict : the rows of the log

    Raises
    ------
    ConfigError
        The folder holds a training and `resume` is False; the configuration is another; the training diverged.
    DataError, WeightsError
        See `train`, latest_checkpoint and save_checkpoint; the data set is another than before.
    """
    out, config = Path(out), json.loads(json.dumps(config))
    out.mkdir(parents=True, exist_ok=True)
    training = config["training"]
    draw_every = save_every if draw_every is None else draw_every
    optimizer = SGD(model.parameters(), training.get("momentum", 0.9), training.get("weight_decay", 1e-4))
    start, best = 0, {"AP": -1.0, "step": None}
    if (out / LAST).exists() or (out / PREVIOUS).exists():
        if not resume:
            raise ConfigError(f"{out} already holds a training; go on with it by --resume, or give another --out")
        checkpoint, note = latest_checkpoint(out)
        if note:
            say(note)
        _check_same(checkpoint.about["config"], config, out, say)
        restore(checkpoint, model, optimizer, out)
        start, best = checkpoint.step, checkpoint.about["best"]
        say(f"going on after step {start} of {training['steps']}")
    elif resume:
        say(f"{out} holds no checkpoint yet; beginning with step 0")
    try:
        log = Log(out / "history.jsonl", start)
    except OSError as error:
        raise _full(out, error) from error

    def on_step(step, row):
        nonlocal best
        done = step + 1
        at_end = done == training["steps"]
        try:
            log.append({"step": step, **row})
            if validate is not None and validate_every and (done % validate_every == 0 or at_end):
                metrics = validate(model)
                log.append({"step": step, "validation": metrics})
                ap = metrics.get("segm", metrics["bbox"])["AP"]
                if ap > best["AP"]:
                    best = {"AP": ap, "step": done}
                    save_weights(model, out / "best.safetensors", {**model_metadata(config), "AP": f"{ap:.4f}", "step": str(done)})
            if done % save_every == 0 or at_end:
                log.sync()
                save_checkpoint(out / LAST, model, optimizer, done, {"config": config, "best": best})
            if draw_every and (done % draw_every == 0 or at_end):
                draw_curves(log.rows, out / "curves.png", out.name)
        except OSError as error:
            raise _full(out, error) from error

    def on_failure(step, part, decisions, text):
        try:
            save_checkpoint(out / "failed.safetensors", model, optimizer, step, {"config": config, "best": best}, keep=None)
            save_replay(out / "replay.npz", step, part, decisions, "failed.safetensors", text)
        except NprcnnError as error:
            return f"{text} (and nothing to replay it could be saved: {error})"
        return f"{text}. See it again, stage by stage: nprcnn train --replay {out / 'replay.npz'}"

    try:
        train(model, source, start=start, optimizer=optimizer, progress=progress, on_step=on_step, on_failure=on_failure,
              **arguments(training))
        save_weights(model, out / "weights.safetensors", model_metadata(config))
    except OSError as error:
        raise _full(out, error) from error
    finally:
        log.close()
    return log.rows


def arguments(training):
    """The arguments of `train` from a configuration that went through JSON."""
    from ..data.transforms import Augment
    training = dict(training)
    if training.get("augment") is not None:
        training["augment"] = Augment(**{name: tuple(v) if isinstance(v, list) else v for name, v in training["augment"].items()})
    return training


def _check_same(stored, now, out, say):
    """ConfigError or DataError if a training would go on as another one."""
    free, own = dict(stored["training"]), dict(now["training"])
    if _images_a_step(free) == _images_a_step(own):
        changed = [f"{name} was {free.get(name)} and is {own.get(name)}" for name in ROUNDING if free.get(name) != own.get(name)]
        if changed:
            say(f"{' and '.join(changed)}: the same but for rounding, no longer bit for bit")
        free.update({name: own.get(name) for name in ROUNDING})
    free.update({name: own.get(name) for name in FREE})
    found = differences({**stored, "training": free}, now)
    if any(text.startswith("model.") for text in found):
        raise WeightsError(f"{out}: the checkpoint is of another model: {'; '.join(found[:3])}. Give the same --model and --set, or "
                           "another --out.")
    if any(text.startswith("data.") for text in found):
        raise DataError(f"{out}: the data set has changed since the training began: {'; '.join(found[:3])}. Put it back as it was, or "
                        "begin anew in another --out (--weights may be this training's last ones).")
    if found:
        raise ConfigError(f"{out}: the training began otherwise: {'; '.join(found[:3])}. Go on with what it began with, or give another "
                          "--out.")


def _images_a_step(training):
    return training.get("batch_size", 8) * training.get("accumulate", 1)


def _full(out, error):
    """The error for a file of the training that cannot be written."""
    for partial in out.glob("*.partial"):  # its space may be what is missing
        partial.unlink(missing_ok=True)
    kept = [name for name in (LAST, PREVIOUS) if (out / name).exists()]
    return WeightsError(f"{out} cannot be written to ({error.strerror or error}); "
                        + (f"{kept[0]} stands. Make room, then go on with --resume." if kept else "make room, and begin again."))
