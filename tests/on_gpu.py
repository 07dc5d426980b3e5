"""All checks that need a GPU, in turn: one command, under ten minutes; what was found goes into one JSON file after each part.

    python tests/on_gpu.py results.json                  all parts
    python tests/on_gpu.py results.json tests bench      some of them

device       what GPU there is. Without one every other part says so, and the exit code is 2
tests        pytest -m gpu: every kernel in every version against NumPy, whole models, memory that is full
bench        nprcnn bench --device cuda
sanitizers   NVIDIA's compute-sanitizer over the kernels on small shapes (kernel_cases.py): memcheck, racecheck, initcheck, synccheck

Each part is a process of its own with a limit of time, so one that fails or hangs does not stop the rest. Exit code 0: all is good; 1:
something is not, or a tool is missing; 2: no GPU.
"""

import argparse
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree
from pathlib import Path

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
sys.path.insert(0, str(ROOT))
PARTS = ("device", "tests", "bench", "sanitizers")
LIMITS = {"device": 30, "tests": 150, "bench": 220, "sanitizers": 50}      # seconds; of each tool of the sanitizers. Ten minutes in all
TOOLS = {"memcheck": ["--report-api-errors", "no"], "racecheck": [], "initcheck": [], "synccheck": []}
DESCRIBE = """
import json
from nprcnn import devices
from nprcnn.bench.cuda.device import describe
from nprcnn.errors import BackendError
try:
    print(json.dumps(describe(devices.cupy())))
except BackendError as error:
    print(json.dumps({"no_gpu": str(error)}))
"""
FOUND = re.compile(r"^========= ((?:Invalid|Uninitialized|Misaligned|Error: Race|Warning: Race|Barrier|Leaked|Program hit|Out-of-range|Internal)"
                   r".*)$")
KERNEL = re.compile(r"\bat (?:void )?([\w:]+)(?:<.*?>)?(?:\(.*?\))?\+0x")


def run_python(arguments, limit, before=(), **environment):
    """A Python process in the project's folder: (exit code or None if it ran out of time, its output, its seconds)."""
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    began = time.time()
    try:
        process = subprocess.Popen([*before, sys.executable, *arguments], cwd=ROOT, env={**os.environ, "PYTHONPATH": paths, **environment},
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    except OSError as error:
        return 127, str(error), 0.0
    try:
        output, code = process.communicate(timeout=limit)[0], process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)      # with what it has started: a tool starts Python
        output, code = process.communicate()[0], None
    return code, output.decode(errors="replace"), round(time.time() - began, 1)


def result_of(code, output, seconds, good, **more):
    """What every part writes; the end of the output only where something is wrong."""
    found = {"good": bool(good), "exit_code": code, "seconds": seconds, **more}
    if code is None:
        found["stopped"] = "it ran out of time"
    if not good:
        found["output"] = output[-4000:]
    return found


def check_device(folder):
    code, output, seconds = run_python(["-c", DESCRIBE], LIMITS["device"])
    try:
        found = json.loads(output.strip().splitlines()[-1])
    except (ValueError, IndexError):
        found = {"no_gpu": f"the look at the GPU failed: exit code {code}: {output.strip()[-300:]}"}
    return result_of(code, output, seconds, "no_gpu" not in found, **found)


def check_tests(folder):
    report = folder / "tests.xml"
    code, output, seconds = run_python(["-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", f"--junitxml={report}",
                                        str(TESTS / "test_gpu.py")], LIMITS["tests"])
    counts = read_junit(report) if report.exists() else {"passed": 0, "failed": {}, "skipped": {}}
    return result_of(code, output, seconds, code == 0 and counts["passed"] and not counts["failed"], **counts)


def read_junit(path):
    """{"passed": number, "failed": {test: message}, "skipped": {reason: number}, "slowest": {test: seconds}} of pytest's XML file."""
    passed, failed, skipped, times = 0, {}, {}, {}
    for case in xml.etree.ElementTree.parse(path).iter("testcase"):
        name = case.get("name")
        times[name] = float(case.get("time", 0))
        wrong = [child for child in case if child.tag in ("failure", "error")]
        left_out = [child for child in case if child.tag == "skipped"]
        if wrong:
            failed[name] = (wrong[0].get("message") or "")[:500]
        elif left_out:
            reason = (left_out[0].get("message") or "")[:300]
            skipped[reason] = skipped.get(reason, 0) + 1
        else:
            passed += 1
    slowest = dict(sorted(times.items(), key=lambda item: -item[1])[:5])
    return {"passed": passed, "failed": failed, "skipped": skipped, "slowest": slowest}


def check_bench(folder):
    report = folder / "bench.json"
    code, output, seconds = run_python(["-m", "nprcnn", "bench", "--device", "cuda", "--rounds", "5", "--json", str(report)],
                                       LIMITS["bench"])
    measured = json.loads(report.read_text()) if report.exists() else None
    print(output)
    return result_of(code, output, seconds, code == 0, measured=measured)


