"""CuPy, whose arrays lie in the memory of a GPU: the one place that imports it.

Importing it proves nothing: CuPy imports where there is neither a GPU nor a driver.
"""

import numpy as np

INSTALL = "pip install 'nprcnn[cuda13]', or 'nprcnn[cuda12]' for a driver that is older than 580 (nvidia-smi shows its version)"


class NoGpu(RuntimeError):
    """There is no GPU that CuPy can use; the message says why and what to do."""


def load():
    """The module cupy, after a look at whether it can use a GPU.

    Raises
    ------
    NoGpu : CuPy is not installed, or not the build for this machine; no driver, one that is too old, no GPU.
    """
    try:
        import cupy
    except ModuleNotFoundError as error:
        if error.name != "cupy":
            raise NoGpu(f"CuPy is installed, but not all that it needs ({error}): {INSTALL}") from None
        raise NoGpu(f"computing on a GPU needs CuPy, which is not installed: {INSTALL}") from None
    except ImportError as error:
        raise NoGpu(f"CuPy is installed, but not the build for this machine ({_first_line(error)}): pip uninstall every package whose "
                    f"name begins with cupy, then {INSTALL}") from None
    runtime = cupy.cuda.runtime
    try:
        count = runtime.getDeviceCount()
    except runtime.CUDARuntimeError as error:
        # without any driver CUDA gives the same error as with one that is too old
        driver = runtime.driverGetVersion()
        if "InsufficientDriver" in str(error) and driver > 0:
            needed = _version(runtime.runtimeGetVersion())
            raise NoGpu(f"the NVIDIA driver is too old: it takes CUDA {_version(driver)}, the installed CuPy needs {needed}; "
                        f"update the driver, or pip uninstall CuPy and then {INSTALL}") from None
        reason = _first_line(error) if driver else "no NVIDIA driver is installed"
        raise NoGpu(f"there is no GPU to compute on ({reason}); compute on the CPU instead: device \"cpu\"") from None
    if count < 1:
        raise NoGpu('there is no GPU to compute on (CUDA counts 0); compute on the CPU instead: device "cpu"')
    try:
        cupy.cuda.nvrtc.getVersion()
    except Exception as error:  # of several classes, one a version of CuPy
        raise NoGpu(f"CuPy does not find the CUDA compiler NVRTC, which the kernels need ({_first_line(error)}): {INSTALL}") from None
    return cupy


def array_module(array):
    """numpy or cupy, whichever the array belongs to."""
    if isinstance(array, np.ndarray):
        return np
    import cupy
    return cupy.get_array_module(array)


def _first_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _version(number):
    """12090 -> "12.9"."""
    return f"{number // 1000}.{number % 1000 // 10}"
