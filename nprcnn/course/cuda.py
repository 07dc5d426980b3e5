"""Exercises of notebook 15: the memory of a GPU."""

import numpy as np

from .checks import compare


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
        (lambda k, C, OH, OW: (k // (C * OH * OW), k // (OH * OW) % C, k // OH % OW, k % OH), "j, the last index, runs fastest, from 0 to OW - 1."),
        (lambda k, C, OH, OW: (k % (k + 1), k // (k + 1), k // (k + 1), k // (k + 1)), "all threads of one RoI have the same r."),
    ]
    cases = [(f"thread {k}", (k, C, OH, OW)) for k, C, OH, OW in ((0, 4, 7, 7), (6, 4, 7, 7), (7, 4, 7, 7), (49, 4, 7, 7), (1000, 4, 7, 7),
                                                                   (12344, 16, 3, 5))]
    return compare("place", yours, right, cases, ("r", "c", "i", "j"), mistakes)
