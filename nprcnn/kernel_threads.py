"""What one thread of a CUDA kernel reads and writes: recorded in Numba's simulator, as a table and as a picture.

`nprcnn inspect-kernel` prints and draws it. The inputs are small, and their numbers have two digits, so that one thread can be followed
with a pencil. The simulator must be chosen before Numba is imported, so the kernel runs in a process of its own.
"""

import importlib.util
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .errors import BackendError, ConfigError

THREADS = 256           # a block, as in kernels/numba_cuda
WARP = 32
SECTOR = 32             # bytes: the least that a GPU fetches from its memory
SCALE = 0.25            # of the example's RoIs: feature pixels an image pixel
ROIS = np.array([[0, 8, 8, 36, 36], [0, 30, 4, 66, 30], [0, 50, 4, 84, 36], [0, 20, 10, 62, 50], [0, 42, 30, 45, 33]], np.float32)


class Launch(NamedTuple):
    """One launch of a kernel and one of its threads.

    arrays: {name: array} in the kernel's order; number: of the thread, counted through the grid, block after block
    """

    kernel: str
    file: str
    grid: tuple
    block: tuple
    arrays: dict
    scalars: tuple
    number: int
    title: str


class Access(NamedTuple):
    """A number that was read or written: by which lane of the warp, where, its value, on which line of the kernel's file."""

    lane: int
    array: str
    kind: str
    index: tuple
    value: float
    line: int


