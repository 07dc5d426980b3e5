"""The CUDA kernels without a GPU, beyond pytest: one command, some minutes, exit code 1 if anything is wrong.

    python tests/check_kernels.py                       all four parts
    python tests/check_kernels.py kernels planted       some of them

kernels    every kernel on small odd shapes (kernel_cases.py) against the NumPy functions: plainly; with the threads of a block in another
           order; under the inspector of "CUDA on the CPU", which checks every access; under AddressSanitizer and
           UndefinedBehaviorSanitizer; under ThreadSanitizer. Each in a process of its own, started with the sanitizer.
coverage   which lines of the .cu and .cuh files those cases ran, counted by gcov: at least 95 % of each file
planted    kernels with a mistake planted in each (planted.cu), and which tool finds it
nvrtc      every .cu file compiled to machine code by NVIDIA's compiler, for every generation of GPUs: registers, no spills
"""

import argparse
import concurrent.futures
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from kernel_cases import all_kernels
from nprcnn.kernels.cuda import launch, nvrtc
from nprcnn.kernels.cuda_on_cpu import compiler, loader

TESTS = Path(__file__).resolve().parent
LEAST_COVERAGE = 95         # percent of a file's lines
LIMIT = 1500                # seconds that one process may take, on a machine that is busy with other things
BOTH, SINGLE = ("float32", "float64"), ("float32",)
# name: mode, what else is in its environment, dtypes. Races and bounds do not depend on the dtype.
RUNS = {
    "plain": ("run", {}, BOTH),
    "other order": ("run", {"CUDA_ON_CPU_ORDER": "7"}, SINGLE),
    "inspector": ("inspect", {}, SINGLE),
    "asan, ubsan": ("asan", {}, BOTH),
    "tsan": ("tsan", {}, SINGLE),
    "coverage": ("coverage", {}, SINGLE),
}
LIBRARIES = {"asan": ("libasan.so", "libubsan.so"), "tsan": ("libtsan.so",)}
REPORT = re.compile(r"ERROR: AddressSanitizer: ([\w-]+)|runtime error: ([^\n]+)|WARNING: ThreadSanitizer: ([\w -]+?) \(")
CORRECT = {"correct", "correct_warps"}
# Which tools must find a planted mistake: the inspector all but the shift, and these. (A plain run and the sanitizers find a warp that has
# come apart as well, for the engine does; to ThreadSanitizer a shuffle is a barrier.)
ASAN = {"write_past_the_end", "read_before_the_start", "write_past_shared", "write_past_dynamic_shared", "misaligned_vector", "shift_of_an_int"}
TSAN = {"missing_barrier", "missing_second_barrier", "missing_syncwarp", "plain_addition_in_a_block", "plain_addition_across_blocks"}
COUNTING = {"patterns"}     # takes other arguments; test_cuda_on_cpu.py runs it
# The others write to y[threadIdx.x]: with more than one block each of them would have a race beside the planted mistake
FOUR_BLOCKS = {"correct", "write_past_the_end", "plain_addition_across_blocks"}
RUN_PLANTED = """
import sys, numpy as np
from nprcnn.kernels.cuda_on_cpu import inspection
from nprcnn.kernels.cuda_on_cpu.loader import LaunchError, Module
path, mode, name, blocks = sys.argv[1:]
module = Module('#line 1 "planted.cu"\\n' + open(path).read(), mode=mode, name="planted")
x, y = np.arange(250, dtype=np.float32), np.zeros(64, np.float32)
try:
    inspection.watched(module.get_function(name))((int(blocks),), (64,), (x, y, np.int32(250)), shared_mem=256)
    print("said:")
except LaunchError as error:
    print("said:", str(error).split(": ", 1)[1])
"""


class Skipped(Exception):
    """This machine lacks something; the message says what."""


