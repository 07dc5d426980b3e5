"""The loader, with processes that are really started and really killed."""

import functools
import os
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

import nprcnn
from nprcnn.data import Shapes
from nprcnn.data.loader import Loader
from nprcnn.data.transforms import Augment
from nprcnn.errors import ConfigError, DataError

ALL = Augment(flip_vertical=0.5, quarter_turns=True, scale=(0.5, 2.0), crop=(64, 64), brightness=0.2, contrast=0.2, saturation=0.2)


class Noted:
    """Small noise images; a line in a file for each one that is read, and something that goes wrong at image `bad`."""

    class_names = ("background", "thing")

    def __init__(self, count, log=None, bad=None, error=None, size=16):
        self.count, self.log, self.bad, self.error, self.size = count, log, bad, error, size

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        if self.log:
            with open(self.log, "a") as file:
                file.write(f"{i}\n")  # one write of a few bytes to a file opened for appending: lines of processes do not mix
        if i == self.bad:
            if self.error == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise Unreadable(1, 2) if self.error == "unreadable" else self.error
        image = np.random.default_rng(i).integers(0, 256, (self.size, self.size, 3), dtype=np.uint8)
        target = {"boxes": np.array([[2, 3, 10, 12]], np.float32), "labels": np.array([1]), "image_id": i,
                  "masks": np.ones((1, self.size, self.size), np.uint8)}
        return image, target


class Unreadable(Exception):
    """Cannot be unpickled: __init__ wants two arguments."""

    def __init__(self, a, b):
        super().__init__(f"{a} and {b}")


def wait_until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.05)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def assert_same_batches(a, b):
    assert a.indices == b.indices
    for x, y in zip(a.images, b.images):
        assert np.array_equal(x, y)
    for x, y in zip(a.targets, b.targets):
        assert list(x) == list(y) and all(np.array_equal(x[key], y[key]) for key in x)


@pytest.mark.parametrize("workers", [1, 3])
def test_batches_are_the_same_with_any_number_of_workers(workers):
    source = Shapes(10, 1)
    alone = Loader(source, 4, 7, ALL)
    with Loader(source, 4, 7, ALL, workers=workers) as loader:
        for step, batch in zip(range(3, 9), loader.batches(3)):  # over the ends of epochs, which have 2 steps
            assert_same_batches(batch, alone.batch(step))
    for step, batch in zip(range(3), alone.batches()):
        assert_same_batches(batch, alone.batch(step))


class Odd(Noted):
    """Targets as they should not be, and as they may be."""

    def __getitem__(self, i):
        image, target = super().__getitem__(i)
        masks = target.pop("masks")
        return image, [target, {**target, "masks": masks * 200}, {**target, "masks": masks > 0}, {**target, "masks": masks[:0]}][i]


def test_targets_come_through_the_pipe_as_they_are():
    with Loader(Odd(4), 4, 0, workers=1) as loader:
        got, expected = next(loader.batches()), loader.batch(0)
    assert_same_batches(got, expected)
    for a, b in zip(got.targets, expected.targets):
        assert all(a[key].dtype == b[key].dtype and a[key].shape == b[key].shape for key in a if key != "image_id")


def test_a_batch_is_a_function_of_seed_and_step():
    loader = Loader(Shapes(10, 1), 3, 5, ALL)
    late, early = loader.batch(1000), loader.batch(2)
    again = Loader(Shapes(10, 1), 3, 5, ALL)
    assert_same_batches(again.batch(2), early)
    assert_same_batches(again.batch(1000), late)
    other = Loader(Shapes(10, 1), 3, 6, ALL)
    assert [other.indices(step) for step in range(6)] != [loader.indices(step) for step in range(6)]
    # one image at two steps is augmented in two ways
    steps = [step for step in range(20) if 4 in loader.indices(step)][:2]
    first, second = (loader.batch(step).images[loader.indices(step).index(4)] for step in steps)
    assert not np.array_equal(first, second)