def check_sanitizers(folder):
    tool = find_sanitizer()
    if tool is None:
        return {"good": False, "missing": "compute-sanitizer is not installed; it comes with NVIDIA's CUDA Toolkit"}
    found = {}
    for name, options in TOOLS.items():
        rows = folder / f"{name}.json"
        code, output, seconds = run_python([str(TESTS / "on_gpu.py"), "--cases", str(rows)], LIMITS["sanitizers"],
                                           [tool, "--tool", name, "--print-limit", "100", *options])
        cases = json.loads(rows.read_text()) if rows.exists() else []
        wrong = [f"{row['what']}: differs by {row['error']:.1e}" for row in cases if not row["good"]]
        ours, others = read_reports(output)
        done = code == 0 and "SUMMARY" in output and bool(cases)
        found[name] = result_of(code, output, seconds, done and not wrong and not ours, cases=len(cases), wrong=wrong, reports=ours,
                                reports_of_other_kernels=others)
        print(f"{name}: {'good' if found[name]['good'] else 'NOT GOOD'}, {len(cases)} cases, {len(ours)} reports, {seconds} s", flush=True)
    return {"good": all(f["good"] for f in found.values()), "tools": found}


def find_sanitizer():
    """The path of compute-sanitizer, or None."""
    places = [Path(os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"),
              *sorted(Path("/usr/local").glob("cuda-*"))]
    names = [shutil.which("compute-sanitizer"), *(str(place / "bin" / "compute-sanitizer") for place in places)]
    return next((name for name in names if name and Path(name).exists()), None)


def read_reports(output):
    """What a tool says of the project's kernels, each text once, and of how many others (CuPy's sorting, for instance)."""
    from kernel_cases import all_kernels
    mine = {kernel for kernels in all_kernels().values() for kernel in kernels}
    ours, others, lines = {}, {}, output.splitlines()
    for i, line in enumerate(lines):
        what = FOUND.match(line.strip())
        if not what:
            continue
        kernels = KERNEL.findall("\n".join(lines[i:i + 3]))
        name = kernels[0] if kernels else "?"
        into = others if kernels and not mine & set(kernels) else ours
        key = f"{what[1][:200]} ({name})"
        into[key] = into.get(key, 0) + 1
    return ours, others


def run_cases(path):
    """What the sanitizers watch: kernel_cases.py with its arrays on the GPU."""
    import numpy as np
    import kernel_cases
    from nprcnn import devices
    from nprcnn.kernels.cuda import conv2d, nms, norm_relu, paste, pool, resize, roi_align, roi_pool
    cupy = devices.cupy()
    if hasattr(cupy.cuda, "set_allocator"):
        cupy.cuda.set_allocator(None)       # no pool: each array is an allocation of its own, with an end that the tools know

    def move(value):
        return cupy.asarray(value) if isinstance(value, np.ndarray) else value

    def back(value):
        return tuple(map(back, value)) if isinstance(value, tuple) else value.get() if hasattr(value, "get") else value

    def on_gpu(function):
        @functools.wraps(function)
        def run(*args, **kwargs):
            if not any(isinstance(arg, np.ndarray) for arg in args):     # one of the functions calls another
                return function(*args, **kwargs)
            return back(function(*map(move, args), **kwargs))
        return run

    functions = {conv2d: ("conv2d", "conv2d_grad_x", "conv2d_grad_w"), nms: ("nms", "batched_nms"), norm_relu: ("norm_relu",),
                 paste: ("paste_masks",), pool: ("max_pool2d", "max_pool2d_grad"), roi_align: ("roi_align", "roi_align_grad"),
                 roi_pool: ("roi_pool", "roi_pool_grad"),
                 resize: ("resize_nearest", "resize_bilinear", "resize_nearest_grad", "resize_bilinear_grad")}
    for module, names in functions.items():
        for name in names:
            setattr(module, name, on_gpu(getattr(module, name)))
    kernel_cases.main(path, "float32")


def main(path, parts):
    checks = {"device": check_device, "tests": check_tests, "bench": check_bench, "sanitizers": check_sanitizers}
    results, began = {}, time.time()

    def write():
        whole = {"good": all(part["good"] for part in results.values()), "seconds": round(time.time() - began, 1), "parts": results}
        Path(path).write_text(json.dumps(whole, indent=1) + "\n")
        return whole["good"]
    with tempfile.TemporaryDirectory() as folder:
        for name in dict.fromkeys(("device", *parts)):
            print(f"== {name}", flush=True)
            no_gpu = results.get("device", {}).get("no_gpu")
            try:
                results[name] = {"good": False, "no_gpu": no_gpu} if no_gpu else checks[name](Path(folder))
            except Exception as error:      # a fault of this script must not cost the other parts
                results[name] = {"good": False, "error": f"{type(error).__name__}: {error}"}
            good = write()
            brief = {key: value for key, value in results[name].items() if key not in ("measured", "output", "tools")}
            print(json.dumps(brief), results[name].get("output", "") if name != "bench" else "", sep="\n", flush=True)
    return 2 if results["device"].get("no_gpu") else 0 if good else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", help="the JSON file to write")
    parser.add_argument("parts", nargs="*", help=f"some of: {', '.join(PARTS)} (all)")
    parser.add_argument("--cases", action="store_true", help=argparse.SUPPRESS)       # what the sanitizers start
    chosen = parser.parse_args()
    if set(chosen.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(set(chosen.parts) - set(PARTS)))}")
    if chosen.cases:
        run_cases(chosen.path)
    else:
        sys.exit(main(chosen.path, chosen.parts or PARTS))
