"""What the numbers depend on, and the most that the GPU can do."""

import platform
import subprocess

import numpy as np

from .clock import tf32_products

# float32 multiply-adds a clock and multiprocessor (CUDA C++ Programming Guide, "Throughput of Native Arithmetic Instructions")
LANES = {"75": 64, "80": 64}
MORE_LANES = 128


def describe(cupy):
    """Dict of what to write beside the numbers."""
    runtime = cupy.cuda.runtime
    number = runtime.getDevice()
    properties = runtime.getDeviceProperties(number)
    name = properties["name"]
    capability = f"{properties['major']}{properties['minor']}"
    return {"device": name.decode() if isinstance(name, bytes) else str(name), "compute_capability": capability,
            "multiprocessors": int(properties["multiProcessorCount"]), "memory_bytes": int(properties["totalGlobalMem"]),
            "driver": driver_version(),
            "driver_cuda": _version(runtime.driverGetVersion()), "cuda_runtime": _version(runtime.runtimeGetVersion()),
            "nvrtc": ".".join(map(str, cupy.cuda.nvrtc.getVersion())), "cupy": cupy.__version__, "numpy": np.__version__,
            "python": platform.python_version(), **_from_attributes(runtime, number, capability)}


def driver_version():
    """As nvidia-smi says it; None if it says nothing."""
    try:
        run = subprocess.run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True,
                             timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip().splitlines()[0] if run.returncode == 0 and run.stdout.strip() else None


def _version(number):
    return f"{number // 1000}.{number % 1000 // 10}"


def _from_attributes(runtime, number, capability):
    """Peaks from clocks and widths; None where the driver does not tell."""
    def attribute(name):
        try:
            return runtime.deviceGetAttribute(getattr(runtime, f"cudaDevAttr{name}"), number)
        except (AttributeError, runtime.CUDARuntimeError):
            return 0
    clock, memory_clock = attribute("ClockRate"), attribute("MemoryClockRate")      # kHz
    lanes = LANES.get(capability, MORE_LANES)
    return {"gbyte_s_by_attributes": 2 * memory_clock * 1e3 * attribute("GlobalMemoryBusWidth") / 8 / 1e9 or None,
            "tflop_s_by_attributes": 2 * clock * 1e3 * lanes * attribute("MultiProcessorCount") / 1e12 or None}


def has_tf32(description):
    """Tensor cores that take TF32: from compute capability 8.0 on."""
    return int(description["compute_capability"]) >= 80


def measure_peaks(cupy, clock, tf32=True, copied=2**30, side=8192):
    """What a copy and cuBLAS reach on this GPU: {"gbyte_s", "tflop_s", and with `tf32` "tflop_s_tf32"}.

    copied: bytes of the array; each is read and written. side: of the matrices, which hold normal numbers (zeros would take less
    power, and the clock would be higher).
    """
    a, b = cupy.ones(copied // 4, np.float32), cupy.empty(copied // 4, np.float32)

    def copy():
        b[...] = a
    peaks = {"gbyte_s": 2 * a.nbytes / clock.time(copy).gpu_ms / 1e6}
    del a, b
    a = cupy.asarray(np.random.default_rng(0).standard_normal((side, side), np.float32))
    product = cupy.empty((side, side), np.float32)
    for name, on in (("tflop_s", False), ("tflop_s_tf32", True))[:2 if tf32 else 1]:
        with tf32_products(cupy, on):
            peaks[name] = 2 * side**3 / clock.time(lambda: cupy.matmul(a, a, out=product)).gpu_ms / 1e9
    return peaks