def run_python(mode, arguments, more):
    """A Python process that runs kernels in a mode, with the sanitizer loaded first: the finished process, its output as text."""
    environment = {**os.environ, "CUDA_ON_CPU_MODE": mode, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **more}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(TESTS.parent), os.environ.get("PYTHONPATH"))))
    path, _ = compiler.find()
    libraries = [subprocess.run([path, f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
                 for name in LIBRARIES.get(mode, ())]
    for name in libraries:
        if not Path(name).is_absolute():
            raise Skipped(f"{path} has no {name}")
    if libraries:
        environment.update(LD_PRELOAD=":".join(libraries), ASAN_OPTIONS="detect_leaks=0", TSAN_OPTIONS="exitcode=66")
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=LIMIT, cwd=TESTS.parent)


# ---- kernels ----

def run_cases(name, folder):
    """One run of all cases -> its rows, as kernel_cases.py writes them, and what went wrong (text, or None)."""
    mode, more, reals = RUNS[name]
    if mode == "coverage":
        more = {**more, "GCOV_PREFIX": str(folder), "GCOV_PREFIX_STRIP": "99"}       # the counts go there, not to where it was compiled
    results = folder / f"{name}.json"
    process = run_python(mode, [str(TESTS / "kernel_cases.py"), str(results), *reals], more)
    wrong = None
    if process.returncode or REPORT.search(process.stderr):
        last = (process.stdout.strip().splitlines() or ["the start"])[-1]
        wrong = f"exit code {process.returncode}, last at: {last}\n{process.stderr[-6000:]}"
    return json.loads(results.read_text()) if results.exists() else [], wrong


def kernel_table(runs):
    """runs: {name: (rows, what went wrong) or Skipped} -> lines of a table, whether all is good."""
    names = list(runs)
    lines, good = [f"{'file':32} {'kernel':26}" + "".join(f"{name:>20}" for name in names)], True
    for file, kernels in all_kernels().items():
        for kernel in kernels:
            line = f"{file:32} {kernel:26}"
            for name in names:
                if isinstance(runs[name], Skipped):
                    line += f"{'skipped':>20}"
                    continue
                rows, wrong = runs[name]
                mine = [row for row in rows if [file, kernel] in row["kernels"]]
                passed = sum(row["good"] for row in mine)
                fine = bool(mine) and passed == len(mine) and wrong is None
                good &= fine
                largest = max((row["error"] for row in mine), default=0)
                line += f"{('' if fine else 'FAILED ') + f'{passed}/{len(mine)} {largest:.0e}':>20}"
            lines.append(line)
    for name, run in runs.items():
        if isinstance(run, Skipped):
            lines.append(f"{name}: skipped: {run}")
        elif run[1] is not None:
            lines.append(f"{name}: {run[1]}")
        else:
            lines += [f"{name}: {row['what']}, {row['real']}: differs by {row['error']:.1e}" for row in run[0] if not row["good"]]
    return lines, good


# ---- coverage ----

def count_lines(folder):
    """{file: {line: how often it ran}} from the counts in `folder`, of all modules that contain the file."""
    tool = shutil.which("gcov")
    if tool is None or "clang" in compiler.find()[1]:
        raise Skipped("the lines are counted by g++ and its gcov")
    counts = sorted(folder.glob("*.gcda"))
    for path in counts:
        shutil.copy(compiler.cache_folder() / f"{path.stem}.gcno", folder)
    text = subprocess.run([tool, "--json-format", "--stdout", *(path.name for path in counts)], cwd=folder, capture_output=True, text=True,
                          check=True).stdout
    lines = {path.name: {} for path in sorted(launch.FOLDER.glob("*.cu*"))}
    for module in text.splitlines():
        for file in json.loads(module)["files"]:
            path = Path(file["file"])
            if path.parent != launch.FOLDER:
                continue
            length = len(path.read_text(encoding="utf-8").splitlines())     # what the loader writes behind the file counts on
            found = lines[path.name]
            for line in file["lines"]:
                if line["line_number"] <= length:
                    found[line["line_number"]] = max(found.get(line["line_number"], 0), line["count"])
    return lines


def coverage_table(lines):
    table, good = [f"{'file':32} {'lines':>6} {'ran':>6} {'percent':>8}  not run"], True
    for file, counts in lines.items():
        ran = sum(count > 0 for count in counts.values())
        percent = 100 * ran / len(counts) if counts else 0
        good &= percent >= LEAST_COVERAGE
        missing = ", ".join(str(line) for line, count in sorted(counts.items()) if not count)
        table.append(f"{file:32} {len(counts):6} {ran:6} {percent:8.1f}{'' if percent >= LEAST_COVERAGE else ' FAILED'}  {missing}")
    return table, good


# ---- planted ----

def run_planted(mode, name):
    """What the tool says about one planted kernel: text, "" if nothing."""
    blocks = 4 if name in FOUR_BLOCKS else 1
    process = run_python(mode, ["-c", RUN_PLANTED, str(TESTS / "planted.cu"), mode, name, str(blocks)], {})
    report = REPORT.search(process.stderr)
    if report:
        return next(filter(None, report.groups()))
    ended = re.search(r"^said:(.*)$", process.stdout, re.M)
    return ended[1].strip() if ended and process.returncode == 0 else f"exit code {process.returncode}"


def planted_table(found):
    """found: {(mode, kernel): what the tool says}."""
    def as_it_must(mode, name):
        said = found[mode, name]
        if isinstance(said, Skipped):
            return True
        if name in CORRECT:
            return not said
        must = {"run": False, "inspect": name != "shift_of_an_int", "asan": name in ASAN, "tsan": name in TSAN}[mode]
        return bool(said) or not must

    modes = list(dict.fromkeys(mode for mode, _ in found))
    table, good = [f"{'planted':30}" + "".join(f"{mode:34}" for mode in modes)], True
    for name in dict.fromkeys(name for _, name in found):
        fine = all(as_it_must(mode, name) for mode in modes)
        good &= fine
        said = ["skipped" if isinstance(found[mode, name], Skipped) else found[mode, name][:32] or "-" for mode in modes]
        table.append(f"{name:30}" + "".join(f"{text:34}" for text in said) + ("" if fine else "FAILED"))
    return table, good


# ---- nvrtc ----

def compile_all(library, file, architecture):
    """Usage of one file's kernels on one architecture, and whether its PTX has float64 arithmetic."""
    usage, ptx = nvrtc.compile_file(library, file, architecture)
    return usage, ".f64" in ptx


def nvrtc_table(found):
    """found: {(file, architecture): (usage, has float64)}."""
    table = [f"{'file':28} {'kernel':26}" + "".join(f"{architecture:>9}" for architecture in nvrtc.ARCHITECTURES)]
    good = True
    for file in nvrtc.files():
        for kernel in found[file, nvrtc.ARCHITECTURES[-1]][0]:
            line = f"{file:28} {kernel:26}"
            for architecture in nvrtc.ARCHITECTURES:
                if architecture not in nvrtc.architectures(file):
                    line += f"{'-':>9}"
                    continue
                usage, float64 = found[file, architecture][0][kernel], found[file, architecture][1]
                fine = usage.spills == 0 and not float64
                good &= fine
                line += f"{usage.registers:9}" if fine else f"{usage.registers} FAILED ({usage.spills} bytes spilled{', float64' if float64 else ''})"
            table.append(line)
    return [*table, "registers a thread (-: TF32 begins with sm_80); nothing is spilled, no float64 arithmetic in float32" if good else
            "FAILED"], good


# ---- all ----

def wait_for(futures):
    """{key: future} -> {key: result}; the Skipped itself where it was skipped."""
    results = {}
    for key, future in futures.items():
        try:
            results[key] = future.result()
        except Skipped as reason:
            results[key] = reason
    return results


def show(title, table, good):
    print(f"\n== {title}: {'good' if good else 'FAILED'}", *table, sep="\n", flush=True)
    return good


def main(parts):
    compiler.find()
    began, good = time.time(), True
    processes = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(processes) as pool:
        folder = Path(folder)
        wanted = [name for name in RUNS if ("coverage" if name == "coverage" else "kernels") in parts]
        # The longest first
        runs = {name: pool.submit(run_cases, name, folder) for name in sorted(wanted, key=lambda name: name != "tsan")}
        kernels = loader.KERNEL.findall((TESTS / "planted.cu").read_text()) if "planted" in parts else []
        planted = {(mode, name): pool.submit(run_planted, mode, name) for mode in ("run", "inspect", "asan", "tsan")
                   for name in kernels if name not in COUNTING}
        compiled = {}
        if "nvrtc" in parts:
            try:
                library = nvrtc.load()
                compiled = {(file, architecture): pool.submit(compile_all, library, file, architecture)
                            for file in nvrtc.files() for architecture in nvrtc.architectures(file)}
            except nvrtc.NoNvrtc:
                print("\n== NVRTC: skipped: pip install nvidia-cuda-nvrtc")
        runs = wait_for(runs)
        if runs:
            good &= show("every kernel against NumPy: cases that agree, largest difference relative to 1 + |y|",
                         *kernel_table({name: runs[name] for name in wanted}))
        if "coverage" in runs and not isinstance(runs["coverage"], Skipped):
            try:
                good &= show("lines of the kernels that these cases run (gcov)", *coverage_table(count_lines(folder)))
            except Skipped as reason:
                print(f"\n== coverage: skipped: {reason}")
        if planted:
            good &= show("planted mistakes, and what each tool says of them (run: a plain run)", *planted_table(wait_for(planted)))
        if compiled:
            good &= show("NVIDIA's compiler", *nvrtc_table(wait_for(compiled)))
    spent = os.times()
    print(f"\n{'all good' if good else 'FAILED'}, in {time.time() - began:.0f} s; {sum(spent[:4]):.0f} s of processor time")
    return 0 if good else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="kernels, coverage, planted, nvrtc; all if none is given")
    chosen = parser.parse_args().parts or ["kernels", "coverage", "planted", "nvrtc"]
    unknown = set(chosen) - {"kernels", "coverage", "planted", "nvrtc"}
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    sys.exit(main(chosen))
