"""The rounds: every system once, then every system again."""

import platform
import sys
import time
from pathlib import Path

import numpy as np

from .. import backend, threads as thread_setting
from ..errors import ConfigError
from .memory import peak_mib
from .stopwatch import Stopwatch
from .systems import NAMES, Nprcnn, build
from .work import Work, gemm_peak


def bench(systems=NAMES, rounds=5, masks=True, training=False, memory=True, onnx_folder=None, say=print):
    """Time prediction (and a training step) of each system that is installed.

    Parameters
    ----------
    systems : names out of systems.NAMES, or ready Nprcnn objects
    rounds : int
    masks : bool
        False: Faster R-CNN.
    training : bool
        Also time a training step: 6 objects, 512 RoIs. Only of nprcnn and torchvision.
    memory : bool
        Also measure peak memory, in processes of their own.
    onnx_folder : path, optional
        Where the exported models are kept for the next time. None: they are exported anew.
    say : function of a str
        Told what is going on.

    Returns
    -------
    dict of plain numbers, for `format_report` and for JSON.
    """
    count = thread_setting.get_num_threads()
    thread_setting.set_num_threads(count)
    onnx_folder = onnx_folder and Path(onnx_folder).resolve()
    ready, left_out = _ready(systems, count, masks, onnx_folder, say)
    result = {"machine": machine(count), "rounds": rounds, "masks": masks, "left_out": left_out, "systems": {}}
    result["work"] = _count_work(ready[0]) if isinstance(ready[0], Nprcnn) else None
    result["agreement"] = _agreement(ready)

    found = {system.name: {"predict": [], "stages": []} for system in ready}
    peaks = []
    for i in range(rounds):
        say(f"prediction, round {i + 1} of {rounds}")
        peaks.append(gemm_peak())
        for system in ready:
            start = time.perf_counter()
            system.predict()
            found[system.name]["predict"].append(time.perf_counter() - start)
            if hasattr(system, "predict_by_stage"):
                found[system.name]["stages"].append(system.predict_by_stage()[1])
    result["gemm_gflops"] = max(peaks)
    result["systems"] = {name: {"predict": _summary(f["predict"]), "stages": _median_of_each(f["stages"])} for name, f in found.items()}
    if training:
        _time_training(result, [system for system in ready if hasattr(system, "train_step")], rounds, say)
    del ready
    if memory:
        _measure_memory(result, [name for name in systems if isinstance(name, str)], count, masks, training, onnx_folder, say)
    return result


def machine(count):
    """What the numbers depend on."""
    names = [line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return {"processor": names[0] if names else platform.processor(), "cores": thread_setting.usable_cores(), "threads": count,
            "python": platform.python_version(), "numpy": np.__version__, "kernels": backend.active().name,
            "load": _lines("/proc/loadavg")[0].split()[0] if _lines("/proc/loadavg") else None}


def _lines(path):
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def _ready(systems, count, masks, onnx_folder, say):
    """Built and warmed up; and why others are not."""
    ready, left_out = [], {}
    for name in systems:
        if not isinstance(name, str):
            ready.append(name)
            continue
        say(f"building {name}")
        try:
            system = build(name, count, masks, onnx_folder)
        except ConfigError as error:
            say(str(error))
            left_out[name] = str(error)
            continue
        ready.append(system)
    for system in ready:
        say(f"first run of {system.name}")
        system.predict()
    if not ready:
        raise ConfigError("no system is left to time: " + "; ".join(left_out.values()))
    return ready, left_out


def _count_work(system):
    stopwatch = Stopwatch()
    work = Work(stopwatch)
    with work.counted(), stopwatch.watch(system.places()):
        system.predict()
    return {"direct": work.direct, "least": work.least}


def _agreement(ready):
    """How far nprcnn's detections are from torchvision's; None if one of them does not take part."""
    by_name = {system.name: system for system in ready}
    if not {"nprcnn", "torchvision"} <= set(by_name):
        return None
    mine, theirs = by_name["nprcnn"].predict(), by_name["torchvision"].predict()
    boxes, labels = theirs["boxes"].numpy(), theirs["labels"].numpy()
    result = {"detections": len(mine.labels), "torchvision": len(labels), "largest_box_difference": None}
    if len(labels) == len(mine.labels):
        same = mine.labels == labels
        result["same_labels"] = int(same.sum())
        result["largest_box_difference"] = float(np.abs(mine.boxes - boxes)[same].max(initial=0))
    return result


def _time_training(result, ready, rounds, say):
    found = {system.name: [] for system in ready}
    for system in ready:
        say(f"first training step of {system.name}")
        result["systems"][system.name]["losses"] = system.train_step(Stopwatch())
    for i in range(rounds):
        say(f"training step, round {i + 1} of {rounds}")
        for system in ready:
            stopwatch = Stopwatch()
            system.train_step(stopwatch)
            found[system.name].append(stopwatch.seconds)
    for system in ready:
        entry = result["systems"][system.name]
        entry["train"] = _summary([sum(seconds.values()) for seconds in found[system.name]])
        entry["train_parts"] = _median_of_each(found[system.name])
    for system in ready:
        if isinstance(system, Nprcnn):
            result["train_stages"] = {method: _stages_of_training(system, method) for method in ("forward", "backward")}


def _stages_of_training(system, method):
    """Seconds a stage of one step's forward or backward."""
    stopwatch = Stopwatch()
    with stopwatch.watch(system.places(method)):
        system.train_step(Stopwatch())
    return stopwatch.seconds


def _measure_memory(result, names, count, masks, training, onnx_folder, say):
    for name in names:
        if name not in result["systems"]:
            continue
        for is_training in (False, True) if training and "train" in result["systems"][name] else (False,):
            say(f"peak memory of {name}{', training' if is_training else ''}")
            try:
                peak = peak_mib(name, count, is_training, masks, onnx_folder, backend.active().name if name == "nprcnn" else None)
            except ConfigError as error:
                say(str(error))
                continue
            result["systems"][name]["train_mib" if is_training else "predict_mib"] = peak


def compare_branches(rounds=5, say=print):
    """What the mask branch costs: seconds of Faster R-CNN's and Mask R-CNN's predict, in alternating rounds."""
    count = thread_setting.get_num_threads()
    models = {"Faster R-CNN": build("nprcnn", count, masks=False), "Mask R-CNN": build("nprcnn", count)}
    seconds = {name: [] for name in models}
    for i in range(rounds + 1):
        say(f"with and without masks, round {i} of {rounds}" if i else "with and without masks, first run")
        for name, system in models.items():
            start = time.perf_counter()
            system.predict()
            if i:
                seconds[name].append(time.perf_counter() - start)
    return {name: _summary(values) for name, values in seconds.items()}


def _summary(seconds):
    return {"median": float(np.median(seconds)), "least": float(np.min(seconds)), "all": [float(s) for s in seconds]}


def _median_of_each(rounds):
    return {name: float(np.median([r.get(name, 0.0) for r in rounds])) for name in {k for r in rounds for k in r}}


def say_on_stderr(text):
    """What the command line's progress goes through: tables alone are on stdout."""
    print(text, file=sys.stderr)
