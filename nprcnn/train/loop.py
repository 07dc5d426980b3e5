"""The training loop. Any data source fits: `len(source)`, and `source[i] -> (image, target)`."""

import numpy as np

from ..errors import ConfigError
from .schedule import step_schedule
from .sgd import SGD, clip_gradients


def batches(source, batch_size, seed):
    """Endless batches: every epoch visits the source once, in a new order that the seed fixes. What does not fill the last batch of an
    epoch is left out of it.

    Yields
    ------
    images, targets : tuples of `batch_size` each

    Raises
    ------
    ConfigError
        The source is smaller than a batch.
    """
    if len(source) < batch_size:
        raise ConfigError(f"a batch of {batch_size} from a data set of {len(source)}: choose a smaller batch")
    rng = np.random.default_rng([seed, 0])
    while True:
        order = rng.permutation(len(source))
        for start in range(0, len(source) - batch_size + 1, batch_size):
            yield tuple(zip(*(source[int(i)] for i in order[start:start + batch_size])))


def train(model, source, *, steps, batch_size=8, lr=0.02, warmup_steps=100, drops=(2 / 3, 8 / 9), momentum=0.9,
          weight_decay=1e-4, max_grad_norm=10.0, seed=0, progress=True, on_step=None):
    """Train a model in place.

    Parameters
    ----------
    model : MaskRCNN
    source : data source
        `len(source)`, and `source[i] -> (image, target)`, as MaskRCNN.losses wants them.
    steps, batch_size : int
    lr, warmup_steps, drops
        See step_schedule.
    momentum, weight_decay, max_grad_norm : float
        See SGD and clip_gradients.
    seed : int
        Fixes the order of the images and what the losses sample. (The initial values are the model's.)
    progress : bool
        Show a progress bar with the five losses.
    on_step : function (step, row), optional
        Called after every step with what the history got.

    Returns
    -------
    list of dict, one a step: the losses, "loss" (their sum), "lr" and "grad_norm" (before clipping).

    Raises
    ------
    ConfigError
        The source is smaller than a batch, or the training diverged: a loss is NaN or infinite. No step is taken from there.
    DataError
        An image or a target cannot be used.

    The same seed gives the same weights, bit for bit, on the same machine.
    """
    from tqdm import tqdm
    optimizer = SGD(model.parameters(), momentum, weight_decay)
    schedule = step_schedule(lr, steps, warmup_steps, drops)
    rng = np.random.default_rng([seed, 1])
    stream = batches(source, batch_size, seed)
    history = []
    with tqdm(total=steps, desc="training", unit="step", disable=not progress) as bar:
        for step in range(steps):
            images, targets = next(stream)
            losses, cache = model.losses(list(images), list(targets), rng)
            _check_finite(losses, step, lr)
            model.zero_grad()
            model.backward(cache)
            del cache  # the largest arrays of the step, not needed any more
            grad_norm = clip_gradients(model.parameters(), max_grad_norm)
            optimizer.step(schedule(step))
            row = {name: float(value) for name, value in losses.items()}
            row.update(loss=sum(row.values()), lr=schedule(step), grad_norm=grad_norm)
            history.append(row)
            bar.set_postfix_str(progress_text(history), refresh=False)
            bar.update()
            if on_step is not None:
                on_step(step, row)
    return history


def _check_finite(losses, step, lr):
    """From a NaN on, every weight would become NaN: better one sentence now than hours of it."""
    bad = [f"{name} is {float(value)}" for name, value in losses.items() if not np.isfinite(value)]
    if bad:
        raise ConfigError(f"the training diverged: at step {step} {', '.join(bad)}; lower the learning rate (lr={lr:g}) or warm up longer")


SHORT_NAMES = {"loss_objectness": "obj", "loss_rpn_box_reg": "rpn-box", "loss_classifier": "cls", "loss_box_reg": "box",
               "loss_mask": "mask"}


def progress_text(history, window=20):
    """The losses, averaged over the last steps: one step's are too noisy to read."""
    recent = history[-window:]
    return "  ".join(f"{short} {np.mean([row[name] for row in recent]):.3f}" for name, short in SHORT_NAMES.items()
                     if name in recent[-1])
