"""The learning rate of each step: functions of the step alone, so that a resumed training needs to know no more than where it is."""

import math

from ..errors import ConfigError


def step_schedule(base_lr, total_steps, warmup_steps, drops=(2 / 3, 8 / 9), factor=0.1):
    """Linear warm-up, then `base_lr`, multiplied by `factor` at each of `drops` (fractions of total_steps).

    The paper's schedule (section 3.1): drops at 120k of 160k steps. The default drops are those of Detectron.
    Without the warm-up the first steps, with random heads and momentum, can throw the weights far off (Goyal et al. 2017).

    Parameters
    ----------
    base_lr : float
    total_steps, warmup_steps : int
        In the warm-up the rate rises from base_lr / warmup_steps to base_lr; 0: none.
    drops : sequence of float in 0..1
    factor : float

    Returns
    -------
    function step -> learning rate, for step 0 .. total_steps - 1
    """
    def lr(step):
        rate = base_lr * factor ** sum(step >= d * total_steps for d in drops)
        return rate * min(1.0, (step + 1) / warmup_steps) if warmup_steps else rate
    return lr


def cosine_schedule(base_lr, total_steps, warmup_steps, last=0.0):
    """Linear warm-up, then half a cosine from `base_lr` down to `last` (Loshchilov and Hutter, arXiv 1608.03983, equation 5, without
    restarts). It has no drops to choose.

    Parameters
    ----------
    base_lr, last : float
        `last` would be reached at step total_steps, which is not taken any more.
    total_steps, warmup_steps : int
        As for step_schedule. The cosine begins where the warm-up ends.

    Returns
    -------
    function step -> learning rate, for step 0 .. total_steps - 1
    """
    def lr(step):
        if step < warmup_steps:
            return base_lr * (step + 1) / warmup_steps
        done = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
        return last + (base_lr - last) * (1 + math.cos(math.pi * done)) / 2
    return lr


SCHEDULES = ("step", "cosine")


def make_schedule(name, base_lr, total_steps, warmup_steps, drops=(2 / 3, 8 / 9)):
    """The schedule of that name. `drops` are for "step" alone. ConfigError for another name."""
    if name == "step":
        return step_schedule(base_lr, total_steps, warmup_steps, drops)
    if name == "cosine":
        return cosine_schedule(base_lr, total_steps, warmup_steps)
    raise ConfigError(f"schedule={name!r} is not one of {', '.join(SCHEDULES)}")