def _maps(channels, height, width, seed=0):
    """(1, C, H, W) float32 between 0 and 1, with two digits: smooth hills."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    maps = np.zeros((1, channels, height, width))
    for c in range(channels):
        for _ in range(4):
            cy, cx, radius = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(2, 5)
            maps[0, c] += np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / radius ** 2)
    return np.round(maps / maps.max(axis=(2, 3), keepdims=True), 2).astype(np.float32)


def roi_align_launch(roi, thread, output_size=7, sampling_ratio=2, aligned=False):
    """RoIAlign of the example; thread: number within the RoI, which has one a channel and bin.

    Raises
    ------
    ConfigError : there is no such RoI or thread.
    """
    features = _maps(4, 14, 18)
    channels, each = features.shape[1], features.shape[1] * output_size * output_size
    _check("--roi", roi, len(ROIS), "RoIs")
    _check("--thread", thread, each, f"threads of a RoI ({channels} channels of {output_size} x {output_size} bins)")
    y = np.zeros((len(ROIS), channels, output_size, output_size), np.float32)
    return Launch("roi_align_v1", "roi_align.py", (-(-y.size // THREADS),), (THREADS,), {"features": features, "rois": ROIS, "y": y},
                  (SCALE, sampling_ratio, aligned), roi * each + thread, f"RoI {roi}, thread {thread}")


def conv2d_launch(thread, version=1):
    """A 3x3 convolution with padding 1 of the example; thread: number in the grid, counted block after block.

    Raises
    ------
    ConfigError : there is no such thread.
    """
    x, rng = _maps(3, 8, 9), np.random.default_rng(1)
    w, b = (rng.integers(-9, 10, (16, 3, 3, 3)) / 10).astype(np.float32), np.zeros(16, np.float32)
    y = np.zeros((1, 16, 8, 9), np.float32)
    pair = (1, 1)
    if version == 1:
        grid, block, scalars = (-(-y.size // THREADS),), (THREADS,), (pair, pair, pair, 1)
    else:
        grid, block, scalars = (-(-y[0, 0].size // 16), 1), (16, 16), (pair, pair, pair)
    _check("--thread", thread, int(np.prod(grid) * np.prod(block)), "threads")
    return Launch(f"conv2d_v{version}", "conv2d.py", grid, block, {"x": x, "w": w, "b": b, "y": y}, scalars, thread, f"thread {thread}")


def nms_launch(thread, count=40, iou_threshold=0.3):
    """`nms_mask` of `count` boxes, at most 64, by descending score; thread: of the one block, which compares box number `thread`.

    Raises
    ------
    ConfigError : there is no such thread.
    """
    _check("--thread", thread, 64, "threads")
    rng = np.random.default_rng(2)
    corner = rng.integers(0, 70, (count, 2))
    boxes = np.hstack([corner, corner + rng.integers(8, 30, (count, 2))]).astype(np.float32)
    return Launch("nms_mask", "nms.py", (1, 1), (64,), {"boxes": boxes, "mask": np.zeros((count, 1), np.uint64)}, (iou_threshold,), thread,
                  f"thread {thread}")


def _check(option, value, count, what):
    if not 0 <= value < count:
        raise ConfigError(f"{option} {value}: the example has {count} {what}, 0 to {count - 1}")


def record(launch):
    """Run the launch in the simulator.

    Returns
    -------
    list of Access, of all 32 threads of the thread's warp, in the order in which the simulator runs them

    Raises
    ------
    BackendError : Numba is not installed.
    """
    if importlib.util.find_spec("numba") is None:
        raise BackendError("the simulator of CUDA kernels is Numba's, which is not installed: pip install numba")
    about = {"kernel": launch.kernel, "grid": launch.grid, "block": launch.block, "scalars": launch.scalars, "number": launch.number}
    request = io.BytesIO()
    np.savez(request, about=json.dumps(about), **launch.arrays)
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    run = subprocess.run([sys.executable, "-m", "nprcnn.kernels.numba_cuda.recording"], input=request.getvalue(), env=environment,
                         capture_output=True)
    if run.returncode:
        raise BackendError(f"Numba's simulator failed: {run.stderr.decode(errors='replace').strip().splitlines()[-1]}")
    return [Access(**{**access, "index": tuple(access["index"])}) for access in json.loads(run.stdout)]


def place(launch):
    """Where the thread is: (block, thread in the block, warp in the block, lane in the warp)."""
    threads = int(np.prod(launch.block))
    block, thread = divmod(launch.number, threads)
    return block, thread, *divmod(thread, WARP)


def own(launch, accesses):
    """The accesses of the thread itself."""
    return [access for access in accesses if access.lane == place(launch)[3]]


def sectors(launch, accesses, array):
    """The 32-byte sectors that the warp's lanes touch with their first read of the array -> (sectors, lanes that read)."""
    values, first = launch.arrays[array], {}
    for access in accesses:
        if access.array == array and access.kind == "read":
            first.setdefault(access.lane, int(np.ravel_multi_index(access.index, values.shape)) * values.itemsize // SECTOR)
    return len(set(first.values())), len(first)


class Samples(NamedTuple):
    """One bin of a RoI, in pixels of the feature map: the RoI's corner, a bin's sides, where its samples lie and what they weigh.

    points: list of (x, y); weights: list, a sample, of the four numbers that its reads are multiplied with; outside: list of (x, y), the
    samples that lie more than a pixel outside the map and count as 0, in neither of the two
    """

    corner: tuple
    bin_sides: tuple
    bin: tuple
    points: list
    weights: list
    outside: list


def samples(launch):
    """What a thread of `roi_align_launch` samples, worked out with NumPy."""
    _, sampling_ratio, aligned = launch.scalars
    _, _, height, width = launch.arrays["features"].shape
    r, _, i, j = (int(k) for k in np.unravel_index(launch.number, launch.arrays["y"].shape))
    x1, y1, x2, y2 = launch.arrays["rois"][r, 1:] * SCALE - (0.5 if aligned else 0)
    bins_h, bins_w = launch.arrays["y"].shape[2:]
    sides = [(x2 - x1) / bins_w, (y2 - y1) / bins_h] if aligned else [max(x2 - x1, 1) / bins_w, max(y2 - y1, 1) / bins_h]
    count = [sampling_ratio if sampling_ratio > 0 else max(int(np.ceil(side)), 1) for side in sides]
    points, weights, outside = [], [], []
    for sy in range(count[1]):
        for sx in range(count[0]):
            x, y = x1 + (j + (sx + 0.5) / count[0]) * sides[0], y1 + (i + (sy + 0.5) / count[1]) * sides[1]
            if not (-1 <= x <= width and -1 <= y <= height):
                outside.append((float(x), float(y)))
                continue
            fx, fy = (min(max(p, 0), length - 1) % 1 for p, length in ((x, width), (y, height)))
            points.append((float(x), float(y)))
            weights.append([float(a * b / (count[0] * count[1])) for a in (1 - fy, fy) for b in (1 - fx, fx)])
    return Samples((float(x1), float(y1)), tuple(map(float, sides)), (i, j), points, weights, outside)


def roi_align_table(launch, accesses):
    """`table`, with the sample and the weight beside each read, and what they add up to."""
    found, mine = samples(launch), own(launch, accesses)
    reads = [k for k, access in enumerate(mine) if access.array == "features"]
    flat = [(x, y, weight) for (x, y), four in zip(found.points, found.weights) for weight in four]
    notes = {k: f"* {weight:.4f}   sample x {x:.3f}, y {y:.3f}" for k, (x, y, weight) in zip(reads, flat)}
    total = sum(mine[k].value * weight for k, (_, _, weight) in zip(reads, flat))
    places = len({mine[k].index for k in reads})
    return "\n".join([
        table(launch, accesses, notes), "",
        f"{len(reads)} reads of {places} pixels; weight * value adds up to {total:.4f}" if reads else
        "reads no pixel: all its samples lie more than a pixel outside the map, and count as 0",
        _sector_line(launch, accesses, "features")])


def conv2d_table(launch, accesses):
    """`table`, and what the thread's reads come to."""
    reads = [access for access in own(launch, accesses) if access.kind == "read"]
    written = [access for access in own(launch, accesses) if access.kind == "write"]
    products = launch.arrays["w"][0].size
    lines = [table(launch, accesses), ""]
    if not reads:
        return "\n".join([*lines, "the thread reads nothing: its places lie beyond the end of the arrays, or in the padding"])
    lines.append(f"{sum(a.array == 'x' for a in reads)} reads of x, {sum(a.array == 'w' for a in reads)} of w" +
                 (f", for up to {products} products of one number of y" if written else ", for its block's tiles; it writes nothing itself"))
    if launch.kernel == "conv2d_v2":
        lines.append("the other factors come from shared memory, where the 256 threads of its block put one number each, a step")
    return "\n".join([*lines, _sector_line(launch, accesses, "x")] if any(a.array == "x" for a in accesses) else lines)


def nms_table(launch, accesses):
    """`table`, and the word that the thread writes, in bits."""
    written = [access for access in own(launch, accesses) if access.kind == "write"]
    lines = [table(launch, accesses), ""]
    if not written:
        return "\n".join([*lines, f"the thread has no box: there are {len(launch.arrays['boxes'])}"])
    bits = f"{written[0].value:064b}"
    hit = [b for b in range(64) if bits[63 - b] == "1"]
    lines += [f"the word, bit 63 to bit 0: {' '.join(bits[k:k + 8] for k in range(0, 64, 8))}",
              f"box {launch.number}, if it is kept, puts out the boxes {', '.join(map(str, hit))}" if hit else
              f"box {launch.number} puts no other out",
              "its own box it has read from global memory, those that it compares with from shared memory"]
    return "\n".join(lines)


def _sector_line(launch, accesses, array):
    touched, lanes = sectors(launch, accesses, array)
    return (f"its warp: the first reads of {array} by {lanes} lanes fall into {touched} sectors of {SECTOR} bytes; {lanes} different "
            f"numbers side by side would fill {-(-lanes * launch.arrays[array].itemsize // SECTOR)}")


def table(launch, accesses, notes=None, at_most=16):
    """The thread's accesses as text: each line of the kernel that reads or writes, and below it what.

    notes: {number of the access: what to print beside it}; at_most: accesses of one run of a line before "... more"
    """
    block, thread, warp, lane = place(launch)
    folder = importlib.util.find_spec("nprcnn.kernels.numba_cuda").submodule_search_locations[0]
    code = (Path(folder) / launch.file).read_text(encoding="utf-8").splitlines()
    lines = [f"{launch.kernel} of kernels/numba_cuda/{launch.file}: {launch.title}",
             f"thread {launch.number} of the grid is thread {thread} of block {block}: lane {lane} of its warp {warp}", ""]
    previous, shown = None, 0
    for k, access in enumerate(own(launch, accesses)):
        if access.line != previous:
            lines += [f"... and {shown - at_most} more" if shown > at_most else None,
                      f"{launch.file}:{access.line}   {code[access.line - 1].strip()}"]
            previous, shown = access.line, 0
        shown += 1
        if shown <= at_most:
            what = f"{access.array}[{', '.join(map(str, access.index))}]"
            lines.append(f"    {access.kind}s{'':{6 - len(access.kind)}}{what:24} {access.value:10.4g}   {(notes or {}).get(k, '')}".rstrip())
    if shown > at_most:
        lines.append(f"    ... and {shown - at_most} more")
    return "\n".join(line for line in lines if line is not None)
