"""The whole model on a GPU: prediction and training step of maskrcnn_resnet50_fpn, beside torchvision's with its weights and image."""

import time

import numpy as np

from ... import backend, devices
from ..run import _median_of_each, _summary
from ..stopwatch import Stopwatch
from ..subject import scene
from ..systems import Nprcnn, Torchvision, build
from .clock import WaitingStopwatch, count_synchronisations, tf32_products

# Of a box's corner, in pixels of the image, in float32: sums of some thousand products through fifty layers, in another order. The
# CPU bench finds some 1e-3.
SAME_BOX = 0.05
# What nprcnn's convolutions may do; torch's are in the same precision
MODES = {"float32": {}, "float32, Winograd": {"winograd": True}, "tf32": {"tf32": True}}


def build_ours(threads):
    """maskrcnn_resnet50_fpn of nprcnn on the GPU, with the seeded weights."""
    system = build("nprcnn", threads)
    return Nprcnn(system.model.to("cuda"), system.image, system.target)     # anew, for the optimiser's arrays must lie there, too


class TorchvisionOnGpu(Torchvision):
    """torchvision's model on the GPU; what it finds comes to the CPU, as nprcnn's does."""

    def __init__(self, rival, threads):
        super().__init__(threads, *scene())
        self.model.to(rival.device)
        self.image = self.image.to(rival.device)
        self.target = {name: tensor.to(rival.device) for name, tensor in self.target.items()}

    def predict(self):
        return {name: tensor.cpu() for name, tensor in super().predict().items()}


def compare(cupy, clock, ours, theirs, rival, choices, rounds, say):
    """Time both systems in one mode, in alternating rounds.

    Parameters
    ----------
    ours : Nprcnn
    theirs : Torchvision or None
    rival : rivals.Torch or None, which knows how to set torch's precision
    choices : one of MODES, for backend.use

    Returns
    -------
    dict of plain numbers: "systems", "agreement", "synchronisations", "copies"
    """
    tf32 = choices.get("tf32", False)
    with backend.use("cupy", **choices), tf32_products(cupy, tf32):
        if rival is None:
            return _compare(cupy, clock, [ours], rounds, say)
        with rival.precision(tf32):
            return _compare(cupy, clock, [ours, theirs], rounds, say)


def _compare(cupy, clock, systems, rounds, say):
    result = {"rounds": rounds, "systems": {system.name: {} for system in systems}}
    for system in systems:
        say(f"first run of {system.name}")
        system.predict()
    result["agreement"] = agreement(systems[0].predict(), systems[1].predict()) if len(systems) > 1 else None
    result["synchronisations"], result["copies"] = _count_waiting(cupy, systems[0])

    seconds = {system.name: [] for system in systems}
    stages = {system.name: [] for system in systems}
    for i in range(rounds):
        say(f"prediction, round {i + 1} of {rounds}")
        for system in systems:
            seconds[system.name].append(clock.wall_ms(system.predict) / 1e3)
            stopwatch = WaitingStopwatch(clock.wait)
            with stopwatch.watch(system.places()):
                system.predict()
            stages[system.name].append(stopwatch.seconds)
    parts = {system.name: [] for system in systems}
    steps = {system.name: [] for system in systems}
    for i in range(rounds + 2):
        say(f"training step, round {i - 1} of {rounds}" if i > 1 else "training step, warming up")
        for system in systems:
            stopwatch = WaitingStopwatch(clock.wait)
            clock.wait()
            start = time.perf_counter()
            system.train_step(stopwatch)
            clock.wait()
            if i > 1:
                steps[system.name].append(time.perf_counter() - start)
                parts[system.name].append(stopwatch.seconds)
    for name, entry in result["systems"].items():
        entry.update(predict=_summary(seconds[name]), stages=_median_of_each(stages[name]), train=_summary(steps[name]),
                     train_parts=_median_of_each(parts[name]))
    result["systems"]["nprcnn"]["gpu_memory_bytes"] = int(cupy.get_default_memory_pool().total_bytes())
    return result


def _count_waiting(cupy, system):
    """How often CuPy waits for the GPU in a prediction and in a training step, and what is copied: (counts, tables)."""
    counts, tables = {}, {}
    for name, run in (("predict", system.predict), ("train", lambda: system.train_step(Stopwatch()))):
        with count_synchronisations(cupy) as waits, devices.count_copies() as copies:
            run()
        counts[name], tables[name] = len(waits), str(copies).splitlines()
    return counts, tables


def agreement(mine, theirs):
    """How nprcnn's detections and torchvision's fit together: each of the one has one of the other, with its label and nearly its box.

    mine : Detections; theirs : torchvision's dict, on the CPU.
    """
    boxes, labels, scores = (theirs[name].numpy() for name in ("boxes", "labels", "scores"))
    free, distances, score_errors = list(range(len(labels))), [], []
    for box, label, score in zip(mine.boxes, mine.labels, mine.scores):
        candidates = [(float(np.abs(boxes[i] - box).max()), i) for i in free if labels[i] == label]
        if not candidates or min(candidates)[0] > SAME_BOX:
            continue
        distance, i = min(candidates)
        free.remove(i)
        distances.append(distance)
        score_errors.append(abs(float(scores[i]) - float(score)))
    return {"detections": len(mine.labels), "torchvision": len(labels), "same": len(distances),
            "largest_box_difference": max(distances, default=None), "largest_score_difference": max(score_errors, default=None),
            "equal": len(distances) == len(mine.labels) == len(labels)}
