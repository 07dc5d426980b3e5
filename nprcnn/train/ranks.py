"""Data-parallel training: several processes ("ranks", on one machine or on many) take a share of every batch each.

    mpiexec -n 4 python -m mpi4py -m nprcnn train ...

Every rank has the whole model. In a step it computes the losses and the gradient of its own images; summed over the ranks they are those
of the whole batch, if each share was weighted by its part of the counts (see gradients.py), which are summed first. Then every rank takes
the same step. Nothing else is exchanged in a step, but for the running statistics of batch norm, which are averaged.

Rank 0 alone reads checkpoints and writes files. The arrays are NumPy's; between GPUs one would use NCCL, which is left out here.

An error on one rank ends the job: `python -m mpi4py` aborts the others, which would wait for it forever, and mpiexec does the same for a
process that was killed.
"""

import os
import sys
import time

import numpy as np

from ..errors import ConfigError
from ..threads import VARIABLES, set_num_threads, usable_cores

BUCKET = 4 * 2 ** 20  # bytes of gradients in a message


class Alone:
    """One process: the whole of everything is what it has. The methods say what they do on several ranks."""

    rank, count = 0, 1

    @property
    def share(self):
        """(rank, count), as Loader and nprcnn.evaluate.collect take it."""
        return self.rank, self.count

    def sum_numbers(self, numbers):
        """{name: number} -> {name: the sum over all ranks}. One that is not finite makes the sum so, on every rank."""
        return numbers

    def sum_gradients(self, parameters):
        """Let the gradient of each parameter be the sum over all ranks. One that no rank has stays None."""

    def average_statistics(self, statistics):
        """Let the running statistics be the mean over all ranks; statistics: [(Buffer, its array before the step)]. What the step has left
        alone keeps its bits."""

    def broadcast(self, value):
        """Rank 0's value, on every rank."""
        return value

    def gather(self, value):
        """A list of all ranks' values on rank 0, None on the others."""
        return [value]

    def let_first_speak(self):
        """Before a rank tells of an error: most often rank 0 has the same one, says so, and ends the job before this returns."""


class Ranks(Alone):
    """Several processes. Each must call the same methods in the same order; a call returns when all have made it.

    comm : mpi4py.MPI.Comm
    """

    def __init__(self, comm):
        self.comm, self.rank, self.count = comm, comm.Get_rank(), comm.Get_size()

    def sum_numbers(self, numbers):
        sums = self._sum([np.array(list(numbers.values()))])[0]
        return dict(zip(numbers, sums.tolist()))

    def sum_gradients(self, parameters):
        # on a rank whose images have no object, some layers may not have been reached
        reached = self._sum([np.array([p.grad is not None for p in parameters], int)])[0] > 0
        reached = [p for p, anywhere in zip(parameters, reached) if anywhere]
        sums = self._sum([np.zeros_like(p.data) if p.grad is None else p.grad for p in reached])
        for p, gradient in zip(reached, sums):
            p.grad = gradient

    def average_statistics(self, statistics):
        changes = self._sum([buffer.data - before for buffer, before in statistics])
        for (buffer, before), change in zip(statistics, changes):
            if change.any():
                buffer.data = before + change / change.dtype.type(self.count)

    def broadcast(self, value):
        return self.comm.bcast(value, root=0)

    def gather(self, value):
        return self.comm.gather(value, root=0)

    def let_first_speak(self):
        if self.rank > 0:
            time.sleep(1)

    def _sum(self, arrays):
        """Add up arrays over all ranks, in place where they are contiguous. Returns them."""
        arrays = [np.ascontiguousarray(array) for array in arrays]
        for bucket in buckets(arrays):
            whole = bucket[0] if len(bucket) == 1 else np.concatenate(bucket)
            self.comm.Allreduce(whole.copy(), whole)
            if len(bucket) > 1:
                for view, part in zip(bucket, np.split(whole, np.cumsum([len(view) for view in bucket])[:-1])):
                    view[...] = part
        return arrays


def buckets(arrays, size=BUCKET):
    """Cut contiguous arrays into one-dimensional views, and yield lists of these with at most `size` bytes together.

    A message for each bias would cost more than its numbers do; one message for all is slow, too: measured between two ranks on one
    machine, 180 MB take 118 ms in one, and 34 ms in messages of 4 MB.
    """
    bucket, used = [], 0
    for array in arrays:
        flat = array.reshape(-1)
        most = size // flat.itemsize
        for view in (flat[i:i + most] for i in range(0, flat.size, most)):
            if used + view.nbytes > size:
                yield bucket
                bucket, used = [], 0
            bucket.append(view)
            used += view.nbytes
    if bucket:
        yield bucket


def start_ranks():
    """The Ranks of this job, or Alone in a process that is not one of several.

    Raises
    ------
    ConfigError
        mpiexec started this process without `-m mpi4py`: an error of one rank would let the others wait forever.
    """
    if "mpi4py.run" not in sys.modules:
        count = max(int(os.environ.get(name, 1)) for name in ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE"))  # MPICH and its kin, Open MPI
        if count > 1:
            raise ConfigError(f"this is one of {count} processes that mpiexec has started; start them as `mpiexec -n {count} python "
                              "-m mpi4py -m nprcnn train ...` (pip install nprcnn[mpi]), so that an error of one ends them all")
        return Alone()
    from mpi4py import MPI
    if MPI.COMM_WORLD.Get_size() == 1:
        return Alone()
    share_cores(MPI.COMM_WORLD.Split_type(MPI.COMM_TYPE_SHARED))
    return Ranks(MPI.COMM_WORLD)


def share_cores(comm):
    """Divide the cores of a machine among its ranks (those in comm), unless the environment or mpiexec has bound each to its own."""
    if any(os.environ.get(name) for name in VARIABLES):
        return
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    if len({str(others) for others in comm.allgather(cores)}) == 1:
        set_num_threads(max(1, usable_cores() // comm.Get_size()))
