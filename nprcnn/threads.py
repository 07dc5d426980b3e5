"""How many threads compute: one number for the matrix products (BLAS) and for the compiled kernels.

The two take turns and never run inside each other, so that the same number of cores serves both. BLAS is set through threadpoolctl,
which knows how to speak to OpenBLAS, MKL, BLIS and Accelerate's stand-ins wherever NumPy has hidden them.
"""

import os
import sys
from pathlib import Path

from .errors import ConfigError

# Any of these says how many threads there shall be, the first one that is set; NPRCNN's own would be one too many.
VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")

_chosen = None  # by set_num_threads; None: nobody has said anything, and start_kernels will


def usable_cores():
    """The cores that this process may use: physical ones, for two hyperthreads share the units that multiply; those of its affinity
    mask; and no more than its container's share of time (cgroup v2)."""
    if hasattr(os, "sched_getaffinity"):
        usable = os.sched_getaffinity(0)
    else:
        usable = range(os.cpu_count() or 1)
    cores = set()
    for cpu in usable:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.add(siblings.read_text() if siblings.exists() else cpu)
    share = Path("/sys/fs/cgroup/cpu.max")  # "200000 100000": two cores' time; "max 100000": no limit
    quota, _, period = share.read_text().partition(" ") if share.exists() else ("max", "", "")
    limit = len(cores) if quota == "max" else -(-int(quota) // int(period))
    return max(1, min(len(cores), limit))


def get_num_threads():
    """How many threads compute: what was set, or what will be the default."""
    if _chosen is not None:
        return _chosen
    for name in VARIABLES:
        value = os.environ.get(name, "").split(",")[0]  # OMP_NUM_THREADS may be a list, for nested regions
        if value.isdigit() and int(value) > 0:
            return int(value)
    return usable_cores()


def set_num_threads(n):
    """Let BLAS and the compiled kernels use `n` threads each from here on. They take turns, so `n` cores are busy.

    Parameters
    ----------
    n : int
        1 .. the number of processors. The default is OMP_NUM_THREADS (or a relative of it) if that is set, or else the number of
        physical cores that this process may use.

    Raises
    ------
    ConfigError
        n is less than 1 or more than there are processors.
    """
    global _chosen
    most = os.cpu_count() or 1
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= most:
        raise ConfigError(f"{n!r} threads: give an integer from 1 to {most}, the number of processors")
    from threadpoolctl import ThreadpoolController
    for library in ThreadpoolController().select(user_api="blas").lib_controllers:
        library.set_num_threads(n)
    workers = sys.modules.get(f"{__package__}.kernels.cpu.workers")
    if workers:
        workers.set_num_threads(n)
    _chosen = n


def start_kernels():
    """The compiled kernels have just been imported: give them, and BLAS, the number that was chosen or the default."""
    set_num_threads(min(get_num_threads(), os.cpu_count() or 1))
