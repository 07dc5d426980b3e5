"""Exercises and figures of notebook 16: NMS as bits."""

import numpy as np

from .checks import compare
from .figures import BACKWARD, FORWARD


def draw_words(axes, overlaps, bits, title=""):
    """The overlaps (B, B) of sorted boxes, with lines between the words of `bits` columns.

    Black where row i would put out column j. Grey: words left of the diagonal, on which no thread works.
    """
    count = len(overlaps)
    row, column = np.indices(overlaps.shape)
    axes.imshow(np.where(row // bits > column // bits, 0.85, 1.0), cmap="gray", vmin=0, vmax=1)
    i, j = np.nonzero(np.triu(overlaps, 1))
    axes.plot(j, i, "s", color="black", markersize=1.3, markeredgewidth=0)
    edges = np.arange(0, count + bits, bits).clip(max=count) - 0.5
    axes.hlines(edges, -0.5, count - 0.5, color="#999999", linewidth=0.8)
    axes.vlines(edges, -0.5, count - 0.5, color="#999999", linewidth=0.8)
    axes.set(title=title, xlabel=f"box j, {bits} to a word", ylabel="box i, a thread each",
             xticks=edges[:-1] + 0.5, yticks=edges[:-1] + 0.5, xlim=(-0.5, count - 0.5), ylim=(count - 0.5, -0.5))
    axes.spines[:].set_visible(False)


def draw_block(axes, row_block, column_block, bits, thread):
    """On top of draw_words: the pairs of one block, and among them those of one thread."""
    import matplotlib.pyplot as plt
    corner = column_block * bits - 0.5, row_block * bits - 0.5
    axes.add_patch(plt.Rectangle(corner, bits, bits, facecolor=FORWARD, alpha=0.25, edgecolor="none"))
    row = row_block * bits + thread
    axes.add_patch(plt.Rectangle((corner[0], row - 1.5), bits, 3, facecolor=BACKWARD, edgecolor="none"))


def _words(hits, bits):
    """The upper triangle of hits (B, B) as rows of ints: bit b of word c is about column c * bits + b."""
    return [[sum(int(hit) << b for b, hit in enumerate(row[c:c + bits])) for c in range(0, len(hits), bits)]
            for row in np.triu(hits, 1)]


def _walk(hits):
    """keep (B,) 0 or 1 of equation (1)."""
    keep = np.ones(len(hits), int)
    for i, row in enumerate(np.triu(hits, 1)):
        if keep[i]:
            keep[row] = 0
    return keep


def check_put_out_by(yours):
    """put_out_by(j, mask, keep, bits) -> the first box that put out box j, or -1.

    mask[i][c] : a word; keep (B,) : 0 or 1
    """
    def answer(j, mask, keep, bits, only_kept=True, order=1, column=True, wrap=True, none=-1, from_left=False, above=True):
        for i in list(range(j if above else len(mask)))[::order]:
            row, k = (mask[i], j) if column else (mask[j], i)
            bit = bits - 1 - k % bits if from_left else k % bits if wrap else k
            if (keep[i] or not only_kept) and row[k // bits] >> bit & 1:
                return i
        return none

    mistakes = [
        (lambda *a: answer(*a, only_kept=False),
         "that box overlaps j, and is out itself. Only a box that is kept puts out others: keep[i]."),
        (lambda *a: answer(*a, order=-1),
         "that is the last box that would have put it out. j was out before: the first one did it."),
        (lambda *a: answer(*a, wrap=False),
         "box j is bit j % bits of its word. With >> j, all bits beyond the first word read 0."),
        (lambda *a: answer(*a, column=False, above=False),
         "row j says whom j puts out. Who puts out j stands in the rows above: one bit of each."),
        (lambda *a: answer(*a, column=False),
         "it finds nobody. Look into the rows above, mask[i], not into row j; and bit b counts from the right: >> b & 1."),
        (lambda *a: answer(*a, none=a[0]), "a box that nobody put out has no such box: return -1."),
        (lambda *a: answer(*a, none=0), "a box that nobody put out has no such box: return -1. 0 is a box."),
        (lambda *a: answer(*a, from_left=True), "bit b counts from the right, as in word >> b & 1, not from the left."),
    ]
    rng = np.random.default_rng(40)
    cases = []
    for bits in (16, 8):
        hits = rng.random((40, 40)) < 0.12
        mask, keep = _words(hits, bits), _walk(hits)

        def differ(**mistake):
            return [j for j in range(40) if answer(j, mask, keep, bits) != answer(j, mask, keep, bits, **mistake)]

        misled, twice = differ(only_kept=False), differ(order=-1)
        early = int(np.flatnonzero(keep == 0)[0])         # in the first word
        for j in (early, misled[0], twice[0], misled[-1], twice[-1], 0, int(np.flatnonzero(keep)[-1]), 39):
            cases.append((f"box {j}, words of {bits} bits", (j, mask, keep, bits)))
    return compare("put_out_by", yours, answer, cases, ("box",), mistakes)


def check_settle(yours):
    """settle(removed, diagonal) -> the word of the boxes that stay; diagonal[b]: the word of those that b puts out."""
    def answer(removed, diagonal, all_suppress=False, collect=True, start=True, cut=True, out=False, first=0):
        gone = removed if start else 0
        for b in range(first, len(diagonal)):
            if all_suppress or not gone >> b & 1:
                gone = gone | diagonal[b] if collect else gone
        everything = (1 << len(diagonal)) - 1
        return gone & everything if out else ~gone & everything if cut else ~gone

    mistakes = [
        (lambda *a: answer(*a, all_suppress=True),
         "boxes that are out put out others too. Test the bit of box b before its word is used."),
        (lambda *a: answer(*a, collect=False),
         "that is who was not out at first. Boxes among these put out one another: that is what diagonal is for."),
        (lambda *a: answer(*a, start=False),
         "boxes before these have put out some already: removed is where to start."),
        (lambda *a: answer(*a, cut=False),
         "in Python ~out is negative: it has ones without end. Bits beyond the boxes must be 0."),
        (lambda *a: answer(*a, out=True), "that is the word of those that are out. Asked for are those that stay."),
    ]
    rng = np.random.default_rng(41)
    cases = []
    for count, share in ((6, 0.4), (8, 0.3), (16, 0.15), (13, 0.25), (20, 0.1)):
        hits = np.triu(rng.random((count, count)) < share, 1)
        removed = sum(int(out) << b for b, out in enumerate(rng.random(count) < 0.3))
        cases.append((f"{count} boxes, removed {removed:#b}", (removed, [row[0] for row in _words(hits, count)])))
    return compare("settle", yours, answer, cases, ("kept",), mistakes)


# The walk of nms_v2_groups.cu for one group, without its barriers. The exercise's lines count from 1.
WALK = """extern "C" __global__ void walk(const word* mask, unsigned char* keep, int B, int words) {
    extern __shared__ word removed[];
    __shared__ word diagonal[64], kept;
    const int t = threadIdx.x;
    for (int w = t; w < words; w += blockDim.x) removed[w] = 0;
    for (int w = 0; w < words; ++w) {
        const int count = min(B - w * 64, 64), first = w * 64;
        if (t < count) diagonal[t] = mask[(first + t) * words + w];
        if (t == 0) {
            word out = removed[w];
            for (int b = 0; b < count; ++b)
                if (!(out >> b & 1)) out |= diagonal[b];
            kept = ~out;
        }
        if (t < count) keep[first + t] = kept >> t & 1;
        for (int v = w + 1 + t; v < words; v += blockDim.x)
            for (int b = 0; b < count; ++b)
                if (kept >> b & 1) removed[v] |= mask[(first + b) * words + v];
    }
}"""


def walk_with_barriers(after):
    """The text of the exercise's kernel with a `__syncthreads();` after each of the lines in `after`."""
    lines = WALK.split("\n")
    text = [line + ("  __syncthreads();" if number in after else "") for number, line in enumerate(lines, 1)]
    return 'typedef unsigned long long word;\n#line 1 "walk.cu"\n' + "\n".join(text)


def check_barriers(yours):
    """barriers() -> the lines of WALK after which a __syncthreads() must stand, the fewest."""
    def lines():
        given = yours()
        unsolved = all(line is None or line is ... for line in np.atleast_1d(np.array(given, object)))
        return None if unsolved else np.unique(np.asarray(given, int))

    try:
        answer = lines()
        mistakes = [(lambda: answer, _barrier_advice({*answer.tolist()}))] if isinstance(answer, np.ndarray) else []
    except Exception:       # whatever the student's code raises, `compare` shows
        mistakes = []
    return compare("barriers", lines, lambda: np.array([8, 14]), [("the walk", ())], ("lines",), mistakes)


def _barrier_advice(lines):
    """What to say to barriers after these lines."""
    if lines & {9, 10, 11, 12, 13}:
        return "lines 10 to 13 are thread 0's own branch. A barrier there waits for threads that never come."
    if 14 not in lines:
        late = " The end of the loop is too late." if lines & {18, 19} else ""
        return ("thread 0 writes `kept`, and in the same turn of the loop all the others read it: "
                "who makes them wait until it is there?" + late)
    if 8 not in lines:
        return "thread 0 reads `diagonal`, which 64 threads write. Before it does, all of them must have written."
    if 5 in lines:
        return ("it works, with more than are needed: after line 5, who reads `removed` before another barrier has "
                "come?")
    if lines & {18, 19}:
        return ("it works, with more than are needed: between the end of the loop and the next barrier only "
                "`diagonal` is written. Who still reads it?")
    return "it works, with more than are needed. Take out one at a time, and ask who reads what others have written."
