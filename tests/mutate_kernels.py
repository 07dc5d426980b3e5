"""Would the checks notice a mistake in the real kernels? Each mutant is a kernel's text with one line changed; it must be caught.

    python tests/mutate_kernels.py               all mutants: a table, exit code 1 if one survives
    python tests/mutate_kernels.py nms           those of the files whose names begin so

The cases are kernel_cases.py's (a mutant runs those of its own file), and the tools those of check_kernels.py, in this order until
one says something:

value        the results differ from the NumPy functions', with the threads of a block in either of two orders; or the process dies
inspector    "CUDA on the CPU" watches every access: out of bounds, races, barriers that not all threads reach
sanitizer    AddressSanitizer with UndefinedBehaviorSanitizer, then ThreadSanitizer

The kernels themselves must pass first. A change that alters nothing (a padding against bank conflicts, a barrier too many) has no
place here.
"""

import concurrent.futures
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import check_kernels
from nprcnn.kernels.cuda import launch


class Mutant(NamedTuple):
    what: str
    file: str               # of kernels/cuda
    old: str
    new: str
    cases: str              # a function of kernel_cases.py
    names: tuple            # the cases whose names contain one of these
    place: int | None = None    # which occurrence of `old`; None: it must be the only one


BARRIER = "__syncthreads();"
ROI, NMS, CONV, WINOGRAD = "roi_align_cases", "nms_cases", "conv_cases", "winograd_cases"
MUTANTS = (
    Mutant("samples beyond the map count", "roi_align.cuh", "point <= real(length))", "point <= real(length) + 2)", ROI, ("v1",)),
    Mutant("a neighbour below the last row", "roi_align.cuh", "min(tap.low + 1, length - 1)", "tap.low + 1", ROI,
           ("roi_align (2, 3) 3 True v1",)),
    Mutant("small RoIs are not widened", "roi_align.cuh", "if (!aligned) side", "if (aligned) side", ROI, ("v1",)),
    Mutant("every RoI from the first image", "roi_align_v1_naive.cu", "(int(roi[0]) * C + c)", "(0 * C + c)", ROI, ("v1",)),
    Mutant("low and high neighbour exchanged", "roi_align_v1_naive.cu", "sum += (1 - ty.fraction) * above + ty.fraction * below",
           "sum += ty.fraction * above + (1 - ty.fraction) * below", ROI, ("v1",)),
    Mutant("no barrier behind the taps", "roi_align_v2_shared_taps.cu", BARRIER, "", ROI, ("align (4, 3) 2 False v2",), 0),
    Mutant("too many channels in the last block", "roi_align_v2_shared_taps.cu", "min(channels_a_block, C - first_channel)",
           "channels_a_block",
           ROI, ("align (4, 3) 2 False v2",)),
    Mutant("a tile read beyond the last pixel", "roi_align_v3_channels_last.cu", "if (c0 + c < C && p0 + threadIdx.x < P)",
           "if (c0 + c < C)", ROI, ("align (4, 3) 2 False v3",)),
    Mutant("no barrier behind the turned tile", "roi_align_v3_channels_last.cu", BARRIER, "", ROI, ("align (4, 3) 2 False v3",), 0),
    Mutant("no barrier before the results are written", "roi_align_v3_channels_last.cu", BARRIER, "", ROI, ("align (4, 3) 2 False v3",), 2),
    Mutant("a share that belongs to the other column", "roi_align_grad_v1_atomics.cu", "share * ty.fraction * tx.fraction",
           "share * ty.fraction * (1 - tx.fraction)", ROI, ("grad", "v1")),
    Mutant("a plain addition instead of an atomic one", "roi_align_grad_v1_atomics.cu",
           "atomicAdd(&dplane[ty.low * W + tx.low], share * (1 - ty.fraction) * (1 - tx.fraction));",
           "dplane[ty.low * W + tx.low] += share * (1 - ty.fraction) * (1 - tx.fraction);", ROI, ("grad (4, 3) 2 False v1",)),
    Mutant("one RoI of the next image, too", "roi_align_grad_v2_ordered.cu", "place < starts[n + 1]", "place <= starts[n + 1]", ROI,
           ("grad",)),
    Mutant("boxes read beyond the last", "nms_v1_bitmask.cu", "if (t < count)", "if (true)", NMS, ("nms of 150 v1", "nms of 1 v1")),
    Mutant("a shift of an int", "nms_v1_bitmask.cu", "1ULL << b", "1 << b", NMS, ("nms of 150 v1",)),
    Mutant("no barrier between reading and changing", "nms_v1_bitmask.cu", BARRIER, "", NMS, ("nms of 150 v1",), 2),
    Mutant("a box puts itself out", "nms_v2_groups.cu", "row_block == column_block ? t + 1 : 0",
           "row_block == column_block ? t : 0", NMS, ("v2",)),
    Mutant("the wrong bit of the kept ones", "nms_v2_groups.cu", "if (kept >> b & 1) out", "if (kept >> (b + 1) & 1) out", NMS, ("v2",)),
    Mutant("no barrier before the kept ones are used", "nms_v2_groups.cu", BARRIER, "", NMS, ("nms of 150 v2",), 2),
    Mutant("one row too far", "conv2d_v1_naive.cu", "if (iy < 0 || iy >= H) continue;", "if (iy < 0 || iy > H) continue;", CONV,
           ("conv2d (2, 3, 9, 7)",), 0),
    Mutant("one column too far", "conv2d.cuh", "ix >= 0 && ix < s.W ? x[", "ix >= 0 && ix <= s.W ? x[", CONV, ("conv2d (2, 3, 9, 7)",)),
    Mutant("the last number of a part is left out", "conv2d.cuh", "min(depth, first + part)", "min(depth, first + part - 1)", CONV,
           ("17, 18",)),
    Mutant("the last part is left out", "conv2d.cuh", "part < parts; ++part", "part < parts - 1; ++part", CONV,
           ("grad_w (1, 1, 17, 18)",)),
    Mutant("no barrier before the tiles are used", "conv2d_v2_tiles.cu", BARRIER, "", CONV,
           ("conv2d (2, 3, 9, 7) (5, 3, 3, 3) [1, 1, 1, 1] v2",), 0),
    Mutant("no barrier before the next tiles", "conv2d_v2_tiles.cu", BARRIER, "", CONV,
           ("conv2d (2, 3, 9, 7) (5, 3, 3, 3) [1, 1, 1, 1] v2",), 1),
    Mutant("filters read beyond their last number", "conv2d_v3_registers.cu", "row0 + m < rows && k0 + k < stop ?",
           "row0 + m < rows ?", CONV,
           ("conv2d (2, 3, 9, 7) (5, 3, 3, 3) [1, 1, 1, 1] v3",)),
    Mutant("rows of another thread", "conv2d_v3_registers.cu", "a[k][threadIdx.y + 16 * u]", "a[k][threadIdx.y * 4 + u]", CONV, ("v3",)),
    Mutant("the bit of the next tap", "conv2d_v4_vectors.cu", "inside >> tap.y & 1", "inside >> (tap.y + 1) & 1", CONV, ("v4",)),
    Mutant("pixels written beyond the last", "conv2d_v4_vectors.cu", "if (!whole && c < pixels)", "if (!whole)", CONV,
           ("conv2d (3, 4, 7, 7) (20, 4, 3, 3) [1, 1, 1, 1] v4",)),
    Mutant("no barrier in the loop", "conv2d_v4_vectors.cu", BARRIER, "", CONV,
           ("conv2d (1, 4, 4, 6) (132, 4, 3, 3) [1, 1, 1, 1] v4",), 1),
    Mutant("no barrier in the loop", "conv2d_v5_tensor_cores.cu", BARRIER, "", CONV,
           ("conv2d (3, 4, 7, 7) (20, 4, 3, 3) [1, 1, 1, 1] v5",), 1),
    Mutant("no barrier before the loop", "conv2d_winograd.cu", BARRIER, "", WINOGRAD, ("winograd (1, 4, 8, 8)",), 0),
    Mutant("one step too few", "conv2d_winograd.cu", "for (int k0 = 0; k0 < C; k0 += DEPTH)", "for (int k0 = DEPTH; k0 < C; k0 += DEPTH)", WINOGRAD,
           ("winograd (1, 4, 8, 8)",)),
    Mutant("tiles written beyond the last", "conv2d_winograd.cu", "if (to < T4 / 4)", "if (to <= T4 / 4)", WINOGRAD, ("winograd (1, 4, 8, 8)",)),
)
# What a process runs. Of the cases it computes those that were asked for, with the mutated text in the place of the file's.
RUN = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
import kernel_cases, mutate_kernels
from nprcnn.kernels.cuda import launch
number, path, orders = int(sys.argv[2]), sys.argv[3], sys.argv[4].split(",")
mutant = mutate_kernels.MUTANTS[abs(number) - 1]
if number > 0:
    launch.source = mutate_kernels.mutated_source(mutant)