def test_the_order_is_the_documented_one():
    loader = Loader(Noted(11), 4, 3)
    assert loader.steps_per_epoch == 2
    for epoch in range(3):
        order = np.random.default_rng([3, 0, epoch]).permutation(11)
        assert loader.indices(2 * epoch) + loader.indices(2 * epoch + 1) == tuple(order[:8])
    batch = loader.batch(1)
    assert [target["image_id"] for target in batch.targets] == list(batch.indices)
    assert len(batch.images) == len(batch.targets) == 4


def test_finding_the_place_reads_nothing(tmp_path):
    loader = Loader(Noted(1000, tmp_path / "log"), 4, 0)
    assert len(loader.indices(10 ** 9)) == 4 and not (tmp_path / "log").exists()
    next(loader.batches(10 ** 9))
    assert len((tmp_path / "log").read_text().split()) == 4


@pytest.mark.parametrize("workers", [0, 2])
def test_no_image_is_read_twice_in_an_epoch_and_no_more_than_prefetch_ahead(workers, tmp_path):
    """20 steps an epoch; the batches taken and those that may be prepared ahead (2 workers, 3 each) are one epoch exactly."""
    log = tmp_path / "log"
    ahead = 3 * workers
    with Loader(Noted(60, log), 3, 0, workers=workers, prefetch=3) as loader:
        stream = loader.batches()
        seen = [i for batch in islice(stream, 20 - ahead) for i in batch.indices]
        wait_until(lambda: len(log.read_text().split()) >= 60)
        time.sleep(0.3)  # time for one batch too many
        read = [int(line) for line in log.read_text().split()]
        assert sorted(read) == list(range(60)) and set(seen) <= set(read)
        stream.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_keeps_its_class_its_sentence_and_its_turn(workers):
    source = Noted(12, bad=5, error=DataError("image 5 is damaged"))
    with Loader(source, 2, 0, workers=workers) as loader:
        turn = next(step for step in range(6) if 5 in loader.indices(step))
        seen = []
        with pytest.raises(DataError, match="^image 5 is damaged$"):
            for batch in loader.batches():
                seen.append(batch.indices)
        assert seen == [loader.indices(step) for step in range(turn)]


@pytest.mark.parametrize("error, kind, text", [(EOFError("short file"), EOFError, "short file"), (ValueError("odd"), ValueError, "odd"),
                                               ("unreadable", RuntimeError, "Unreadable: 1 and 2")])
def test_an_error_in_foreign_code_brings_its_traceback(error, kind, text):
    with Loader(Noted(2, bad=0, error=error), 2, 0, workers=1) as loader:
        with pytest.raises(kind, match=text) as caught:
            next(loader.batches())
    assert "in a worker of the data loader" in caught.value.__notes__[0] and "__getitem__" in caught.value.__notes__[0]


def test_a_killed_worker_is_an_error_and_no_hang():
    with Loader(Noted(4, bad=1, error="kill"), 2, 0, workers=2) as loader:
        with pytest.raises(DataError, match=r"worker \d of the data loader was killed by SIGKILL; .*fewer workers"):
            for _ in loader.batches():
                pass
    with Loader(Noted(40), 2, 0, workers=2) as loader:
        stream = loader.batches()
        next(stream)
        (crew,) = loader._crews
        processes = list(crew.processes)
        os.kill(processes[1].pid, signal.SIGKILL)
        with pytest.raises(DataError, match="worker 1 of the data loader was killed by SIGKILL"):
            for _ in stream:
                pass


@pytest.mark.parametrize("how", ["close the loader", "close the stream", "forget the stream"])
def test_no_worker_outlives_its_loader(how):
    loader = Loader(Shapes(20, 0), 4, 0, workers=2)
    stream = loader.batches()
    next(stream)
    pids = [process.pid for process in loader._crews[0].processes]
    assert len(pids) == 2 and all(alive(pid) for pid in pids)
    if how == "close the loader":
        loader.close()
        assert list(stream) == []
    elif how == "close the stream":
        stream.close()
    else:
        del stream
    assert not any(alive(pid) for pid in pids) and not loader._crews


def test_two_streams_of_one_loader():
    with Loader(Noted(10), 2, 0, workers=1) as loader:
        first, second = loader.batches(), loader.batches(3)
        for step in range(3):
            assert next(first).indices == loader.indices(step) and next(second).indices == loader.indices(step + 3)
        second.close()
        assert next(first).indices == loader.indices(3)


