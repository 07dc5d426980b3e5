"""All of it in turn, in one process. What fails is written down, and the rest goes on."""

import sys

import numpy as np

from ... import devices, threads
from ...errors import ConfigError
from ...kernels.cuda import launch
from . import models
from .clock import Clock, tf32_products
from .device import describe, has_tf32, measure_peaks
from .operations import makers
from .rivals import Torch

PARTS = ("kernels", "models")
TF32_FILES = ("conv2d_v5",)         # kernels that round their factors to TF32
TF32_TOLERANCE = 2e-3               # of the largest number: two factors with 10 bits behind the point


def bench(rounds=10, parts=PARTS, only=None, say=print, save=None):
    """Time kernels and models on the GPU.

    Parameters
    ----------
    rounds : int
        Of the whole model.
    parts : which of PARTS
    only : str, optional
        Only the operations whose names begin so.
    say : function of a str
        Told what is going on.
    save : function of the result, optional
        Called again and again while it grows, so that a run that is stopped leaves what it has.

    Returns
    -------
    dict of plain numbers, for `format_report` and for JSON.

    Raises
    ------
    BackendError
        There is no GPU, or CuPy cannot use it.
    """
    cupy = devices.cupy()
    result = {"command": " ".join(["nprcnn", *sys.argv[1:]]), "left_out": {}, "errors": {}}
    try:
        rival = Torch()         # before CuPy's first matrix product: torch must find the libraries it was built for
    except ConfigError as error:
        say(str(error))
        result["left_out"]["torch"], rival = str(error), None
    result["device"] = {**describe(cupy), **(rival.describe() if rival else {})}
    tf32 = has_tf32(result["device"])
    clock = Clock(cupy)
    say(f"{result['device']['device']}: the fastest copy and matrix product")
    result["peaks"] = measure_peaks(cupy, clock, tf32)
    if "kernels" in parts:
        chosen = {name: make for name, make in makers().items() if only is None or name.startswith(only)}
        result["kernels"] = []
        for row in time_kernels(cupy, clock, chosen, rival, tf32, result["peaks"], result["errors"], say):
            result["kernels"].append(row)
            if save:
                save(result)
    if "models" in parts:
        result["models"] = {}
        for mode, found in time_models(cupy, clock, rival, tf32, rounds, result["errors"], say):
            result["models"][mode] = found
            if save:
                save(result)
    return result


def time_kernels(cupy, clock, chosen, rival, tf32, peaks, errors, say):
    """chosen: {name: function (up, rival) -> Operation}; yields a dict an operation. errors: dict, filled."""
    for name, make in chosen.items():
        say(name)
        try:
            yield {"name": name, **time_operation(cupy, clock, make(cupy.asarray, rival), rival, tf32, peaks)}
        except Exception as error:      # of any kind: out of memory, a kernel that fails, torch
            errors[name] = _one_line(error)
            say(f"{name}: {errors[name]}")
        cupy.get_default_memory_pool().free_all_blocks()
        if rival and rival.device == "cuda":
            rival.torch.cuda.empty_cache()


