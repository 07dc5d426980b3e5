"""One kernel at a time, whichever Python threads call.

A kernel uses all cores by itself, so two at once gain nothing. And Numba's thread pool of the layer "workqueue", the one that every
installation has, does not survive two callers: the process ends with a segmentation fault.
"""

import functools
import threading

one_at_a_time = threading.RLock()   # a kernel may call another


def alone(kernel):
    """The kernel, but a call of it waits until no other one runs."""
    @functools.wraps(kernel)
    def wait_and_run(*args, **kwargs):
        with one_at_a_time:
            return kernel(*args, **kwargs)
    return wait_and_run
