"""Exercises of notebook 12: training, and what goes wrong."""

import numpy as np

from .checks import compare


def check_sgd_step(yours):
    """sgd_step(w, v, g, lr, momentum, decay) -> the new w and the new v, both of w's shape."""
    def right(w, v, g, lr, momentum, decay):
        v = momentum * v + g + decay * w
        return w - lr * v, v

    def other(w, v, g, lr, momentum, decay, kind):
        new = momentum * v + g + decay * w
        return {"no decay": lambda: (right(w, v, g, lr, momentum, 0)[0], None),
                "late": lambda: (w - lr * v, new),
                "up": lambda: (w + lr * new, new),
                "nesterov": lambda: (w - lr * (g + decay * w + momentum * new), new),
                "no decay in v": lambda: (None, momentum * v + g),
                "caffe": lambda: (None, momentum * v + lr * (g + decay * w)),
                "keras": lambda: (None, momentum * v - lr * (g + decay * w)),
                "mean": lambda: (w - lr * (momentum * v + (1 - momentum) * (g + decay * w)),
                                 momentum * v + (1 - momentum) * (g + decay * w)),
                "plain": lambda: (w - lr * (g + decay * w), g + decay * w)}[kind]()

    mistakes = [(lambda *a, kind=kind: other(*a, kind), text) for kind, text in (
        ("no decay", "the weight decay is missing: it is added to the gradient, decay * w."),
        ("late", "w moves by the old velocity. First the new velocity, then the step."),
        ("up", "it climbs: the step goes against the gradient, with a minus."),
        ("nesterov", "that is Nesterov's form, which looks one step ahead. Here w moves by v itself."),
        ("no decay in v", "the velocity lacks the weight decay. It is a part of the gradient, and goes through v to w."),
        ("caffe", "the learning rate is inside the velocity. Then a drop of the rate does not reach the steps that v remembers."),
        ("keras", "the learning rate and the sign are inside the velocity: v = momentum v - lr g, w + v. Here v has neither, and w - lr v."),
        ("mean", "the gradient is weighted with 1 - momentum. Here it comes in whole."),
        ("plain", "the old velocity is forgotten: momentum * v."))]
    rng = np.random.default_rng(41)
    cases = [("the first step, v = 0", (rng.standard_normal(4), np.zeros(4), rng.standard_normal(4), 0.1, 0.9, 0.01))]
    for name, momentum, decay in (("with a velocity", 0.9, 0.01), ("no decay", 0.5, 0.0)):
        cases.append((name, (*rng.standard_normal((3, 2, 3)), 0.2, momentum, decay)))
    return compare("sgd_step", yours, right, cases, ("w", "v"), mistakes)


def check_learning_rates(yours):
    """learning_rates(steps (n,) int, base, total, warmup, drops) -> (n,): linear warm-up, / 10 from each drop * total on."""
    def right(steps, base, total, warmup, drops, first=1, reached=np.greater_equal, power=lambda count: 10.0 ** -count,
              warm=True):
        count = sum(reached(steps, drop * total).astype(int) for drop in drops) + np.zeros(len(steps), int)
        rise = np.minimum(1, (steps + first) / warmup) if warmup and warm else 1
        return base * power(count) * rise

    mistakes = [
        (lambda *a: right(*a, first=0),
         "the first step has the rate 0, and does nothing. Step s has (s + 1) / warmup of the rate."),
        (lambda *a: right(*a, warm=False), "there is no warm-up."),
        (lambda *a: right(*a, reached=np.greater),
         "the drop comes a step late: from step drop * total on, that one included."),
        (lambda *a: right(*a, power=lambda count: np.where(count > 0, 0.1, 1.0)),
         "it drops only once. Each of the drops divides by 10."),
        (lambda *a: right(*a, power=lambda count: 1.0 + 0 * count), "the drops are missing."),
        (lambda steps, base, total, warmup, drops: right(steps, base, 1, warmup, drops),
         "drops are parts of the whole: multiply them by total."),
        (lambda steps, base, total, warmup, drops: base * right(steps, 1, total, warmup, drops) / max(warmup, 1)
         if warmup else None, "it is divided by warmup once too often."),
        (lambda steps, base, *rest: right(steps, 0.01, *rest), "base has no effect."),
    ]
    cases = [("the first 12 of 90 steps, 5 of them to warm up", (np.arange(12), 0.02, 90, 5, (2 / 3, 8 / 9))),
             ("around the drops", (np.array([58, 59, 60, 61, 79, 80, 81, 89]), 0.02, 90, 5, (2 / 3, 8 / 9))),
             ("no warm-up, one drop", (np.arange(10), 1.0, 10, 0, (0.5,))),
             ("no drop", (np.arange(4), 0.5, 4, 8, ()))]
    return compare("learning_rates", yours, right, cases, ("rates",), mistakes)


def check_clip_together(yours):
    """clip_together(a, b, most) -> a and b, scaled by one factor so that their common norm is at most `most`."""
    def right(a, b, most, norm=lambda a, b: np.sqrt((a * a).sum() + (b * b).sum()), only_down=True):
        size = norm(a, b)
        factor = most / size if size > most or (not only_down and size) else 1.0
        return a * factor, b * factor

    def alone(a, b, most):
        return tuple(right(g, np.zeros(1), most)[0] for g in (a, b))

    mistakes = [
        (alone, "each gradient is clipped alone, and that changes the direction of the step. There is one norm for all of them."),
        (lambda a, b, most: (np.clip(a, -most, most), np.clip(b, -most, most)),
         "the numbers are clipped one by one, and that changes the direction of the step. Scale all by one factor."),
        (lambda a, b, most: right(a, b, most, only_down=False),
         "small gradients are made larger. Clip only if the norm is above `most`."),
        (lambda a, b, most: right(a, b, most, norm=lambda a, b: (a * a).sum() + (b * b).sum()),
         "the norm lacks the square root."),
        (lambda a, b, most: right(a, b, most, norm=lambda a, b: np.sqrt((a * a).sum()) + np.sqrt((b * b).sum())),
         "the two norms are added. The squares are added, and then comes the root."),
        (lambda a, b, most: right(a, b, most,
                                  norm=lambda a, b: np.sqrt(((a * a).sum() + (b * b).sum()) / (a.size + b.size))),
         "the mean of the squares is taken. The norm has their sum."),
        (lambda a, b, most: right(a, b, most, norm=lambda a, b: max(np.abs(a).max(), np.abs(b).max())),
         "the largest number is taken for the norm. It is the root of the sum of all squares."),
    ]
    rng = np.random.default_rng(43)
    cases = [("far too large", (30 * rng.standard_normal((3, 4)), rng.standard_normal(5), 10.0)),
             ("small enough", (0.1 * rng.standard_normal((3, 4)), 0.1 * rng.standard_normal(5), 10.0)),
             ("a little too large", (3 * rng.standard_normal((3, 4)), 3 * rng.standard_normal(5), 10.0)),
             ("all zero", (np.zeros((2, 2)), np.zeros(3), 1.0))]
    return compare("clip_together", yours, right, cases, ("a", "b"), mistakes)
