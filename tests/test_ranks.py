"""Several processes train as one does. mpiexec starts them, with tests/mpi_training.py."""

import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from mpi_training import IMAGES, STEPS, OneSize, environment, mpiexec, run

from nprcnn.cli import main
from nprcnn.data.loader import Loader
from nprcnn.errors import ConfigError
from nprcnn.layers import Buffer, Parameter
from nprcnn.models.decisions import LOSSES
from nprcnn.threads import VARIABLES
from nprcnn.train import ranks as ranks_module
from nprcnn.train.checkpoint import read_checkpoint
from nprcnn.train.folder import _check_ranks
from nprcnn.train.guards import load_replay
from nprcnn.train.log import read_log
from nprcnn.train.ranks import Alone, Ranks, buckets, share_cores, start_ranks

needs_mpi = pytest.mark.skipif(not mpiexec(2), reason="mpi4py, or mpiexec, is not installed: pip install nprcnn[mpi]")
SCRIPT = Path(__file__).parent / "mpi_training.py"


def start(count, *arguments, script=(str(SCRIPT),)):
    return subprocess.run([*mpiexec(count), *script, *map(str, arguments)], env=environment(), capture_output=True, text=True, timeout=300)


def finished(count, out, *arguments):
    """Of a training in `count` processes: what it printed."""
    done = start(count, out, *arguments)
    assert done.returncode == 0 and "the weights of all ranks are the same" in done.stdout, done.stdout + done.stderr
    return done.stdout


def result(out):
    """The losses (steps, 5), and the checkpoint's weights and velocities, which are float64 like the model."""
    rows = read_log(out / "history.jsonl")
    assert [row["step"] for row in rows] == list(range(STEPS))
    checkpoint = read_checkpoint(out / "checkpoint.safetensors")
    weights = {**checkpoint.weights, **{"velocity." + name: a for name, a in checkpoint.velocity.items()}}
    return np.array([[row[name] for name in LOSSES] for row in rows]), weights


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    """What the others should come to."""
    out = tmp_path_factory.mktemp("ranks") / "one"
    run(out, say=lambda text: None)
    return result(out)


def assert_the_same(out, one_process):
    """To 1e-8 over ten steps: float64 sums in another order. Measured: losses 5e-14, weights 2e-13 of the largest."""
    (losses, weights), (wanted_losses, wanted_weights) = result(out), one_process
    np.testing.assert_allclose(losses, wanted_losses, rtol=1e-8)
    assert set(weights) == set(wanted_weights) and weights["backbone.body.conv1.weight"].dtype == np.float64
    for name, array in weights.items():
        np.testing.assert_allclose(array, wanted_weights[name], rtol=1e-8, atol=1e-8 * np.abs(wanted_weights[name]).max(), err_msg=name)


def test_accumulation_is_the_same(one_process, tmp_path):
    run(tmp_path, accumulate=4, say=lambda text: None)
    assert_the_same(tmp_path, one_process)


@needs_mpi
def test_two_ranks_are_the_same(one_process, tmp_path):
    """Each with two batches of one image."""
    finished(2, tmp_path, "--accumulate", 2)
    assert_the_same(tmp_path, one_process)
    assert read_checkpoint(tmp_path / "checkpoint.safetensors").about["config"]["training"]["ranks"] == 2


@needs_mpi
def test_batch_norm_has_the_same_running_statistics_on_all_ranks(tmp_path):
    """Else `finished` would say so. They are means over the ranks: see below."""
    finished(2, tmp_path, "--norm", "batch", "--steps", 3)


@needs_mpi
def test_a_killed_rank_ends_the_job_and_four_go_on(one_process, tmp_path):
    """Two ranks to step 5, where one is killed; its last checkpoint is of step 4; then four ranks go on from there."""
    process = start(2, tmp_path, "--fault", "kill:1:5")
    assert process.returncode != 0 and "KILLED" in process.stdout.upper() + process.stderr.upper()
    assert read_checkpoint(tmp_path / "checkpoint.safetensors").step == 4
    print(f"the job ended {time.time() - float(re.search('killed at ([0-9.]+)', process.stdout)[1]):.2f} s after its rank")
    printed = finished(4, tmp_path)
    assert "batch_size was 2 and is 1 and ranks was 2 and is 4: the same but for rounding" in printed and "going on after step 4" in printed
    assert printed.count("going on") == 1  # one rank speaks
    assert_the_same(tmp_path, one_process)


