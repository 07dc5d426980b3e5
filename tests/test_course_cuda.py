"""The exercises of notebook 15: the memory of a GPU."""
import numpy as np
import pytest
from exercises import assert_explained, assert_solutions_pass, assert_stubs_are_not_solved, assert_three_mistakes_each, solutions_of

from nprcnn.course import cuda
from nprcnn.kernels.cuda_on_cpu import compiler

NUMBER = "15"

WRONG = [
    ("sectors", lambda a, size: len(set((a // 32).tolist())), "begin in one sector and end in the next"),
    ("sectors", lambda a, size: 32, "lanes that meet in one sector"),
    ("sectors", lambda a, size: int(np.ceil(len(a) * size / 32)), "lay side by side"),
    ("sectors", lambda a, size: len(set((a // 128).tolist())), "four sectors"),
    ("sectors", lambda a, size: len({*(a // 32).tolist(), *((a + size) // 32).tolist()}), "a + size - 1"),
    ("passes", lambda words: max(np.bincount(words % 32)), "a broadcast"),
    ("passes", lambda words: len(set(words % 32)), "the slowest one counts"),
    ("passes", lambda words: max(np.bincount(np.unique(words) % 32)) - 1, "one too few"),
    ("place", lambda k, C, OH, OW: (k // (C * OH * OW), k // (OH * OW), k // OW, k), "remainder is missing"),
    ("place", lambda k, C, OH, OW: (k // (C * OH * OW), k // (OH * OW) % C, k // OH % OW, k % OH), "runs fastest"),
    ("place", lambda k, C, OH, OW: (k % (C * OH * OW), k % (OH * OW) % C, k % OW % OH, k % OW), "needs the quotient"),
    ("place", lambda k, C, OH, OW: (k // (C * OH * OW), k // (C * OH), k // OW % OH, k % OW), "one step of this index is worth"),
    ("place", lambda k, C, OH, OW: (k % C, k // C % OH, k // (C * OH) % OW, k // (C * OH * OW)), "order is turned round"),
]


def test_stubs_are_not_solved():
    assert_stubs_are_not_solved(cuda)


def test_solutions_pass():
    assert_solutions_pass(cuda, NUMBER)


@pytest.mark.parametrize("exercise, wrong, expected", WRONG)
def test_a_wrong_answer_gets_its_explanation(exercise, wrong, expected):
    assert_explained(cuda, exercise, wrong, expected)


def test_each_exercise_tells_three_mistakes_apart():
    assert_three_mistakes_each(cuda, WRONG)


def test_the_sectors_of_the_exercise_are_those_that_the_inspector_counts():
    """The exercise's solution and inspect.cpp were written apart; here they meet."""
    try:
        compiler.find()
    except compiler.NoCompiler as error:
        pytest.skip(str(error).split("\n")[0])
    from nprcnn.kernels.cuda_on_cpu.inspection import inspect, watched
    from nprcnn.kernels.cuda_on_cpu.loader import Module
    kernel = Module('extern "C" __global__ void gather(const float* x, const int* at, float* y) {\n'
                    "    y[threadIdx.x] = x[at[threadIdx.x]]; }", mode="inspect").get_function("gather")
    rng = np.random.default_rng(2)
    for span in (8, 40, 300, 4000):
        at = rng.integers(0, span, 32).astype(np.int32)
        with inspect() as launches:
            watched(kernel)((1,), (32,), (np.zeros(span, np.float32), at, np.zeros(32, np.float32)))
        (counted,) = [line.sectors for line in launches[0].lines if line.memory == "x"]
        assert counted == solutions_of(NUMBER)["sectors"](4 * at.astype(np.int64), 4)
