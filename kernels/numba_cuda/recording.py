"""Watches one warp: runs a kernel in the simulator with arrays that note each read and write of its 32 threads.

    python -m nprcnn.kernels.numba_cuda.recording < request.npz > accesses.json        with NUMBA_ENABLE_CUDASIM=1

nprcnn/kernel_threads.py writes the request and draws the accesses: `nprcnn inspect-kernel`.
"""

import io
import json
import sys
import threading

import numpy as np

from . import conv2d, gpu, nms, roi_align

KERNELS = {"roi_align_v1": roi_align.roi_align_v1, "nms_mask": nms.nms_mask, "conv2d_v1": conv2d.conv2d_v1, "conv2d_v2": conv2d.conv2d_v2}


class Recorder:
    """Notes what the threads of one warp do: `accesses` is a list of dicts with the keys lane, array, kind, index, value and line.

    Parameters
    ----------
    grid, block : tuples of three, of the launch
    number : int, of a thread, counted through the grid, block after block; its warp is watched
    """

    def __init__(self, grid, block, number):
        threads = int(np.prod(block))
        self.accesses, self.grid, self.block = [], grid, block
        self.watched_block, self.watched_warp = number // threads, number % threads // 32

    def lane(self):
        """The lane (0..31) of the running thread, or None if its warp is not watched."""
        thread = threading.current_thread()         # in the simulator a CUDA thread is a Python thread
        if not hasattr(thread, "blockIdx"):
            return None
        b, t = thread.blockIdx, thread.threadIdx
        if b.x + self.grid[0] * (b.y + self.grid[1] * b.z) != self.watched_block:
            return None
        in_block = t.x + self.block[0] * (t.y + self.block[1] * t.z)
        return in_block % 32 if in_block // 32 == self.watched_warp else None

    def note(self, array, kind, index, value):
        lane = self.lane()
        if lane is None:
            return
        frame = sys._getframe(2)
        self.accesses.append({"lane": lane, "array": array, "kind": kind, "index": [int(i) for i in index], "value": value.item(),
                              "line": frame.f_lineno})


class RecordingArray:
    """What a kernel needs of an array, and a note of each number that is read or written. `array[i]` of two dimensions is a view."""

    def __init__(self, recorder, name, values, prefix=()):
        self.recorder, self.name, self.values, self.prefix = recorder, name, values, prefix
        self.shape, self.size, self.dtype, self.ndim = values.shape, values.size, values.dtype, values.ndim

    def __getitem__(self, index):
        index = index if isinstance(index, tuple) else (index,)
        found = self.values[index]
        if isinstance(found, np.ndarray):
            return RecordingArray(self.recorder, self.name, found, self.prefix + index)
        self.recorder.note(self.name, "read", self.prefix + index, found)
        return found

    def __setitem__(self, index, value):
        index = index if isinstance(index, tuple) else (index,)
        self.values[index] = value
        self.recorder.note(self.name, "write", self.prefix + index, self.values[index])


def record(kernel, grid, block, arrays, scalars, number):
    """Launch a kernel in the simulator and watch a warp.

    Parameters
    ----------
    kernel : str, one of KERNELS
    grid, block : tuples of up to three
    arrays : {name: array}, the kernel's first parameters in their order; they are written to as the kernel does
    scalars : the rest of its parameters
    number : int, of a thread, counted through the grid

    Returns
    -------
    list of dicts, see Recorder
    """
    grid, block = ((*size, 1, 1)[:3] for size in (grid, block))
    recorder = Recorder(grid, block, number)
    KERNELS[kernel][grid, block](*(RecordingArray(recorder, name, values) for name, values in arrays.items()), *scalars)
    return recorder.accesses


def main():
    request = dict(np.load(io.BytesIO(sys.stdin.buffer.read())))
    about = json.loads(str(request.pop("about")))
    gpu.check()
    # a list is a pair of ints; a float is a number of the arrays' dtype
    real = next(iter(request.values())).dtype.type
    scalars = [tuple(s) if isinstance(s, list) else real(s) if isinstance(s, float) else s for s in about["scalars"]]
    json.dump(record(about["kernel"], about["grid"], about["block"], request, scalars, about["number"]), sys.stdout)


if __name__ == "__main__":
    main()
