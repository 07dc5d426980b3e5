"""Watch kernels at work: every access to memory counted, checked, and led back to its line.

    with inspect() as launches:
        roi_align(features, rois, 0.25, 7)
    print(report(launches))
    print(report_lines(launches[0]))

While an inspection runs, each launch is also checked: an access outside of the arrays, a race between threads, shared memory that
nobody has written, a misaligned vector load. Any of them is a LaunchError that names the line. inspect.cpp does the work and says how.

What is counted is what the kernel asks of the memory, warp by warp, as a GPU without caches would have to do it; `a_block` and
`a_launch` say how much of that is different memory, which is what an ideal cache would leave.
"""

import ctypes
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .loader import MODES, LaunchError

SECTOR = 32                         # bytes that global memory moves at once
KINDS = ("read", "write", "atomic")
SHARED = -1
_LINE = np.dtype([(name, "i8") for name in ("pc", "space", "kind", "size", "accesses", "lanes", "bytes", "sectors", "passes", "least_passes")])
_ACCESS = np.dtype([("address", "u8"), ("pc", "u4"), ("space", "i2"), ("size", "u1"), ("kind", "u1")])

_active = None


class LineCount(NamedTuple):
    """What one line of a kernel did to one array, or to shared memory.

    accesses: instructions of a warp. lanes: of single threads. sectors: of 32 bytes, of global memory. passes: over shared memory, of
    which least_passes would do without bank conflicts.
    """

    file: str
    line: int
    memory: str                     # the array's name in the kernel, or "shared"
    kind: str                       # "read", "write" or "atomic"
    size: int                       # bytes a thread
    accesses: int
    lanes: int
    bytes: int
    sectors: int
    passes: int
    least_passes: int


class Access(NamedTuple):
    """One access of one thread: element `index` of an array; for shared memory the byte, from the lowest address that was seen."""

    thread: int
    file: str
    line: int
    memory: str
    kind: str
    index: int


class Launch(NamedTuple):
    """One launch and all its counts."""

    kernel: str
    grid: tuple
    block: tuple
    lines: list                     # of LineCount
    a_block: dict                   # array's name -> sectors that differ within a block, summed over the blocks
    a_launch: dict                  # array's name -> sectors that differ within the launch
    trace: list                     # of Access, of the block that inspect() was asked to trace

    def total(self, field, shared=False, kinds=KINDS):
        """The sum of one field of the lines, of global or of shared memory."""
        return sum(getattr(line, field) for line in self.lines if (line.memory == "shared") == shared and line.kind in kinds)


class inspect:
    """Watch all launches within a `with` block; gives the list that they are appended to.

    Parameters
    ----------
    trace_block : int or None
        Of the block with this number in the grid, every single access is kept, in `Launch.trace`.
    """

    def __init__(self, trace_block=None):
        self.trace_block = -1 if trace_block is None else int(trace_block)
        self.launches = []

    def __enter__(self):
        global _active
        self.previous, _active = _active, self
        return self.launches

    def __exit__(self, *exception):
        global _active
        _active = self.previous


def mode():
    """How kernels are to be compiled now: "inspect" within an inspection, else what $CUDA_ON_CPU_MODE says, else "run"."""
    if _active is not None:
        return "inspect"
    name = os.environ.get("CUDA_ON_CPU_MODE") or "run"
    if name not in MODES:
        raise ValueError(f"CUDA_ON_CPU_MODE is {name!r}; choose one of: {', '.join(MODES)}")
    return name


def watched(kernel):
    """The kernel itself or, if it was compiled for inspection, one that reports to the inspection."""
    return _Watched(kernel) if kernel.module.mode == "inspect" else kernel