def time_operation(cupy, clock, operation, rival, tf32, peaks):
    """Every version of one Operation, and the rival in both precisions.

    Versions that launch the same kernels as one before (a fall-back) are timed once. "differs": from the rival's float32 result, or
    else the first version's, relative to its largest number; "wrong" is true if that is more than rounding can do.
    """
    row = {"operation": operation.name, "shape": operation.shape, "gflop": operation.gflop, "gbyte": float(operation.gbyte),
           "versions": {},
           "rival": {}, "refused": {}}
    expected = None
    if operation.rival:
        for precision in ("float32", "tf32")[:2 if tf32 and operation.name.startswith("conv2d") else 1]:
            with rival.precision(precision == "tf32"):
                if precision == "float32":
                    expected = rival.numpy(operation.rival())
                row["rival"][precision] = clock.time(operation.rival)._asdict()
    seen = {}
    for label, run in operation.versions.items():
        try:
            with Launches() as launches:
                found = run()
        except (ValueError, TypeError) as error:        # this version does not take the shape
            row["refused"][label] = _one_line(error)
            continue
        except RuntimeError as error:
            if type(error).__name__ != "NoTensorCores":
                raise
            row["refused"][label] = _one_line(error)
            continue
        if launches.names in seen.values():
            row["refused"][label] = "runs the kernels of version " + next(k for k, names in seen.items() if names == launches.names)
            continue
        seen[label] = launches.names
        found = [part.get() for part in (found if isinstance(found, tuple) else (found,))]
        expected = found if expected is None else expected
        is_tf32 = any(name.startswith(TF32_FILES) for name in launches.names)
        differs, share = _compare(found, expected, TF32_TOLERANCE if is_tf32 else operation.tolerance)
        with tf32_products(cupy, is_tf32):
            timing = clock.time(run)
        row["versions"][label] = {**timing._asdict(), "kernels": sorted(launches.names), "precision": "tf32" if is_tf32 else "float32",
                                  "differs": differs, "wrong": bool(share > operation.may_differ),
                                  **_share(operation, timing.gpu_ms, peaks, is_tf32)}
    return row


class Launches:
    """`with Launches() as launches:` launches.names is the set of "file.kernel" that were launched inside."""

    def __enter__(self):
        self.names, self._kernel = set(), launch.kernel

        def kernel(file, function, real, xp):
            self.names.add(f"{file}.{function}")
            return self._kernel(file, function, real, xp)
        launch.kernel = kernel
        return self

    def __exit__(self, *exception):
        launch.kernel = self._kernel


def _compare(found, expected, tolerance):
    """Two lists of arrays: the largest difference, relative to the array's largest number, and the share of those beyond `tolerance`."""
    largest, share = 0.0, 0.0
    for f, e in zip(found, expected, strict=True):
        if f.shape != e.shape:
            return float("inf"), 1.0
        if f.size:
            errors = np.abs(f.astype(np.result_type(f, np.float32)) - e) / max(1e-30, float(np.abs(e).max()))
            errors = np.nan_to_num(errors, nan=np.inf)
            largest, share = max(largest, float(errors.max())), max(share, float((errors > tolerance).mean()))
    return largest, share


def _share(operation, gpu_ms, peaks, is_tf32):
    """What it achieves, and the share of the peak that limits it: the one whose floor is higher."""
    gbyte_s = operation.gbyte / gpu_ms * 1e3
    tflop_s = None if operation.gflop is None else operation.gflop / gpu_ms
    of_memory = gbyte_s / peaks["gbyte_s"]
    of_arithmetic = 0 if tflop_s is None else tflop_s / peaks["tflop_s_tf32" if is_tf32 else "tflop_s"]
    return {"gbyte_s": float(gbyte_s), "tflop_s": tflop_s and float(tflop_s),
            "limit": "memory" if of_memory >= of_arithmetic else "arithmetic",
            "share": float(max(of_memory, of_arithmetic))}


def time_models(cupy, clock, rival, tf32, rounds, errors, say):
    """Yields (mode, what models.compare returns) for each of models.MODES."""
    count = threads.get_num_threads()
    try:
        say("building nprcnn")
        ours = models.build_ours(count)
        theirs = None
        if rival:
            say("building torchvision")
            theirs = models.TorchvisionOnGpu(rival, count)
    except Exception as error:
        errors["models"] = _one_line(error)
        say(errors["models"])
        return
    for mode, choices in models.MODES.items():
        if choices.get("tf32") and not tf32:
            continue
        say(f"the whole model in {mode}")
        try:
            yield mode, models.compare(cupy, clock, ours, theirs, rival, choices, rounds, say)
        except Exception as error:
            errors[f"models, {mode}"] = _one_line(error)
            say(errors[f"models, {mode}"])


def _one_line(error):
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