class Some(kernel_cases.Cases):
    def compare(self, what, *rest):
        if any(name in what for name in mutant.names):
            super().compare(what, *rest)
rows = []
for order in orders:
    os.environ["CUDA_ON_CPU_ORDER"] = order
    cases = Some("float32")
    getattr(kernel_cases, mutant.cases)(cases)
    rows += cases.rows
    if not all(row["good"] for row in rows):
        break
json.dump(rows, open(path, "w"))
"""


def mutated_source(mutant):
    """launch.source, but for the mutant's line. ValueError: the file does not have it, or not only once."""
    text = (launch.FOLDER / mutant.file).read_text(encoding="utf-8")
    parts, place = text.split(mutant.old), mutant.place or 0
    if place + 1 >= len(parts) or (mutant.place is None and len(parts) > 2):
        raise ValueError(f"{mutant.file} has {mutant.old!r} {len(parts) - 1} times: write the mutant {mutant.what!r} anew")
    changed = mutant.old.join(parts[:place + 1]) + mutant.new + mutant.old.join(parts[place + 1:])
    original = launch.source

    def source(file):
        whole = original(file)
        return whole.replace(text, changed) if text in whole else whole
    return source


def run(number, mode, folder, orders="0"):
    """The cases of mutant `number` (from 1 on; negative: of the kernel as it is) in a mode: what the tool says, "" if nothing."""
    path = folder / f"{number}-{mode}.json"
    try:
        process = check_kernels.run_python(mode, ["-c", RUN, str(check_kernels.TESTS), str(number), str(path), orders], {})
    except check_kernels.Skipped:
        return ""
    report = check_kernels.REPORT.search(process.stderr)
    if report:
        return next(filter(None, report.groups()))
    if process.returncode:
        last = (process.stderr.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
        return last.split(": ", 2)[-1]
    rows = json.loads(path.read_text())
    if not rows:
        raise ValueError(f"no case of {MUTANTS[abs(number) - 1].cases} has a name with {MUTANTS[abs(number) - 1].names}")
    wrong = [row for row in rows if not row["good"]]
    return f"{wrong[0]['what']} differs by {wrong[0]['error']:.0e}" if wrong else ""


def catch(number, folder):
    """(tool, what it says), or (None, why) if the mutant survives."""
    tools = (("value", "run", "0,7"), ("inspector", "inspect", "0"), ("sanitizer", "asan", "0"), ("sanitizer", "tsan", "0"))
    for tool, mode, orders in tools:
        try:
            said = run(number, mode, folder, orders)
        except ValueError as error:         # the cases have changed: write the mutant anew
            return None, str(error)
        if said:
            return tool, said
    return None, "nothing is noticed"


def main(beginnings):
    began = time.time()
    numbers = [i for i, mutant in enumerate(MUTANTS, 1) if mutant.file.startswith(beginnings)]
    processes = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    survived = []
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(processes) as pool:
        folder = Path(folder)
        kernels = {MUTANTS[i - 1].file: i for i in numbers}         # as they are: one set of cases a file
        sound = {file: pool.submit(run, -i, "run", folder, "0,7") for file, i in kernels.items()}
        caught = {i: pool.submit(catch, i, folder) for i in numbers}
        wrong = {}
        for file, future in sound.items():
            try:
                said = future.result()
            except ValueError as error:
                said = str(error)
            if said:
                wrong[file] = said
        for file, said in wrong.items():
            print(f"{file} without a mutant: {said}")
        print(f"{'file':32} {'mutant':46} {'caught by':10} what it says")
        for i, future in caught.items():
            tool, said = future.result()
            survived += [] if tool else [MUTANTS[i - 1].what]
            print(f"{MUTANTS[i - 1].file:32} {MUTANTS[i - 1].what:46} {tool or 'SURVIVED':10} {said[:70]}", flush=True)
    print(f"{len(numbers) - len(survived)} of {len(numbers)} mutants caught, in {time.time() - began:.0f} s")
    return 1 if survived or wrong else 0


if __name__ == "__main__":
    sys.exit(main(tuple(sys.argv[1:]) or ("",)))
