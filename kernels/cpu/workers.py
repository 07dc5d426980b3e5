"""The threads that share the work of one kernel.

Compiled loops (`@njit(nogil=True)`) and NumPy's matrix products let go of Python's own lock, so plain Python threads run them side by
side. Each thread takes a block of the layer through all its steps: while one waits for the memory (cutting tiles, writing y), another
one multiplies. With the other way, every step shared out among all threads, all wait for the memory together, and each step ends with
a wait for the slowest.

So a matrix product runs in one thread here, and BLAS is told so as long as the work is shared. Its own threads would be too many; and
they wait for one another by spinning, which on a busy machine takes the core from the very thread that is waited for.
"""

import threading
from concurrent.futures import ThreadPoolExecutor

from threadpoolctl import ThreadpoolController

WORTH_SHARING = 20e6     # multiplications: some 0.4 ms of one core; to ask another thread and hear from it takes .03 ms (measured)

MOVED = 16               # multiplications that weigh as much as reading, changing and writing one number (an estimate, for `size`)
PARTS = 8                # of a kernel's loop for each thread: one that is late leaves its last parts to the others

_threads = 1             # see set_num_threads
_pools = {}              # number of helpers -> the threads, kept for the next call
_blas = []               # the BLAS libraries of this process, found at the first call


def set_num_threads(n):
    """How many threads share the work of a kernel from here on, whichever Python thread calls it. (Numba's own number is one a Python
    thread, and means the threads of `parallel=True`, which is not used here.)"""
    global _threads
    _threads = n


def get_num_threads():
    return _threads


def run(work, tasks, size=float("inf")):
    """Call `work(*task)` for every task, in this thread and the helpers; which one takes which task is not known.

    size : multiplications in all tasks together; if there are few, this thread makes them alone.

    An exception in a task ends the others after their current task, and is raised here.
    """
    threads = get_num_threads()
    if threads == 1:
        for task in tasks:
            work(*task)
        return
    with _BlasInOneThread(threads):
        tasks = list(tasks)
        helpers = min(threads, len(tasks)) - 1
        if helpers < 1 or size < WORTH_SHARING:
            for task in tasks:
                work(*task)
            return
        waiting, taking = iter(tasks), threading.Lock()

        def work_through():
            nonlocal waiting
            try:
                while True:
                    with taking:
                        task = next(waiting, None)
                    if task is None:
                        return
                    work(*task)
            except BaseException:
                waiting = iter(())
                raise

        others = [_pool(helpers).submit(work_through) for _ in range(helpers)]
        try:
            work_through()
        finally:
            errors = [other.exception() for other in others]     # waits
        for error in errors:
            if error is not None:
                raise error


def share(kernel, length, size, *args):
    """Call `kernel(start, stop, *args)` on parts of range(length), some for each thread. size: as in `run`."""
    if size < WORTH_SHARING or get_num_threads() == 1:
        kernel(0, length, *args)
    else:
        run(kernel, [(start, stop, *args) for start, stop in parts(length, each=PARTS)])


def parts(length, least=1, each=1):
    """(start, stop) pairs that cut range(length) evenly, `each` a thread, but none shorter than `least` unless it is the only one."""
    count = max(1, min(each * get_num_threads(), length // least))
    return [(length * i // count, length * (i + 1) // count) for i in range(count)]


def shrinking(length, largest, least=1, thinnest=1):
    """(start, stop) pairs that cut range(length), at most `largest` long and, for several threads, shorter towards the end.

    One thread may be slower than another: the processor runs other programs, too. With short tasks at the end, none waits long for the
    last one; with long ones before that, little is lost by cutting ("guided self-scheduling", Polychronopoulos and Kuck 1987).

    None is shorter than `least`; where that would be less than four tasks a thread, they may be as short as `thinnest`. The last one takes
    along what would be too short: it may be longer than `largest`.
    """
    threads, pairs, start = get_num_threads(), [], 0
    least = max(thinnest, min(least, length // (4 * threads)))
    while start < length:
        left = length - start
        size = min(largest, max(least, -(-left // threads)))
        size = left if left - size < least else size
        pairs.append((start, start + size))
        start += size
    return pairs


def _pool(helpers):
    if helpers not in _pools:
        _pools[helpers] = ThreadPoolExecutor(helpers, thread_name_prefix="nprcnn-kernel")
    return _pools[helpers]


class _BlasInOneThread:
    """While the block runs, BLAS uses one thread; afterwards as many as the kernels."""

    def __init__(self, threads):
        self.threads = threads

    def __enter__(self):
        if not _blas:
            _blas.extend(ThreadpoolController().select(user_api="blas").lib_controllers)
        for library in _blas:
            library.set_num_threads(1)

    def __exit__(self, *exception):
        for library in _blas:
            library.set_num_threads(self.threads)
