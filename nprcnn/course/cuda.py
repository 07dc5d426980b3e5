"""Exercises of notebook 15: the memory of a GPU. And what notebooks 15 to 17 share."""

import ast

import numpy as np

from ..kernels.cuda import launch
from ..kernels.cuda_on_cpu import compiler
from ..kernels.cuda_on_cpu.inspection import SECTOR
from .checks import compare


def compiler_is_here():
    """Is there a C++ compiler, so that CUDA kernels can run on this machine? If not, says so."""
    try:
        compiler.find()
    except compiler.NoCompiler as error:
        print(f"The cells that run CUDA kernels are skipped here:\n{error}")
        return False
    return True


def counts(launches, names):
    """A table of what launches asked of the memory, a row each, as wide as a page. (`report` of inspection.py tells more.)"""
    rows = [f"{'':16} {'global':>11} {'KB':>9} {'sectors':>11} {'KB':>9} {'shared':>11} {'bank':>11}",
            f"{'':16} {'accesses':>11} {'asked':>9} {'moved':>11} {'moved':>9} {'accesses':>11} {'conflicts':>11}"]
    for name, one in zip(names, launches):
        asked, sectors = one.total("bytes"), one.total("sectors")
        shared, passes, least = (one.total(field, shared=True) for field in ("accesses", "passes", "least_passes"))
        rows.append(f"{name:16} {one.total('accesses'):11,} {asked / 1024:9,.0f} {sectors:11,} {sectors * SECTOR / 1024:9,.0f} "
                    f"{shared:11,} {passes - least:11,}")
    return "\n".join(rows)


def cuda_source(file, begin, end="}"):
    """Numbered lines of a file of kernels/cuda: from the first that begins with `begin` to the next that begins with `end`."""
    lines = (launch.FOLDER / file).read_text(encoding="utf-8").split("\n")
    first = next(n for n, line in enumerate(lines) if line.startswith(begin))
    last = next(n for n, line in enumerate(lines) if n > first and line.startswith(end))
    return "\n".join(f"{n + 1:3}  {lines[n]}" for n in range(first, last + 1))


def numba_source(file, function):
    """The text of one function of kernels/numba_cuda, with its decorator. Read, not imported: that needs a GPU or a simulator."""
    text = (launch.FOLDER.parent / "numba_cuda" / file).read_text(encoding="utf-8")
    (found,) = [node for node in ast.parse(text).body if getattr(node, "name", "") == function]
    return "\n".join(text.split("\n")[found.decorator_list[0].lineno - 1:found.end_lineno])


def check_sectors(yours):
    """sectors(addresses, size): how many sectors of 32 bytes a warp touches; addresses (lanes,) in bytes, size bytes a lane."""
    def right(addresses, size):
        first, last = addresses // 32, (addresses + size - 1) // 32
        return len(np.unique(np.concatenate([first, last])))

    mistakes = [
        (lambda a, size: len(np.unique(a // 32)),
         "a number may begin in one sector and end in the next: the sector of its last byte counts too."),
        (lambda a, size: len(a), "lanes that meet in one sector share it: count different sectors, not lanes."),
        (lambda a, size: -(-len(a) * size // 32), "that is how many sectors the bytes would fill if they lay side by side. Where do they lie?"),
        (lambda a, size: (a.max() + size - 1) // 32 - a.min() // 32 + 1,
         "sectors between the lowest and the highest address that no lane touches are not fetched."),
        (lambda a, size: len(np.unique(np.concatenate([a // 32, (a + size) // 32]))),
         "the last byte of a number that begins at a is a + size - 1. Byte a + size belongs to the next number."),
        (lambda a, size: len(np.unique(a // 128)), "a sector has 32 bytes; 128 is a line of the cache, four sectors."),
    ]
    lanes = np.arange(32)
    rng = np.random.default_rng(0)
    cases = [("32 floats in a row", (4 * lanes, 4)), ("every eighth float", (32 * lanes, 4)), ("all at one place", (0 * lanes + 64, 4)),
             ("float4 in a row", (16 * lanes, 16)), ("rows of 7 floats, 13 apart", (4 * (lanes // 7 * 13 + lanes % 7), 4)),
             ("doubles that begin 4 bytes before a sector's end", (28 + 64 * lanes, 8)), ("at random", (4 * rng.integers(0, 999, 20), 4))]
    return compare("sectors", yours, right, cases, ("sectors",), mistakes)


def check_passes(yours):
    """passes(words): how often shared memory is read for a warp; words (32,), the 4-byte word that each lane wants."""
    def right(words):
        different = np.unique(words)
        return int(np.bincount(different % 32).max())

    mistakes = [
        (lambda words: int(np.bincount(words % 32).max()), "lanes that want the same word get it in the same pass (a broadcast)."),
        (lambda words: len(np.unique(words % 32)), "that is how many banks are asked. They work side by side: the slowest one counts."),
        (lambda words: len(np.unique(words)), "different words in different banks come in one pass."),
        (lambda words: int(np.bincount(np.unique(words) % 32).max()) - 1, "these are the conflicts, the passes beyond the first: one too few."),
    ]
    lanes = np.arange(32)
    cases = [("32 words in a row", (lanes,)), ("every second word", (2 * lanes,)), ("a column of a 32 x 32 tile", (32 * lanes,)),
             ("a column of a 32 x 33 tile", (33 * lanes,)), ("all the same word", (0 * lanes + 5,)),
             ("two rows of 16, 17 apart", (lanes // 16 * 17 + lanes % 16,)), ("8 words, four lanes each", (lanes // 4 * 32,))]
    return compare("passes", yours, right, cases, ("passes",), mistakes)


def check_place(yours):
    """place(k, C, OH, OW) -> r, c, i, j: the number of y (R, C, OH, OW) that thread k computes."""
    def right(k, C, OH, OW):
        return k // (C * OH * OW), k // (OH * OW) % C, k // OW % OH, k % OW

    mistakes = [
        (lambda k, C, OH, OW: (k % (C * OH * OW), k % (OH * OW) % C, k % OW % OH, k % OW),
         "what is left over goes to the index that runs faster; this one needs the quotient."),
        (lambda k, C, OH, OW: (k // (C * OH * OW), k // (OH * OW), k // OW, k),
         "the remainder is missing: an index begins again when the one before it moves on."),
        (lambda k, C, OH, OW: (None, k // (C * OH), k // OH % OH, None),
         "count what one step of this index is worth: as many threads as all the indices behind it have together."),
        (lambda k, C, OH, OW: (k % C, k // C % OH, k // (C * OH) % OW, k // (C * OH * OW)),
         "the order is turned round: the last index, j, runs fastest, and r slowest."),
        (lambda k, C, OH, OW: (k // (C * OH * OW), k // (OH * OW) % C, k // OH % OW, k % OH), "j, the last index, runs fastest, from 0 to OW - 1."),
        (lambda k, C, OH, OW: (k % (k + 1), k // (k + 1), k // (k + 1), k // (k + 1)), "all threads of one RoI have the same r."),
    ]
    cases = [(f"thread {k}", (k, C, OH, OW)) for k, C, OH, OW in ((0, 4, 7, 7), (6, 4, 7, 7), (7, 4, 7, 7), (49, 4, 7, 7), (1000, 4, 7, 7),
                                                                   (12344, 16, 3, 5))]
    return compare("place", yours, right, cases, ("r", "c", "i", "j"), mistakes)
