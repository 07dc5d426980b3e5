"""How the cost grows: prediction time against pixels, RoIs and images, and the straight line that fits best."""

import time

import numpy as np

from .. import threads as thread_setting
from .systems import build

# What is varied -> five values. The sides are min_size: the image becomes (side, side * 730 / 480).
SIZES = (320, 480, 640, 800, 960)
ROIS = (200, 400, 600, 800, 1000)
BATCHES = (1, 2, 3, 4)


def sweep(rounds=3, sizes=SIZES, rois=ROIS, batches=BATCHES, system=None, say=print):
    """Median seconds of nprcnn's predict for each value, in alternating rounds.

    Parameters
    ----------
    rounds : int
    sizes, rois, batches : tuples of int
        Short sides of the resized image; proposals that reach the box head; images in a call.
    system : Nprcnn, optional
        maskrcnn_resnet50_fpn with seeded weights if not given. Its settings are as before when this returns.
    say : function of a str

    Returns
    -------
    {"pixels" | "RoIs" | "images": {"x": [...], "seconds": [...], "slope", "intercept", "largest_residual"}}
        x as it came out: pixels of the padded input, RoIs that there were. The residual is relative to the line.
    """
    system = system or build("nprcnn", thread_setting.get_num_threads())
    model = system.model
    kept = model.min_size, model.max_size, model.rpn_post_nms_top_n_test, model.rpn_pre_nms_top_n_test

    def set_size(side):
        model.min_size, model.max_size = side, 2 * side
        return [system.image]

    def set_rois(count):
        model.rpn_post_nms_top_n_test = count
        return [system.image]

    result = {}
    try:
        for name, values, prepare, measure in (("pixels", sizes, set_size, _pixels), ("RoIs", rois, set_rois, _rois),
                                               ("images", batches, lambda count: [system.image] * count, len)):
            x, seconds = [None] * len(values), [[] for _ in values]
            for i in range(rounds + 1):
                say(f"sweep over {name}, round {i} of {rounds}" if i else f"sweep over {name}, first run")
                for k, value in enumerate(values):
                    images = prepare(value)
                    if i == 0:
                        x[k] = measure(images) if measure is len else measure(model, images)
                        continue
                    start = time.perf_counter()
                    model.predict(images)
                    seconds[k].append(time.perf_counter() - start)
            result[name] = line(x, [float(np.median(s)) for s in seconds])
            model.min_size, model.max_size, model.rpn_post_nms_top_n_test, model.rpn_pre_nms_top_n_test = kept
    finally:
        model.min_size, model.max_size, model.rpn_post_nms_top_n_test, model.rpn_pre_nms_top_n_test = kept
    return result


def _traced(model, images):
    from ..trace import Trace
    trace = Trace()
    model.predict(images, trace=trace)
    return trace


def _pixels(model, images):
    return int(np.prod(_traced(model, images)["transform.batch"].shape[2:]))


def _rois(model, images):
    return sum(len(proposals) for proposals in _traced(model, images)["rpn.proposals"])


def line(x, seconds):
    """Least squares; the largest residual is relative to the line's value."""
    slope, intercept = np.polyfit(x, seconds, 1)
    fitted = slope * np.array(x) + intercept
    return {"x": list(x), "seconds": list(seconds), "slope": float(slope), "intercept": float(intercept),
            "largest_residual": float(np.abs(np.array(seconds) / fitted - 1).max())}
