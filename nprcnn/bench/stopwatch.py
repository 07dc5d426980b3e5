"""Which stage the time goes to: the methods of a model, replaced for a while by ones that look at the clock."""

import time
from contextlib import contextmanager


class Stopwatch:
    """Seconds a stage, each without the stages that run inside it.

    `now` is the name of the stage that runs; None between stages.
    """

    def __init__(self):
        self.seconds = {}
        self._running = []  # [name, seconds spent in stages inside it]

    @property
    def now(self):
        return self._running[-1][0] if self._running else None

    def watched(self, stage, function):
        """`function`, timed as part of `stage`."""
        def run(*args, **kwargs):
            self._running.append([stage, 0.0])
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                total = time.perf_counter() - start
                _, inside = self._running.pop()
                self.seconds[stage] = self.seconds.get(stage, 0.0) + total - inside
                if self._running:
                    self._running[-1][1] += total
        return run

    @contextmanager
    def watch(self, places):
        """While the block runs, time these functions. places: (stage, owner, name of the owner's attribute)."""
        replaced = []
        try:
            for stage, owner, name in places:
                original = getattr(owner, name)
                own = name in vars(owner)  # a module's function, not an instance's method
                setattr(owner, name, self.watched(stage, original))
                replaced.append((owner, name, original, own))
            yield self
        finally:
            for owner, name, original, own in reversed(replaced):
                if own:
                    setattr(owner, name, original)
                else:
                    delattr(owner, name)


# The stages of a detector, in order. "proposals": anchors, decoding, filter; "detections": softmax, decoding, filter.
STAGES = ("transform", "backbone", "FPN", "RPN head", "proposals", "RoIAlign", "box head", "detections", "mask head", "paste")


def roi_head_places(roi_heads, method="forward"):
    """The parts of the second stage that nprcnn and torchvision call by the same names."""
    parts = [("box head", "box_head"), ("box head", "box_predictor"), ("mask head", "mask_head"), ("mask head", "mask_predictor")]
    return [(stage, getattr(roi_heads, name), method) for stage, name in parts if getattr(roi_heads, name, None) is not None]
