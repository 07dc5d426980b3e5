"""Checkpoints: what is killed, filled up or damaged at any point goes on bit for bit, or says clearly why not."""

import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from small_models import snapshot
from tiny_training import SAVE_EVERY, STEPS, Source, die_at, stored, tiny_config, tiny_model, tiny_run

from nprcnn.backend import use
from nprcnn.errors import ConfigError, DataError, WeightsError
from nprcnn.train import SGD, checkpoint, train_in_folder
from nprcnn.train.checkpoint import LAST, PREVIOUS, differences, latest_checkpoint, read_checkpoint, restore, save_checkpoint
from nprcnn.train.log import read_log

HERE = Path(__file__).parent
posix = pytest.mark.skipif(os.name != "posix", reason="SIGKILL and fork are POSIX")


@pytest.fixture(scope="module", autouse=True)
def numpy_kernels():
    """Those of the processes that are started here, too: bits are compared, and other kernels round otherwise."""
    with use("numpy"):
        yield


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed")
    tiny_run(out)
    return stored(out)


@pytest.fixture
def half_done(tmp_path):
    """A training that was stopped after 5 of 8 steps: checkpoints of 4 and 2 steps."""
    return half(tmp_path / "run")


def half(out):
    class Stop(Exception):
        pass

    class Stopping(Source):
        def __getitem__(self, i):
            if len(self.visited) == 10:
                raise Stop
            return super().__getitem__(i)
    with pytest.raises(Stop):
        tiny_run(out, source=Stopping())
    assert read_checkpoint(out / LAST).step == 4 and read_checkpoint(out / PREVIOUS).step == 2
    return out


def test_a_checkpoint_holds_all_and_anybody_can_read_it(half_done):
    from safetensors.numpy import load_file
    model = tiny_model()
    tensors = load_file(half_done / LAST)
    velocity = {n for n in tensors if n.startswith("velocity.")}
    assert set(tensors) - velocity == set(model.state_dict())
    assert velocity == {"velocity." + n for n, _ in model.named_parameters()}
    assert all(np.any(tensors[n]) for n in velocity) and not (half_done / (LAST + ".partial")).exists()
    found = read_checkpoint(half_done / LAST)
    assert found.about["config"] == json.loads(json.dumps(tiny_config())) and found.about["best"] == {"AP": -1, "step": None}


def test_going_on_is_bit_for_bit_the_same(half_done, undisturbed):
    assert len(read_log(half_done / "history.jsonl")) == 5  # one of them is after the checkpoint
    said = []
    tiny_run(half_done, say=said.append)
    assert said == ["going on after step 4 of 8"] and stored(half_done) == undisturbed
    assert [row["step"] for row in undisturbed["log"]] == list(range(STEPS))


def test_a_finished_training_goes_on_to_nothing(tmp_path, undisturbed):
    tiny_run(tmp_path)
    _, rows = tiny_run(tmp_path)
    assert stored(tmp_path) == undisturbed and len(rows) == STEPS


def test_nothing_is_overwritten_without_resume(half_done):
    before = {p.name: p.read_bytes() for p in half_done.iterdir()}
    with pytest.raises(ConfigError, match="already holds a training; go on with it by --resume"):
        tiny_run(half_done, resume=False)
    assert {p.name: p.read_bytes() for p in half_done.iterdir()} == before


@posix
@pytest.mark.parametrize("point, count", [("write", 1), ("write", 2), ("write", 3), ("fsync", 4), ("fsync", 6), ("fsync", 7), ("replace", 1),
                                          ("replace", 2), ("replace", 3), ("replace", 4)])
def test_killed_while_writing(tmp_path, undisturbed, point, count):
    """In the middle of the bytes of the log or of a checkpoint, before each flush and before each rename."""
    child = os.fork()
    if child == 0:
        try:
            die_at(point, count)
            tiny_run(tmp_path)
        finally:
            os._exit(1)  # it should have died by then
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    tiny_run(tmp_path)
    assert stored(tmp_path) == undisturbed


@posix
def test_killed_at_random_moments(tmp_path, undisturbed):
    """The long form of this, 50 kills, is tests/kills.py."""
    command = [sys.executable, str(HERE / "tiny_training.py"), str(tmp_path), "--save-every", "1"]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent), "NPRCNN_KERNELS": "numpy"}
    log, rng, killed = tmp_path / "history.jsonl", random.Random(0), 0
    while killed < 3:
        before = log.stat().st_size if log.exists() else 0
        child = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        while child.poll() is None and not (log.exists() and log.stat().st_size > before):
            time.sleep(0.005)
        time.sleep(0.1 * rng.random())
        child.kill()
        if child.wait() == 0:  # it was done already: a fast machine
            break
        killed += 1
    tiny_run(tmp_path, save_every=1)
    assert stored(tmp_path) == undisturbed


