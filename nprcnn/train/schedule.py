"""The learning rate of each step."""


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
