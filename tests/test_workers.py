import threading

import numpy as np
import pytest
from threadpoolctl import threadpool_info

pytest.importorskip("numba")

from nprcnn import backend, get_num_threads, set_num_threads  # noqa: E402

backend.kernel_set("numba")
from nprcnn.kernels.cpu import workers  # noqa: E402


@pytest.fixture
def three_threads(monkeypatch):
    monkeypatch.setattr(workers, "get_num_threads", lambda: 3)
    yield
    set_num_threads(get_num_threads())      # BLAS was left with three: other tests' sums would be rounded otherwise


def test_every_task_is_done_once(three_threads):
    done, lock = [], threading.Lock()

    def work(a, b):
        with lock:
            done.append((a, b))

    workers.run(work, ((i, -i) for i in range(100)))
    assert sorted(done) == [(i, -i) for i in range(100)]


def test_the_helpers_take_part(three_threads):
    """Each task waits until three threads have one: with fewer the barrier would break."""
    barrier = threading.Barrier(3, timeout=10)
    workers.run(lambda i: barrier.wait(), [(i,) for i in range(3)])


def test_little_work_stays_in_this_thread(three_threads):
    names = set()
    workers.run(lambda i: names.add(threading.current_thread().name), [(i,) for i in range(20)], size=100)
    assert names == {threading.current_thread().name}


def test_an_exception_arrives_and_ends_the_rest(three_threads):
    done = []

    def work(i):
        if i == 5:
            raise ZeroDivisionError("task 5")
        done.append(i)

    with pytest.raises(ZeroDivisionError, match="task 5"):
        workers.run(work, [(i,) for i in range(100_000)])
    assert len(done) < 100_000
    workers.run(work, [(i,) for i in range(4)])     # and the threads still serve


def test_blas_has_one_thread_while_work_is_shared_and_its_own_afterwards():
    import os
    if (os.cpu_count() or 1) < 2:
        pytest.skip("one processor")

    def blas():
        return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}

    before = get_num_threads()
    set_num_threads(2)
    try:
        seen = []
        workers.run(lambda i: seen.append(blas()), [(i,) for i in range(4)])
        assert all(threads == {1} for threads in seen) and len(seen) == 4
        assert blas() == {2}
    finally:
        set_num_threads(before)


@pytest.mark.parametrize("length, least, each", [(10, 1, 1), (7, 3, 1), (1, 1, 8), (100, 1, 8), (2, 5, 1)])
def test_parts(three_threads, length, least, each):
    found = workers.parts(length, least, each)
    assert [i for start, stop in found for i in range(start, stop)] == list(range(length))
    sizes = [stop - start for start, stop in found]
    assert max(sizes) - min(sizes) <= 1 and len(found) <= 3 * each and (len(found) == 1 or min(sizes) >= least)


@pytest.mark.parametrize("length, largest, least, thinnest, sizes", [
    (0, 4, 1, 1, []),
    (1, 4, 1, 1, [1]),
    (100, 30, 1, 1, [30, 24, 16, 10, 7, 5, 3, 2, 1, 1, 1]),
    (1000, 400, 50, 1, [334, 222, 148, 99, 66, 50, 81]),    # the last takes along what would be too short
    (100, 30, 50, 1, [30, 24, 16, 10, 8, 12]),              # of few, shorter ones: 100 / (4 * 3)
    (100, 30, 50, 20, [30, 24, 20, 26]),
    (5, 100, 50, 20, [5])])
def test_shrinking(three_threads, length, largest, least, thinnest, sizes):
    found = workers.shrinking(length, largest, least, thinnest)
    assert [i for start, stop in found for i in range(start, stop)] == list(range(length))
    assert [stop - start for start, stop in found] == sizes


def test_shrinking_for_one_thread_is_even_pieces(monkeypatch):
    monkeypatch.setattr(workers, "get_num_threads", lambda: 1)
    assert workers.shrinking(100, 30, 5) == [(0, 30), (30, 60), (60, 90), (90, 100)]


def test_results_do_not_depend_on_the_threads(monkeypatch):
    """Outputs of one layer of every algorithm, large enough to be shared; the gradient of filters adds its shares in another order."""
    kernels = backend.kernel_set("numba")
    rng = np.random.default_rng(0)
    for kernel, stride, padding in ((1, 1, 0), (3, 1, 1), (3, 2, 1)):
        x = rng.standard_normal((1, 64, 56, 60)).astype(np.float32)
        w = rng.standard_normal((64, 64, kernel, kernel)).astype(np.float32) / (8 * kernel)
        found = []
        for threads in (1, 3):
            monkeypatch.setattr(workers, "get_num_threads", lambda threads=threads: threads)
            y = kernels.conv2d(x, w, None, stride, padding)
            found.append((y, kernels.conv2d_grad_x(y, w, x.shape, stride, padding), kernels.conv2d_grad_w(y, x, w.shape, stride, padding)))
        for one, three in zip(*found):
            # blocks of another size are summed in another order: a few roundings of the largest number
            np.testing.assert_allclose(three, one, rtol=0, atol=1e-5 * np.abs(one).max())
