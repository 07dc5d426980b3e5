"""Peak resident memory, each system in a process of its own: what one process has used can never be taken off it again."""

import json
import subprocess
import sys
from pathlib import Path

from ..errors import ConfigError


def peak_mib(name, threads, training=False, masks=True, onnx_folder=None, kernels=None, timeout=1800):
    """MiB that a fresh process holds at most while it imports, builds the model and predicts twice (or trains for two steps).

    ConfigError: the system cannot run, or this is not Linux.
    """
    arguments = json.dumps([name, threads, training, masks, onnx_folder and str(onnx_folder), kernels])
    run = subprocess.run([sys.executable, "-c", "import sys; from nprcnn.bench.memory import main; main(sys.argv[1])", arguments],
                         capture_output=True, text=True, timeout=timeout, cwd=Path(__file__).parent.parent.parent)
    if run.returncode != 0:
        last = (run.stderr.strip().splitlines() or ["no message"])[-1]
        raise ConfigError(f"peak memory of {name}: {last[:200]}")
    return float(run.stdout.strip().splitlines()[-1])


def main(arguments):
    """What the process runs; prints MiB."""
    from .. import backend, threads as thread_setting
    from .stopwatch import Stopwatch
    from .systems import build
    name, threads, training, masks, onnx_folder, kernels = json.loads(arguments)
    if kernels:
        backend.use(kernels)
    thread_setting.set_num_threads(threads)
    system = build(name, threads, masks, onnx_folder)
    for _ in range(2):
        system.train_step(Stopwatch()) if training else system.predict()
    print(resident_peak_mib())


def resident_peak_mib():
    """Of this process. (resource.getrusage would also know the process that started this one.)"""
    status = Path("/proc/self/status")
    if not status.exists():
        raise ConfigError("peak memory is read from /proc, which this system does not have")
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024