@needs_mpi
def test_nan_on_one_rank_stops_all(tmp_path):
    """The message names the image, which rank 0 has never seen, and the step can be replayed."""
    done = start(2, tmp_path, "--fault", "nan:1:3")
    assert done.returncode != 0
    name = OneSize().name(Loader(OneSize(), IMAGES, 0).indices(3)[-1])
    assert "rank 0: the training diverged: at step 3" in done.stderr and f"numbers are not finite), of {name}; the weights" in done.stderr
    part, _, about = load_replay(tmp_path / "replay.npz")
    assert name in about["names"] and len(part.images) == 2 and about["step"] == 3
    assert read_checkpoint(tmp_path / "failed.safetensors").step == 3


@needs_mpi
def test_an_error_on_one_rank_ends_the_job_with_its_message(tmp_path):
    done = start(2, tmp_path, "--fault", "image:1:1")
    assert done.returncode != 0 and "rank 1: the image cannot be read (of the batch 0 is photo" in done.stderr


@needs_mpi
def test_the_command_line(tmp_path):
    """Validation shared out gives the numbers of one process; batch norm's statistics are one; one rank prints; workers work."""
    small = ["--set", "width=4", "blocks=(1,1,1,1)", "fpn_channels=8", "mask_channels=(8,)", "box_hidden=16", "min_size=64",
             "rpn_pre_nms_top_n_test=20", "rpn_post_nms_top_n_test=5"]
    done = start(2, "train", "--data", "shapes:20", "--held-out", 5, "--out", tmp_path, "--steps", 3, "--warmup", 1, "--batch-size", 1,
                 "--workers", 1, *small, script=("-m", "nprcnn"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 images a step in 2 processes") == 1 and done.stdout.count("wrote") == 2
    from nprcnn.data.sources import open_source
    from nprcnn.evaluate import evaluate
    from nprcnn.pretrained import load_model
    model, _ = load_model(tmp_path / "weights.safetensors")
    alone = evaluate(model, open_source("shapes:20", held_out=5, part="held_out"), progress=False)
    assert read_log(tmp_path / "history.jsonl")[-1] == {"step": 2, "validation": alone} and alone["images"] == 5


def test_the_shares_are_the_batch():
    whole = Loader(OneSize(), 4, 3)
    shares = [Loader(OneSize(), 4, 3, share=(rank, 2)) for rank in range(2)]
    for step in (0, 2, 7):
        assert shares[0].indices(step) + shares[1].indices(step) == whole.indices(step)
        assert shares[1].batch(step).indices == whole.indices(step)[2:]
    with pytest.raises(ConfigError, match="a batch of 4 for 3 ranks: choose a multiple"):
        Loader(OneSize(), 4, 3, share=(0, 3))


def test_buckets_hold_everything_once_and_no_more_than_they_may():
    arrays = [np.zeros(shape, np.float32) for shape in ((3,), (2, 5), (0,), (40,), (), (1, 7))]
    number = 0
    for bucket in buckets(arrays, size=64):
        assert 0 < sum(view.nbytes for view in bucket) <= 64
        for view in bucket:  # of the arrays themselves
            view[...] = np.arange(number, number + len(view))
            number += len(view)
    assert np.concatenate([a.ravel() for a in arrays]).tolist() == list(range(61)) and len(list(buckets(arrays, 64))) == 4
    assert list(buckets([])) == []


class OneOfTwo:
    """Stands in for MPI's communicator on rank 1: rank 0 has sent `theirs`, in the order in which they are asked for."""

    def __init__(self, *theirs):
        self.theirs = list(theirs)

    def Get_rank(self):
        return 1

    def Get_size(self):
        return 2

    def Allreduce(self, mine, total):
        total[...] = mine + self.theirs.pop(0)

    def bcast(self, mine, root):
        return self.theirs.pop(0)

    def allgather(self, mine):
        return [mine, mine]


def test_gradients_that_one_rank_has_not():
    """It adds nothing to the other's; what none has stays None, and SGD leaves that parameter alone."""
    here, there, both, nowhere = parameters = [Parameter(np.zeros(2, np.float32)) for _ in range(4)]
    here.grad, both.grad = np.ones(2, np.float32), np.array([1, 2], np.float32)
    Ranks(OneOfTwo([0, 1, 1, 0], np.array([0, 0, 5, 6, 10, 20], np.float32))).sum_gradients(parameters)
    assert (here.grad.tolist(), there.grad.tolist(), both.grad.tolist(), nowhere.grad) == ([1, 1], [5, 6], [11, 22], None)
    assert there.grad.dtype == np.float32


def test_running_statistics_are_the_mean_over_the_ranks():
    """Those that a step leaves alone, such as frozen ones, keep their bits."""
    moved, constant = Buffer(np.array([4.0, 6.0])), Buffer(np.array([0.1, 1 / 3]))
    held = constant.data
    Ranks(OneOfTwo(np.array([2.0, 4.0, 0, 0]))).average_statistics([(moved, np.array([2.0, 2.0])), (constant, held)])
    assert moved.data.tolist() == [4.0, 6.0] and constant.data is held


def test_a_number_that_is_not_finite_makes_the_sum_so():
    sums = Ranks(OneOfTwo([np.nan, 2.0])).sum_numbers({"a": 1.0, "b": 0.5})
    assert np.isnan(sums["a"]) and sums["b"] == 2.5 and type(sums["b"]) is float
    assert Ranks(OneOfTwo([3])).sum_numbers({"a": 4}) == {"a": 7}


def test_another_machine_with_another_data_set():
    with pytest.raises(ConfigError, match='rank 1 must train as rank 0 does, but data.fingerprint was "a" and is "b" here'):
        _check_ranks({"data": {"fingerprint": "b"}}, Ranks(OneOfTwo({"data": {"fingerprint": "a"}})))


def test_the_ranks_of_a_machine_divide_its_cores(monkeypatch):
    chosen = []
    monkeypatch.setattr(ranks_module, "set_num_threads", chosen.append)
    monkeypatch.setattr(ranks_module, "usable_cores", lambda: 9)
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    comm = OneOfTwo()
    share_cores(comm)
    assert chosen == [4]
    comm.allgather = lambda mine: [mine, [0]]  # each is bound to its own
    share_cores(comm)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    share_cores(OneOfTwo())
    assert chosen == [4]


def test_alone_nothing_changes():
    ranks, parameter, buffer = Alone(), Parameter(np.ones(2)), Buffer(np.ones(2))
    numbers, parameter.grad = {"a": 1.5}, np.ones(2)
    before = buffer.data
    assert ranks.sum_numbers(numbers) is numbers and ranks.gather(3) == [3] and ranks.broadcast(before) is before
    ranks.sum_gradients([parameter]), ranks.average_statistics([(buffer, np.zeros(2))])
    assert buffer.data is before and parameter.grad.tolist() == [1, 1] and ranks.share == (0, 1)


def test_started_without_mpi4py(monkeypatch, tmp_path, capsys):
    """Each of the four would train on its own, into one folder."""
    assert isinstance(start_ranks(), Alone) and "mpi4py.MPI" not in sys.modules
    monkeypatch.setenv("PMI_SIZE", "4")
    assert main(["train", "--data", "shapes:20", "--out", str(tmp_path)]) == 2
    assert "start them as `mpiexec -n 4 python -m mpi4py -m nprcnn train ...`" in capsys.readouterr().err
    monkeypatch.setenv("PMI_SIZE", "1")
    assert isinstance(start_ranks(), Alone)
