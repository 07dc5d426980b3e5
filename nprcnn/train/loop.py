"""The training loop. Any data source fits: `len(source)`, and `source[i] -> (image, target)`."""

import time

import numpy as np

from ..data.loader import Loader
from ..errors import ConfigError
from ..layers import Buffer
from . import guards
from .gradients import batch_gradients, make_parts
from .ranks import Alone
from .schedule import make_schedule
from .sgd import SGD, clip_gradients


def train(model, source, *, steps, batch_size=8, accumulate=1, lr=0.02, schedule="step", warmup_steps=100, drops=(2 / 3, 8 / 9),
          momentum=0.9, weight_decay=1e-4, max_grad_norm=10.0, seed=0, augment=None, workers=0, start=0, optimizer=None,
          progress=True, on_step=None, on_failure=None, ranks=None):
    """Train a model in place.

    Parameters
    ----------
    model : MaskRCNN
    source : data source
        `len(source)`, and `source[i] -> (image, target)`, as MaskRCNN.losses wants them.
    steps, batch_size, accumulate : int
        batch_size images go through the network at once; `accumulate` times as many make a step (see gradients.py), on each rank.
    lr, schedule, warmup_steps, drops
        See schedule.make_schedule.
    momentum, weight_decay, max_grad_norm : float
        See SGD and clip_gradients.
    seed : int
        Fixes the order of the images, their augmentation and what the losses sample. (The initial values are the model's.)
    augment, workers
        See nprcnn.data.loader.Loader.
    start, optimizer : int, SGD
        To go on with a training: the first step to take, and the optimiser with its velocity. Given both and the weights, the rest is
        bit for bit what it would have been: all that is random is a function of seed, step and image.
    progress : bool
        Show a progress bar with the five losses.
    on_step : function (step, row), optional
        Called after every step with what the history got.
    on_failure : function (step, part, decisions, text) -> text, optional
        Called where the training diverged, before the error is raised, with the Part of the batch where it began; may add to the text.
        Of several ranks, on the first one only, whichever rank has the Part.
    ranks : Ranks, optional
        To train in several processes at once: each calls this with the same model and arguments (see ranks.py).

    Returns
    -------
    list of dict, one a step: the losses, "loss" (their sum), "lr", "grad_norm" (before clipping), "seconds".

    Raises
    ------
    ConfigError
        The source is smaller than a batch, or the training diverged: a loss or a gradient is NaN or infinite. That step is not taken.
    DataError
        An image or a target cannot be used.

    The same seed gives the same weights, bit for bit, on the same machine.
    """
    from tqdm import tqdm
    optimizer = SGD(model.parameters(), momentum, weight_decay) if optimizer is None else optimizer
    rate = make_schedule(schedule, lr, steps, warmup_steps, drops)
    ranks, history = ranks or Alone(), []
    with Loader(source, batch_size * accumulate * ranks.count, seed, augment, workers, share=ranks.share) as loader, \
            tqdm(total=steps, initial=start, desc="training", unit="step", disable=not progress or ranks.rank > 0) as bar:
        stream, clock = loader.batches(start), time.perf_counter()
        for step in range(start, steps):
            batch, statistics = next(stream), running_statistics(model)
            model.zero_grad()
            with np.errstate(all="ignore"):  # the next lines look at the result
                losses = batch_gradients(model, make_parts(batch, accumulate, seed, step, source), ranks.sum_numbers)
                losses = ranks.sum_numbers(losses)  # the same on all ranks from here on: if one diverged, all see it
                ranks.sum_gradients(optimizer.parameters)
                grad_norm = clip_gradients(optimizer.parameters, max_grad_norm)
            if not np.isfinite([*losses.values(), grad_norm]).all():
                put_back(statistics)
                parts = make_parts(batch, accumulate, seed, step, source)
                raise ConfigError(_failure(model, parts, step, losses, grad_norm, rate(step), on_failure, ranks))
            ranks.average_statistics(statistics)
            optimizer.step(rate(step))

            now = time.perf_counter()
            row = {**losses, "loss": sum(losses.values()), "lr": rate(step), "grad_norm": grad_norm, "seconds": now - clock}
            history.append(row)
            bar.set_postfix_str(progress_text(history), refresh=False)
            bar.update()
            if on_step is not None:
                on_step(step, row)
            clock = time.perf_counter()
    return history


def running_statistics(model):
    """Those of batch norm, which each forward pass in training replaces by new arrays: [(Buffer, its array)]."""
    return [(tensor, tensor.data) for _, tensor in model.named_tensors() if isinstance(tensor, Buffer)]


def put_back(statistics):
    """Undo what forward passes did to them."""
    for buffer, data in statistics:
        buffer.data = data


def _failure(model, parts, step, losses, grad_norm, lr, on_failure, ranks):
    """Find out where a step failed, and put the model back as it was before. Returns the message, the same on all ranks."""
    statistics = running_statistics(model)
    with np.errstate(all="ignore"):
        place, decisions = guards.find_nonfinite(model, parts)
    model.zero_grad()
    put_back(statistics)
    text = guards.explain(place, parts, step, losses, grad_norm, lr)
    found = ranks.gather((place is not None, parts[0 if place is None else place.part], decisions, text))
    if found is not None:
        _, part, decisions, text = max(found, key=lambda of_a_rank: of_a_rank[0])  # the first rank with a place
        if on_failure is not None:
            text = on_failure(step, part, decisions, text)
    return ranks.broadcast(text)


SHORT_NAMES = {"loss_objectness": "obj", "loss_rpn_box_reg": "rpn-box", "loss_classifier": "cls", "loss_box_reg": "box",
               "loss_mask": "mask"}


def progress_text(history, window=20):
    """The losses, averaged over the last steps: one step's are too noisy to read."""
    recent = history[-window:]
    return "  ".join(f"{short} {np.mean([row[name] for row in recent]):.3f}" for name, short in SHORT_NAMES.items()
                     if name in recent[-1])
