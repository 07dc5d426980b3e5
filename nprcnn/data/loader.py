"""The loader: which images a training step sees, and worker processes that prepare them.

Batch s is a function of (seed, s) alone: epoch e visits the images in the order default_rng([seed, 0, e]).permutation, and image i is
augmented at step s with default_rng([seed, 2, s, i]). So a position in the data is one integer, and it does not matter who prepares a
batch or when: with any number of workers the batches are the same, bit for bit.

Worker k of n prepares the steps start + k, start + k + n, ... and sends each through a pipe of its own; whoever reads takes turns.
The workers are processes of the "spawn" kind: new interpreters, the same on every system. A "fork" would copy a process whose
threads (those of BLAS, Numba, CUDA, MPI) hold locks that nobody in the copy will ever release. The price is that the source must be
picklable, and that a script must start its work under `if __name__ == "__main__":`.
"""

import contextlib
import itertools
import math
import pickle
import queue
import signal
import threading
import traceback
from typing import NamedTuple

import numpy as np

from ..errors import ConfigError, DataError, NprcnnError
from .transforms import augment


class Batch(NamedTuple):
    """What a step trains on: tuples of as many images, targets and indices in the source."""

    images: tuple
    targets: tuple
    indices: tuple


class Loader:
    """Batches of a source, in an order that the seed fixes.

    Parameters
    ----------
    source : data source
        `len(source)`, and `source[i] -> (image, target)`. With workers it must be picklable.
    batch_size : int
    seed : int
    augment : Augment, optional
        None: the images as they are.
    workers : int
        Processes that prepare batches; 0: the caller's own, when it asks.
    prefetch : int
        How many batches each worker prepares ahead, at most, the one it works on included.
    share : (rank, ranks)
        Where several processes train together, each has a Loader with the batch_size of the whole batch, and prepares one of `ranks` equal
        parts of it: those of all ranks, in order, are the batch of a single process.

    Every epoch visits every image once; what does not fill the last batch of an epoch is left out of it. Crowds and targets without
    objects are passed on as they are.

    Raises
    ------
    ConfigError
        The source is smaller than a batch, or a number makes no sense.

    Use it in a `with`, or call `close`, and no worker outlives it. Should the process be killed, its workers notice and end, too.
    """

    def __init__(self, source, batch_size, seed, augment=None, workers=0, prefetch=2, share=(0, 1)):
        if batch_size < 1 or workers < 0 or prefetch < 1:
            raise ConfigError(f"batch_size={batch_size}, workers={workers}, prefetch={prefetch}: at least 1, 0 and 1 are needed")
        if len(source) < batch_size:
            raise ConfigError(f"a batch of {batch_size} from a data set of {len(source)}: choose a smaller batch")
        if batch_size % share[1]:
            raise ConfigError(f"a batch of {batch_size} for {share[1]} ranks: choose a multiple, so that all have the same number")
        self.source, self.batch_size, self.seed, self.share = source, batch_size, seed, share
        self.augment = augment.check() if augment is not None else None
        self.workers, self.prefetch = workers, prefetch
        self.steps_per_epoch = len(source) // batch_size
        self._order = None, None  # epoch, its permutation
        self._crews = []

    def indices(self, step):
        """Which images step `step` sees, a tuple of ints; of several ranks, this one's. Reads none of them."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if self._order[0] != epoch:
            self._order = epoch, np.random.default_rng([self.seed, 0, epoch]).permutation(len(self.source))
        batch = self._order[1][position * self.batch_size:(position + 1) * self.batch_size]
        rank, ranks = self.share
        return tuple(int(i) for i in np.split(batch, ranks)[rank])

    def batch(self, step):
        """The Batch of a step, prepared here and now. DataError if an image cannot be read."""
        indices = self.indices(step)
        images, targets = zip(*(self._example(step, i) for i in indices))
        return Batch(images, targets, indices)

    def _example(self, step, i):
        image, target = self.source[i]
        if self.augment is None:
            return image, target
        return augment(image, target, self.augment, np.random.default_rng([self.seed, 2, step, i]))

    def batches(self, start=0):
        """Yield the Batches of the steps start, start + 1, ... without end; workers, if there are any, prepare them ahead.

        Raises
        ------
        DataError
            An image cannot be read (where it is this batch's turn, whoever found out), or a worker was killed.
        ConfigError
            The source cannot be sent to workers.
        """
        if self.workers == 0:
            yield from map(self.batch, itertools.count(start))
            return
        crew = _Crew(self, start)
        self._crews.append(crew)
        try:
            while crew.pipes:  # until close()
                yield crew.next()
        finally:
            crew.close()
            if crew in self._crews:
                self._crews.remove(crew)

    def close(self):
        """End all workers."""
        while self._crews:
            self._crews.pop().close()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def __getstate__(self):  # what a worker gets
        return {**self.__dict__, "_crews": []}


class _Crew:
    """The worker processes of one call of `batches`. What goes through a pipe: from the worker, batches or an exception; to it, an empty
    message for each batch taken, so that it may begin another one."""

    def __init__(self, loader, start):
        self.turn, self.pipes, self.processes = 0, [], []
        try:
            for k in range(loader.workers):
                self._hire(loader, k, start + k)
        except BaseException:
            self.close()
            raise

    def _hire(self, loader, k, first):
        import multiprocessing
        spawn = multiprocessing.get_context("spawn")
        here, there = spawn.Pipe()
        self.pipes.append(here)
        process = spawn.Process(target=_work, args=(loader, first, there), name=f"loader worker {k}", daemon=True)
        with there, _without_ctrl_c():  # closed here once the worker has it, so that the pipe ends when the worker does
            try:
                process.start()
            except BrokenPipeError as error:
                raise DataError(_why_gone(k)) from error
            except (pickle.PicklingError, TypeError, AttributeError) as error:
                raise ConfigError(f"the data source cannot be sent to worker processes ({error}); define its class in a file of its "
                                  "own and keep nothing open in it, or use workers=0") from error
        self.processes.append(process)

    def next(self):
        k = self.turn % len(self.pipes)
        try:
            batch = self.pipes[k].recv()
            self.pipes[k].send_bytes(b"")
        except (EOFError, OSError) as error:
            self.processes[k].join(5)
            raise DataError(_why_gone(k, self.processes[k].exitcode)) from error
        if isinstance(batch, Exception):
            raise batch
        self.turn += 1
        return batch._replace(targets=tuple(map(_unpacked, batch.targets)))

    def close(self):
        for pipe in self.pipes:
            pipe.close()
        for process in self.processes:
            process.terminate()  # a worker writes nothing: there is nothing to lose
        for process in self.processes:
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()
            process.close()
        self.pipes, self.processes = [], []


def _why_gone(k, code=None):
    if code is not None and code < 0:
        return (f"worker {k} of the data loader was killed by {signal.Signals(-code).name}; where the memory is short, "
                "use fewer workers or a smaller prefetch")
    how = "" if code is None else f" with exit code {code}"
    return (f"worker {k} of the data loader ended{how}, its message is above; a script must start its work under "
            '`if __name__ == "__main__":`, or use workers=0')


@contextlib.contextmanager
def _without_ctrl_c():
    """A process started here never hears of Ctrl-C (which a terminal sends to all of a group): its parent does, and ends it."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(loader, first, pipe):
    """A worker's life: prepare every loader.workers-th step from `first` on, until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # where it could not be blocked before (Windows)
    ready = queue.SimpleQueue()
    threading.Thread(target=_send, args=(ready, pipe), daemon=True).start()  # so that the next one is begun while this one waits
    for n in itertools.count():
        try:
            if n >= loader.prefetch:
                pipe.recv_bytes()
        except (EOFError, OSError):
            return  # the parent has closed its end, or is no more
        try:
            batch = loader.batch(first + n * loader.workers)
            batch = batch._replace(targets=tuple(map(_packed, batch.targets)))
        except Exception as error:
            batch = _for_the_parent(error)
        ready.put(batch)
        del batch


def _packed(target):
    """With eight pixels of the masks in a byte, for the way through the pipe: masks are most of a batch."""
    masks = target.get("masks")
    if masks is None or masks.dtype != np.uint8 or masks.max(initial=0) > 1:
        return target
    return {**target, "masks": _Bits(masks.shape, np.packbits(masks))}


def _unpacked(target):
    bits = target.get("masks")
    if not isinstance(bits, _Bits):
        return target
    return {**target, "masks": np.unpackbits(bits.bytes, count=math.prod(bits.shape)).reshape(bits.shape)}


class _Bits(NamedTuple):
    shape: tuple
    bytes: np.ndarray


def _send(ready, pipe):
    while True:
        try:
            pipe.send(ready.get())
        except OSError:
            return  # _work will see it, too


def _for_the_parent(error):
    """The exception, with its traceback as a note unless it is one of ours, whose sentence says all; rewritten if it cannot travel."""
    try:
        copy = pickle.loads(pickle.dumps(error))
    except Exception:
        copy = RuntimeError(f"{type(error).__name__}: {error}")
    if not isinstance(error, NprcnnError):
        copy.add_note("in a worker of the data loader:\n" + "".join(traceback.format_exception(error)))
    return copy