# ---- damage

@pytest.mark.parametrize("damage", ["truncated", "empty", "missing", "flipped", "header"])
def test_from_a_damaged_checkpoint_to_the_one_before(half_done, undisturbed, damage):
    path = half_done / LAST
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        path.write_bytes(content[:len(content) // 2])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "missing":
        path.unlink()
    else:
        position = {"flipped": -5, "header": content.index(b'step\\": 4') + 8}[damage]
        content[position] ^= 1
        path.write_bytes(content)
        with pytest.raises(WeightsError, match="damaged, its checksum is another"):
            read_checkpoint(path)
    said = []
    tiny_run(half_done, say=said.append)
    assert "going on from the one before it, of step 2" in said[0] and "checkpoint.safetensors" in said[0]
    assert stored(half_done) == undisturbed


def test_both_damaged(half_done):
    for name in (LAST, PREVIOUS):
        (half_done / name).write_bytes(b"x" * 100)
    with pytest.raises(WeightsError, match="checkpoint-previous.safetensors: not a whole .safetensors file"):
        tiny_run(half_done)


def test_a_log_that_was_half_written_or_lost(half_done, undisturbed):
    log = half_done / "history.jsonl"
    log.write_text(log.read_text()[:-40])
    tiny_run(half_done)
    assert stored(half_done) == undisturbed


# ---- no space

class FullDisk:
    """open() for writing whose disk has `room` bytes left for all files together."""

    def __init__(self, room):
        self.room, self.open = room, open

    def __call__(self, path, mode="r", *args, **options):
        file = self.open(path, mode, *args, **options)
        if mode == "wb":
            real = file
            file = type("Full", (), {"write": lambda _, content: self.write(real, content), "fileno": lambda _: real.fileno(),
                                     "flush": lambda _: real.flush(), "__enter__": lambda self: self,
                                     "__exit__": lambda *_: real.close()})()
        return file

    def write(self, file, content):
        file.write(content[:self.room])
        self.room -= len(content)
        if self.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_loses_no_checkpoint(tmp_path, monkeypatch, undisturbed):
    size = len(undisturbed["checkpoint"])
    monkeypatch.setattr(checkpoint, "open", FullDisk(int(2.5 * size)), raising=False)
    with pytest.raises(WeightsError, match=r"the checkpoint of step 6 cannot be written to .* \(No space left on device\); the one before it "
                                           r"stands \(checkpoint.safetensors\). Make room there, then go on with --resume"):
        tiny_run(tmp_path)
    monkeypatch.undo()
    assert not list(tmp_path.glob("*.partial"))  # it gave its space back
    assert read_checkpoint(tmp_path / LAST).step == 4 and read_checkpoint(tmp_path / PREVIOUS).step == 2
    tiny_run(tmp_path)
    assert stored(tmp_path) == undisturbed


def test_a_small_file_system_that_fills_up(tmp_path, undisturbed):
    """A real one of 4 MB, with room for two and a half checkpoints of 0.8 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    if mount is None or subprocess.run([mount, "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("no right to mount a file system")
    try:
        size = len(undisturbed["checkpoint"])
        (disk / "ballast").write_bytes(b"x" * (2 ** 22 - int(2.5 * size)))
        with pytest.raises(WeightsError, match="No space left on device.* stands"):
            tiny_run(disk / "run")
        step = latest_checkpoint(disk / "run")[0].step
        assert step >= SAVE_EVERY
        (disk / "ballast").unlink()
        tiny_run(disk / "run")
        assert stored(disk / "run") == undisturbed
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_folder_that_may_not_be_written(half_done, monkeypatch):
    def refused(path, mode="r", *args, **options):
        if "r" not in mode:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return open(path, mode, *args, **options)
    monkeypatch.setattr(checkpoint, "open", refused, raising=False)
    with pytest.raises(WeightsError, match=r"cannot be written to \(Permission denied\); checkpoint.safetensors stands"):
        tiny_run(half_done)


# ---- another training's

def test_a_checkpoint_of_another_model(half_done):
    other = tiny_model(fpn_channels=8)
    before = snapshot(other)
    with pytest.raises(WeightsError, match="do not fit the model|other parameters"):
        tiny_run(half_done, model=other)
    assert snapshot(other) == before
    config = tiny_config()
    config["model"]["arguments"]["min_size"] = 400
    with pytest.raises(WeightsError, match="of another model: model.arguments.min_size was null and is 400. Give the same --model"):
        tiny_run(half_done, config=config)


def test_other_parameters_are_frozen(half_done):
    with pytest.raises(WeightsError, match="other parameters train than in the model, backbone.body.bn1.bias for one"):
        tiny_run(half_done, model=tiny_model(trainable=3))


def test_a_data_set_that_has_changed(half_done):
    config = tiny_config()
    config["data"]["fingerprint"] = "other"
    with pytest.raises(DataError, match='the data set has changed since the training began: data.fingerprint was "seeded" and is "other"'):
        tiny_run(half_done, config=config)


@pytest.mark.parametrize("changes", [{"lr": 0.01}, {"steps": 24}, {"seed": 1}, {"batch_size": 3}, {"schedule": "step"}, {"momentum": 0.5}])
def test_numbers_that_matter(half_done, changes):
    name, value = *changes, *changes.values()
    with pytest.raises(ConfigError, match=f'the training began otherwise: training.{name} was .* and is "?{value}"?. Go on with what'):
        tiny_run(half_done, **changes)


def test_what_may_change(half_done):
    """Workers change nothing; two batches of one in the place of one of two change roundings, and it says so."""
    said = []
    tiny_run(half_done, say=said.append, accumulate=2, batch_size=1, workers=0)
    assert said[0].startswith("batch_size was 2 and is 1 and accumulate was 1 and is 2: the same but for rounding")


@pytest.mark.parametrize("metadata, message", [({"nprcnn checkpoint": '{"version": 2}'}, "a checkpoint of version 2; this nprcnn reads "
                                                "version 1. Go on with the nprcnn that wrote it"),
                                               ({}, "these are weights alone, no checkpoint; give them to --weights")])
def test_another_version_or_no_checkpoint(half_done, metadata, message):
    from safetensors.numpy import load_file, save_file
    save_file(load_file(half_done / LAST), half_done / LAST, metadata)
    with pytest.raises(WeightsError, match=re.escape(message)):
        read_checkpoint(half_done / LAST)


def test_another_version_is_not_passed_over(half_done):
    """The one before it may be older by hours, and nothing is broken."""
    from safetensors.numpy import load_file, save_file
    save_file(load_file(half_done / LAST), half_done / LAST, {"nprcnn checkpoint": '{"version": 2}'})
    with pytest.raises(WeightsError, match="version 2"):
        tiny_run(half_done)


def test_save_and_restore(tmp_path):
    model, other = tiny_model(), tiny_model()
    optimizer = SGD(model.parameters())
    for k, p in enumerate(model.parameters()):
        p.data, optimizer.velocity[k] = p.data + 1, p.data * 2
    save_checkpoint(tmp_path / "c.safetensors", model, optimizer, 7, {"a": [1]})
    found, restored = read_checkpoint(tmp_path / "c.safetensors"), SGD(other.parameters())
    restore(found, other, restored, tmp_path)
    assert snapshot(other) == snapshot(model) and (found.step, found.about) == (7, {"a": [1]})
    assert [v.tobytes() for v in restored.velocity] == [v.tobytes() for v in optimizer.velocity]
    restored.step(0.1)  # the arrays are the optimiser's own, and can be written to


def test_differences():
    assert differences({"a": 1, "b": {"c": [1, 2], "d": 0}}, {"a": 1, "b": {"c": [1, 3], "d": 0}, "e": None}) == [
        "b.c was [1, 2] and is [1, 3]"]


def test_the_best_is_kept(tmp_path):
    """By the AP of masks; after a kill, too, without measuring again what came before."""
    values, measured = (0.2, 0.5, 0.4), []

    def validate(model):
        measured.append(1)
        ap = values[len(measured) - 1]
        return {"bbox": {"AP": 0.9, "AP50": 1.0}, "segm": {"AP": ap, "AP50": ap}}
    _, rows = tiny_run(tmp_path, validate=validate)
    assert [(row["step"], row["validation"]["segm"]["AP"]) for row in rows if "validation" in row] == [(2, 0.2), (5, 0.5), (7, 0.4)]
    from safetensors import safe_open
    with safe_open(tmp_path / "best.safetensors", "numpy") as file:
        assert file.metadata()["step"] == "6" and file.metadata()["AP"] == "0.5000"
    assert read_checkpoint(tmp_path / LAST).about["best"] == {"AP": 0.5, "step": 6}
    assert (tmp_path / "best.safetensors").read_bytes() != (tmp_path / "weights.safetensors").read_bytes()


def test_frozen_parameters_have_no_velocity(tmp_path):
    model = tiny_model(trainable=3)
    train_in_folder(model, Source(), tmp_path, tiny_config(steps=2), draw_every=0, progress=False)
    assert not any("layer1" in name for name in read_checkpoint(tmp_path / LAST).velocity)