SCRIPT = """
import os, sys
from nprcnn.data import Shapes
from nprcnn.data.loader import Loader

def main():
    with Loader(Shapes(50, 0), 4, 0, workers=2) as loader:
        for n, batch in enumerate(loader.batches()):
            if n == 3:
                print(*[process.pid for process in loader._crews[0].processes], flush=True)
                sys.stdin.read()
"""


def start_script(tmp_path, text):
    path = tmp_path / "script.py"
    path.write_text(text)
    # A shell's background jobs ignore Ctrl-C, and so would their children: these tests may run in one
    listen = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL) if os.name == "posix" else None
    return subprocess.Popen([sys.executable, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            start_new_session=True, preexec_fn=listen, env={**os.environ, "PYTHONPATH": str(Path(nprcnn.__file__).parent.parent)})


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("end", ["kill the parent", "ctrl-c"])
def test_no_worker_outlives_its_parent(end, tmp_path):
    run = start_script(tmp_path, SCRIPT + "\nif __name__ == '__main__':\n    main()\n")
    try:
        pids = [int(pid) for pid in run.stdout.readline().split()]
        assert len(pids) == 2 and all(alive(pid) for pid in pids)
        if end == "kill the parent":
            run.kill()
        else:
            os.killpg(run.pid, signal.SIGINT)  # as a terminal does: to every process of the group
        error = run.communicate(timeout=30)[1]
        wait_until(lambda: not any(alive(pid) for pid in pids))
        if end == "ctrl-c":  # one traceback, the parent's; the workers say nothing
            assert error.count("Traceback") == 1 and error.rstrip().endswith("KeyboardInterrupt")
    finally:
        run.kill()


def test_a_script_without_a_main_guard_is_told_so(tmp_path):
    run = start_script(tmp_path, SCRIPT + "\nmain()\n")
    error = run.communicate(timeout=60)[1]
    assert run.returncode == 1
    assert 'worker 0 of the data loader ended with exit code 1, its message is above; a script must start its work under' in error


def test_a_source_that_cannot_travel():
    class Local(Noted):
        pass

    opened = Noted(4)
    opened.file = open(os.devnull)
    for source in (Local(4), opened):
        with Loader(source, 2, 0, workers=1) as loader:
            assert len(loader.batch(0).images) == 2
            with pytest.raises(ConfigError, match="cannot be sent to worker processes .* or use workers=0"):
                next(loader.batches())
            assert not loader._crews
    opened.file.close()


@pytest.mark.parametrize("wrong, text", [(dict(batch_size=5), "a batch of 5 from a data set of 4"), (dict(batch_size=0), "batch_size=0"),
                                         (dict(workers=-1), "workers=-1"), (dict(prefetch=0), "prefetch=0"),
                                         (dict(augment=Augment(flip=2)), "flip=2")])
def test_numbers_that_make_no_sense(wrong, text):
    with pytest.raises(ConfigError, match=text):
        Loader(**{**dict(source=Noted(4), batch_size=2, seed=0), **wrong})


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads memory from /proc")
@pytest.mark.parametrize("workers", [0, 1])
def test_memory_is_flat_over_2000_steps(workers):
    """Growth from step 400 to step 2000, of this process and of the worker. One array of an image (96 x 96 x 3 bytes) or of its mask that
    stayed behind at every step would be 15 MB or more; the bound is a quarter of that. Measured: at most .15 MB."""
    with Loader(Noted(64, size=96), 1, 0, Augment(flip=0.5), workers=workers) as loader:
        stream = loader.batches()
        for step, batch in enumerate(stream):
            if step == 400:
                pids = [os.getpid()] + [process.pid for crew in loader._crews for process in crew.processes]
                before = [resident(pid) for pid in pids]
            if step == 2000:
                break
        growth = [resident(pid) - start for pid, start in zip(pids, before)]
        stream.close()
    assert len(growth) == 1 + workers
    assert max(growth) < 1600 * 96 * 96 // 4, growth


def resident(pid):
    """Bytes of memory that a process holds."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
