"""Kill a short training many times and look at what it comes to: python tests/kills.py --kills 50

Each life of the training is a process of its own, which goes on from the last checkpoint and is ended by SIGKILL at a random moment:
while it loads, in a step, in the middle of a file that is being written, before a flush, before a rename. In the end the weights, the
checkpoint and the log must be those of an undisturbed training, bit for bit. Not collected by pytest; test_checkpoint.py has a short form.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from nprcnn.errors import WeightsError  # noqa: E402
from nprcnn.train.checkpoint import latest_checkpoint  # noqa: E402
from nprcnn.train.log import read_log  # noqa: E402


def start(out, steps, *more):
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent), "NPRCNN_KERNELS": "numpy", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "tiny_training.py"), str(out), "--steps", str(steps), "--save-every", "2", *more]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def state(out):
    """(step of the checkpoint that would be taken, what is said about it)"""
    try:
        found, note = latest_checkpoint(out)
        return found.step, note or ""
    except WeightsError:
        return 0, "no checkpoint yet"


def result(out):
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in read_log(out / "history.jsonl")]
    return (out / "weights.safetensors").read_bytes(), (out / "checkpoint.safetensors").read_bytes(), rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng, begun = random.Random(args.seed), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        whole, out = Path(folder) / "undisturbed", Path(folder) / "killed"
        assert start(whole, args.steps).wait() == 0
        expected = result(whole)
        print(f"undisturbed: {args.steps} steps, {time.perf_counter() - begun:.0f} s", flush=True)
        failures = while_writing = kills = 0
        while kills < args.kills:
            log, how, before = out / "history.jsonl", rng.random(), state(out)
            size = log.stat().st_size if log.exists() else 0
            if how < 0.5:  # by itself, at a chosen moment of writing
                point = f"{rng.choice(['write', 'fsync', 'replace'])}:{rng.randint(1, 12)}"
                child, text = start(out, args.steps, "--die", point), f"while writing ({point})"
                while_writing += 1
                child.wait()
            else:
                child = start(out, args.steps)
                if how < 0.9:  # somewhere in the training; else somewhere in its first second
                    while child.poll() is None and not (log.exists() and log.stat().st_size != size):
                        time.sleep(0.002)
                delay = 0.8 * rng.random()
                time.sleep(delay)
                child.kill()
                text = f"{delay:.2f} s after its {'first line' if how < 0.9 else 'start'}"
                child.wait()
            error = child.stderr.read()
            child.stdout.close(), child.stderr.close()
            if child.returncode == 0:
                print("the training came to its end before all kills; give more --steps")
                break
            failures += child.returncode != -9
            kills += 1
            after, partial = state(out), [p.name for p in out.glob("*.partial")]
            print(f"kill {kills:3}  {text:<32} checkpoint of step {before[0]:3} -> {after[0]:3}" + (f"  left {', '.join(partial)}" if partial else "")
                  + ("  last one missing or damaged: the one before is taken" if "going on" in after[1] else "")
                  + (f"  FAILED: {error.strip().splitlines()[-1]}" if child.returncode != -9 else ""), flush=True)
        child = start(out, args.steps)
        _, error = child.communicate()
        ended = child.returncode == 0
        same = [a == b for a, b in zip(expected, result(out))] if ended else [False]
        print(f"{kills} kills, {while_writing} of them while writing; {failures} resumes failed; the last one {'ended' if ended else error}; weights, "
              f"checkpoint and log {'are the undisturbed ones, bit for bit' if all(same) else f'DIFFER: {same}'}; "
              f"{time.perf_counter() - begun:.0f} s")
        sys.exit(0 if all(same) and failures == 0 and kills == args.kills else 1)


if __name__ == "__main__":
    main()
