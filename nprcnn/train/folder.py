"""A training in a folder: it can be killed at any moment and goes on where its last checkpoint was.

    history.jsonl                      a line a step (log.py)
    curves.png                         drawn from it
    checkpoint.safetensors             to go on from (checkpoint.py); checkpoint-previous.safetensors: the one before
    best.safetensors                   the weights with the best validation AP so far
    weights.safetensors                the weights at the end
    replay.npz, failed.safetensors     only where the training diverged (guards.py)
"""

import json
import math
from pathlib import Path

from ..errors import ConfigError, DataError, NprcnnError, WeightsError
from ..weights import save_weights
from .checkpoint import LAST, PREVIOUS, differences, latest_checkpoint, restore, save_checkpoint
from .guards import save_replay
from .log import Log, draw_curves
from .loop import train
from .ranks import Alone
from .sgd import SGD
from .start import model_metadata

# What may change when a training goes on: nothing that is computed depends on it.
FREE = ("workers",)
# And what changes roundings only: K batches of B images on each of R ranks are one of R * K * B. A step must have as many images as before.
ROUNDING = {"batch_size": 8, "accumulate": 1, "ranks": 1}  # and what they are if nothing is said


def train_in_folder(model, source, out, config, *, validate=None, validate_every=0, save_every=100, draw_every=None, resume=False,
                    progress=True, say=print, ranks=None):
    """Train in a folder.

    Parameters
    ----------
    model : MaskRCNN
        With its initial values, those loaded, and what is frozen.
    source : data source
    out : path
        The folder; made if it is not there. Of several ranks, the first one alone reads and writes there.
    config : dict of dicts, which JSON can hold
        "training": the arguments of `train`. "model": {"builder", "arguments"}. "data", and whatever else a training that goes on must
        have in common with the one before.
    validate : function model -> metrics, optional
        See nprcnn.evaluate. The best model by the AP of masks (else of boxes) is kept. Of several ranks, each is asked and may do a share
        of the work; the metrics are those of the first one.
    validate_every, save_every, draw_every : int
        Steps between validations (0: none), checkpoints and drawings of the curves (0: none; None: with each checkpoint). The last
        step is followed by all three.
    resume : bool
        Go on from the last checkpoint in `out`, if there is one.
    say : function str -> None
        Takes the sentences that a user should read.
    ranks : Ranks, optional
        To train in several processes at once: each calls this with the same arguments (see ranks.py).

    Returns
    -------
    list of dict : the rows of the log; on other ranks than the first none

    Raises
    ------
    ConfigError
        The folder holds a training and `resume` is False; the configuration is another, or that of another rank is; the training diverged.
    DataError, WeightsError
        See `train`, latest_checkpoint and save_checkpoint; the data set is another than before.
    """
    out, config, ranks = Path(out), json.loads(json.dumps(config)), ranks or Alone()
    training = config["training"]
    draw_every = save_every if draw_every is None else draw_every
    optimizer = SGD(model.parameters(), training.get("momentum", 0.9), training.get("weight_decay", 1e-4))

    def validation_is_due(done):
        return validate is not None and validate_every and (done % validate_every == 0 or done == training["steps"])

    if ranks.count > 1:
        training["ranks"] = ranks.count
        _check_ranks(config, ranks)
    if ranks.rank > 0:
        start = _same_beginning(None, model, optimizer, ranks)
        train(model, source, start=start, optimizer=optimizer, ranks=ranks, **arguments(training),
              on_step=lambda step, row: validation_is_due(step + 1) and validate(model))
        return []

    out.mkdir(parents=True, exist_ok=True)
    start, best = _go_on(out, config, model, optimizer, resume, say)
    _same_beginning(start, model, optimizer, ranks)
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
            if validation_is_due(done):
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
        train(model, source, start=start, optimizer=optimizer, progress=progress, on_step=on_step, on_failure=on_failure, ranks=ranks,
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
    training = {name: value for name, value in training.items() if name != "ranks"}
    if training.get("augment") is not None:
        training["augment"] = Augment(**{name: tuple(v) if isinstance(v, list) else v for name, v in training["augment"].items()})
    return training


def _go_on(out, config, model, optimizer, resume, say):
    """Put the last checkpoint in `out` back, if there is one. Returns the first step to take, and the best AP so far."""
    if (out / LAST).exists() or (out / PREVIOUS).exists():
        if not resume:
            raise ConfigError(f"{out} already holds a training; go on with it by --resume, or give another --out")
        checkpoint, note = latest_checkpoint(out)
        if note:
            say(note)
        _check_same(checkpoint.about["config"], config, out, say)
        restore(checkpoint, model, optimizer, out)
        say(f"going on after step {checkpoint.step} of {config['training']['steps']}")
        return checkpoint.step, checkpoint.about["best"]
    if resume:
        say(f"{out} holds no checkpoint yet; beginning with step 0")
    return 0, {"AP": -1.0, "step": None}


def _check_ranks(config, ranks):
    """ConfigError if this rank was started with another configuration than rank 0, such as another machine's data set."""
    found = differences(ranks.broadcast(config), config)
    if found:
        raise ConfigError(f"rank {ranks.rank} must train as rank 0 does, but {'; '.join(found[:3])} here")


def _same_beginning(start, model, optimizer, ranks):
    """Give every rank what rank 0 begins with: weights, running statistics, velocity. Returns the first step to take."""
    for _, tensor in model.named_tensors():
        tensor.data = ranks.broadcast(tensor.data)
    optimizer.velocity = [ranks.broadcast(v) for v in optimizer.velocity]
    return ranks.broadcast(start)


def _check_same(stored, now, out, say):
    """ConfigError or DataError if a training would go on as another one."""
    free, own = ({**ROUNDING, **config["training"]} for config in (stored, now))
    before, after = (math.prod(training[name] for name in ROUNDING) for training in (free, own))
    if before == after:
        changed = [f"{name} was {free[name]} and is {own[name]}" for name in ROUNDING if free[name] != own[name]]
        if changed:
            say(f"{' and '.join(changed)}: the same but for rounding (more where batch norm is not frozen), no longer bit for bit")
        free.update({name: own[name] for name in ROUNDING})
    free.update({name: own.get(name) for name in FREE})
    found = differences({**stored, "training": free}, {**now, "training": own})
    if any(text.startswith("model.") for text in found):
        raise WeightsError(f"{out}: the checkpoint is of another model: {'; '.join(found[:3])}. Give the same --model and --set, or "
                           "another --out.")
    if any(text.startswith("data.") for text in found):
        raise DataError(f"{out}: the data set has changed since the training began: {'; '.join(found[:3])}. Put it back as it was, or "
                        "begin anew in another --out (--weights may be this training's last ones).")
    if found:
        raise ConfigError(f"{out}: the training began otherwise: {'; '.join(found[:3])}. Go on with what it began with, or give another "
                          "--out." + (f" A step had {before} images, and would have {after}." if before != after else ""))


def _full(out, error):
    """The error for a file of the training that cannot be written."""
    for partial in out.glob("*.partial"):  # its space may be what is missing
        partial.unlink(missing_ok=True)
    kept = [name for name in (LAST, PREVIOUS) if (out / name).exists()]
    return WeightsError(f"{out} cannot be written to ({error.strerror or error}); "
                        + (f"{kept[0]} stands. Make room, then go on with --resume." if kept else "make room, and begin again."))
