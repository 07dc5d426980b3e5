"""The exercises of notebook 16: NMS as bits."""
import numpy as np
import pytest
from exercises import assert_explained, assert_solutions_pass, assert_stubs_are_not_solved, assert_three_mistakes_each, solutions_of

from nprcnn.course import cuda, cuda_nms
from nprcnn.kernels.cuda import launch
from nprcnn.kernels.cuda_on_cpu import compiler
from nprcnn.ops.boxes import box_iou
from nprcnn.ops.nms import nms

NUMBER = "16"
NOT_WRITTEN = "no thread of the block has written"


def suppressors(j, mask, bits):
    """Every box above j that overlaps it, kept or not."""
    return [i for i in range(j) if mask[i][j // bits] >> j % bits & 1]


def settle_of(removed, diagonal, test=True, start=True):
    out = removed if start else 0
    for b, word in enumerate(diagonal):
        if not test or not out >> b & 1:
            out |= word
    return (1 << len(diagonal)) - 1 & ~out


WRONG = [
    ("put_out_by", lambda j, mask, keep, bits: [*suppressors(j, mask, bits), -1][0], "is out itself"),
    ("put_out_by", lambda j, mask, keep, bits: [-1, *(i for i in suppressors(j, mask, bits) if keep[i])][-1], "the last box"),
    ("put_out_by", lambda j, mask, keep, bits: next((i for i in range(j) if keep[i] and mask[i][j // bits] >> j & 1), -1), "With >> j"),
    ("put_out_by", lambda j, mask, keep, bits: next((i for i in suppressors(j, mask, bits) if keep[i]), 0), "0 is a box"),
    ("put_out_by", lambda j, mask, keep, bits: next((i for i in range(40) if keep[i] and mask[j][i // bits] >> i % bits & 1), -1),
     "row j says whom"),
    ("put_out_by", lambda j, mask, keep, bits: -1, "finds nobody"),
    ("settle", lambda removed, diagonal: settle_of(removed, diagonal, test=False), "put out others too"),
    ("settle", lambda removed, diagonal: settle_of(removed, diagonal, start=False), "where to start"),
    ("settle", lambda removed, diagonal: ~removed & (1 << len(diagonal)) - 1, "who was not out at first"),
    ("settle", lambda removed, diagonal: settle_of(removed, diagonal) | -1 << len(diagonal), "negative"),
    ("barriers", lambda: [8], "who makes them wait"),
    ("barriers", lambda: [14], "which 64 threads write"),
    ("barriers", lambda: [8, 18], "too late"),
    ("barriers", lambda: (8, 14, 18), "only `diagonal` is written"),
    ("barriers", lambda: (5, 8, 14), "after line 5"),
    ("barriers", lambda: (8, 13), "never come"),
]


def test_stubs_are_not_solved():
    assert_stubs_are_not_solved(cuda_nms)


def test_solutions_pass():
    assert_solutions_pass(cuda_nms, NUMBER)


@pytest.mark.parametrize("exercise, wrong, expected", WRONG)
def test_a_wrong_answer_gets_its_explanation(exercise, wrong, expected):
    assert_explained(cuda_nms, exercise, wrong, expected)


def test_each_exercise_tells_three_mistakes_apart():
    assert_three_mistakes_each(cuda_nms, WRONG)


def test_an_answer_that_raises_is_shown_and_not_raised():
    result = cuda_nms.check_barriers(lambda: 1 / 0)
    assert not result and "ZeroDivisionError" in result.text


def walk_by_words(mask):
    """Version 2 of the walk, with the solution of exercise 2: rows of ints of 64 bits -> keep (B,)."""
    settle, removed, keep = solutions_of(NUMBER)["settle"], [0] * len(mask[0]), []
    for c in range(len(removed)):
        rows = mask[64 * c:64 * (c + 1)]
        kept = settle(removed[c], [row[c] for row in rows])
        keep += [kept >> b & 1 for b in range(len(rows))]
        for b, row in enumerate(rows):
            if kept >> b & 1:
                removed = [old | new for old, new in zip(removed, row)]
    return np.array(keep)


def test_the_words_that_the_exercises_settle_make_nms():
    rng = np.random.default_rng(3)
    corner, side = rng.uniform(0, 40, (150, 2)), rng.uniform(5, 30, (150, 2))
    boxes, scores = np.hstack([corner, corner + side]), np.sort(rng.random(150))[::-1]
    hits = box_iou(boxes, boxes) > 0.5
    mask, first = cuda_nms._words(hits, 64), nms(boxes, scores, 0.5)
    keep = walk_by_words(mask)
    assert np.array_equal(np.flatnonzero(keep), first)
    for j in np.flatnonzero(keep == 0):
        by = solutions_of(NUMBER)["put_out_by"](j, mask, keep, 64)
        assert by == min(first[hits[j, first]]) < j
    assert all(solutions_of(NUMBER)["put_out_by"](j, mask, keep, 64) == -1 for j in first)


@pytest.mark.parametrize("after, problem", [
    ((8, 14), None), ((5, 8, 14, 18), None), ((8,), NOT_WRITTEN), ((14,), NOT_WRITTEN), ((5, 8, 18), NOT_WRITTEN),
    ((8, 13), "walk.cu:1[58]")])
def test_the_inspector_agrees_on_the_barriers(after, problem):
    """The exercise's answer is the fewest barriers with which the inspector finds nothing."""
    try:
        compiler.find()
    except compiler.NoCompiler as error:
        pytest.skip(str(error).split("\n")[0])
    from nprcnn.kernels.cuda_on_cpu.inspection import watched
    from nprcnn.kernels.cuda_on_cpu.loader import LaunchError, Module
    walk = watched(Module(cuda_nms.walk_with_barriers(after), mode="inspect").get_function("walk"))
    rng = np.random.default_rng(4)
    hits = np.triu(rng.random((150, 150)) < 0.05, 1)
    words = [[sum(int(hit) << b for b, hit in enumerate(row[c:c + 64])) for c in (0, 64, 128)] for row in hits]
    mask = np.array(words, np.uint64)
    keep = np.empty(150, np.uint8)
    arguments = (mask, keep, np.int32(150), np.int32(3))
    if problem is None:
        walk((1,), (64,), arguments, shared_mem=24)
        assert np.array_equal(keep, walk_by_words(words))
    else:
        with pytest.raises(LaunchError, match=problem):
            walk((1,), (64,), arguments, shared_mem=24)


def test_without_a_compiler_the_notebooks_say_what_is_skipped(monkeypatch, capsys):
    def none():
        raise compiler.NoCompiler("install one")

    monkeypatch.setattr(compiler, "find", none)
    assert not cuda.compiler_is_here()
    assert "skipped" in (said := capsys.readouterr().out) and "install one" in said


def test_the_kernels_shown_are_whole():
    """From the line that is asked for to the brace that closes it, with the file's own line numbers."""
    shown = cuda.cuda_source("nms_v1_bitmask.cu", 'extern "C" __global__ void nms_reduce').split("\n")
    text = (launch.FOLDER / "nms_v1_bitmask.cu").read_text().split("\n")
    numbers = [int(line[:3]) for line in shown]
    assert [line[5:] for line in shown] == [text[n - 1] for n in numbers] and shown[-1][5:] == "}"
    assert sum(line.count("{") - line.count("}") for line in shown) == 0
    python = cuda.numba_source("nms.py", "nms_reduce")
    assert python.startswith("@cuda.jit\ndef nms_reduce(") and python.count("def ") == 1 and "cuda.syncthreads()" in python
