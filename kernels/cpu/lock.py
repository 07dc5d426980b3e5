"""One kernel at a time, whichever Python threads call.

A kernel uses all cores by itself (workers.py), so two at once gain nothing, and each would wait for the other's threads.
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