class _Watched:
    def __init__(self, kernel):
        self.kernel, self.engine = kernel, kernel.module.engine

    def __call__(self, grid, block, args, shared_mem=0):
        inspection = _active if _active is not None else inspect()
        arrays = [(i, a) for i, a in enumerate(args) if isinstance(a, np.ndarray)]
        writable = [self.kernel.parameters[i][0] == "*" for i, _ in arrays]
        names = [parameter_name(self.kernel, i) for i, _ in arrays]
        count = len(arrays)
        self.engine.inspect_arrays((ctypes.c_uint64 * count)(*[a.ctypes.data for _, a in arrays]),
                                   (ctypes.c_uint64 * count)(*[a.nbytes for _, a in arrays]),
                                   (ctypes.c_int * count)(*writable), count, ctypes.c_int64(inspection.trace_block))
        try:
            self.kernel(grid, block, args, shared_mem)
        except LaunchError as error:
            raise LaunchError(self._explain(str(error), names)) from None
        inspection.launches.append(self._collect(grid, block, arrays, names))

    def _collect(self, grid, block, arrays, names):
        rows = self._array("inspect_lines", _LINE)
        accesses, threads = self._trace()
        where = find_lines(self.kernel.module.path, {int(pc) for pc in rows["pc"]} | {int(pc) for pc in accesses["pc"]})

        def memory(space):
            return "shared" if space == SHARED else names[space]

        # several instructions may belong to one line
        sums = {}
        for row in rows:
            key = (*where[int(row["pc"])], memory(row["space"]), KINDS[row["kind"]], int(row["size"]))
            sums[key] = sums.get(key, 0) + np.array([int(row[name]) for name in _LINE.names[4:]])
        lines = [LineCount(*key, *map(int, values)) for key, values in sorted(sums.items())]
        first = dict.fromkeys(range(len(arrays)), 0)
        size = {space: array.itemsize for space, (_, array) in enumerate(arrays)}
        first[SHARED], size[SHARED] = min(accesses["address"][accesses["space"] == SHARED], default=0), 1
        trace = [Access(int(thread), *where[int(a["pc"])], memory(a["space"]), KINDS[a["kind"]],
                        int(a["address"] - first[a["space"]]) // size[a["space"]]) for thread, a in zip(threads, accesses)]
        a_block, a_launch = {}, {}
        for space, name in enumerate(names):
            block_sectors, launch_sectors = ctypes.c_size_t(), ctypes.c_size_t()
            self.engine.inspect_distinct(space, ctypes.byref(block_sectors), ctypes.byref(launch_sectors))
            a_block[name], a_launch[name] = block_sectors.value, launch_sectors.value
        return Launch(self.kernel.name, tuple(grid), tuple(block), lines, a_block, a_launch, trace)

    def _array(self, function, dtype, *more):
        """A copy of the array that a function of the engine gives by pointer and length."""
        call = getattr(self.engine, function)
        call.restype = ctypes.c_size_t
        pointer = ctypes.c_void_p()
        count = call(ctypes.byref(pointer), *more)
        return np.frombuffer(ctypes.string_at(pointer, count * dtype.itemsize), dtype) if count else np.zeros(0, dtype)

    def _trace(self):
        threads = ctypes.c_void_p()
        accesses = self._array("inspect_trace", _ACCESS, ctypes.byref(threads))
        numbers = np.frombuffer(ctypes.string_at(threads, 4 * len(accesses)), np.uint32) if len(accesses) else np.zeros(0, np.uint32)
        return accesses, numbers

    def _explain(self, message, names):
        """Put names and lines into the engine's message."""
        pcs = {int(pc, 16) for pc in re.findall(r"@(0x[0-9a-f]+)@", message)}
        where = find_lines(self.kernel.module.path, pcs)
        message = re.sub(r"@(0x[0-9a-f]+)@", lambda m: "{}:{}".format(*where[int(m[1], 16)]), message)
        return re.sub(r"#(\d+)#", lambda m: names[int(m[1])], message)


def parameter_name(kernel, i):
    """The name of a kernel's parameter number i, from its text."""
    text = re.sub(r"//[^\n]*", "", kernel.module.code)
    found = re.search(r"\b" + kernel.name + r"\s*\(([^{]*)\)\s*\{", text)
    names = re.findall(r"(\w+)\s*(?:,|$)", found[1].strip()) if found else []
    return names[i] if i < len(names) else f"argument {i}"


def find_lines(library, pcs):
    """Addresses in a library -> {address: (file name, line)}; ("?", 0) where there is no addr2line or no debug information."""
    tool, pcs = shutil.which("addr2line"), sorted(pcs)
    found = {pc: ("?", 0) for pc in pcs}
    if tool is None or not pcs:
        return found
    text = subprocess.run([tool, "-a", "-i", "-e", str(library), *map(hex, pcs)], capture_output=True, text=True).stdout
    current = None
    for line in text.splitlines():
        if line.startswith("0x"):
            current = int(line, 16)
        elif found[current][1] == 0:            # from the innermost function outwards: the first line that is a kernel's
            file, _, number = line.rpartition(":")
            number = re.match(r"\d*", number)[0]
            if number and not file.endswith("cuda_on_cpu.h"):
                found[current] = Path(file).name, int(number)
    return found


def report(launches, names=None):
    """A table, a row a launch.

    Parameters
    ----------
    launches : list of Launch
    names : list of str, what to call them (the kernel's name if None)

    Returns
    -------
    str. "asked" is what the threads read and wrote; "moved" is whole sectors, so what global memory had to deliver; "differs in a block"
    and "in all" say how much of that an ideal cache, of a block or of the whole GPU, would leave; "conflicts" are passes over shared
    memory beyond those needed.
    """
    head = (f"{'':28} {'global':>10} {'sectors':>10} {'sectors':>8} {'asked':>9} {'moved':>9} {'differs in':>11} {'in all':>9} {'shared':>10} "
            f"{'conflicts':>10} {'atomics':>9}\n{'':28} {'accesses':>10} {'':>10} {'/ access':>8} {'KB':>9} {'KB':>9} {'a block KB':>11} {'KB':>9} "
            f"{'accesses':>10} {'':>10} {'':>9}")
    rows = [head]
    for name, launch in zip(names or [launch.kernel for launch in launches], launches):
        accesses, sectors = launch.total("accesses"), launch.total("sectors")
        shared = launch.total("accesses", shared=True)
        conflicts = launch.total("passes", shared=True) - launch.total("least_passes", shared=True)
        rows.append(f"{name:28} {accesses:10,} {sectors:10,} {sectors / max(accesses, 1):8.1f} {launch.total('bytes') / 1024:9,.0f} "
                    f"{sectors * SECTOR / 1024:9,.0f} {sum(launch.a_block.values()) * SECTOR / 1024:11,.0f} "
                    f"{sum(launch.a_launch.values()) * SECTOR / 1024:9,.0f} {shared:10,} {conflicts:10,} {launch.total('lanes', kinds=('atomic',)):9,}")
    return "\n".join(rows)


def report_lines(launch):
    """A table, a row for each line of the kernel that touches memory."""
    rows = [f"{'line':38} {'memory':>10} {'kind':>7} {'bytes':>6} {'accesses':>9} {'lanes':>6} {'sectors / access':>17} {'conflicts':>10}"]
    for c in launch.lines:
        sectors = f"{c.sectors / c.accesses:17.1f}" if c.memory != "shared" else f"{'':17}"
        conflicts = f"{c.passes - c.least_passes:10,}" if c.memory == "shared" else ""
        rows.append(f"{c.file + ':' + str(c.line):38} {c.memory:>10} {c.kind:>7} {c.size:6} {c.accesses:9,} {c.lanes / c.accesses:6.1f} {sectors} {conflicts}")
    return "\n".join(rows)
