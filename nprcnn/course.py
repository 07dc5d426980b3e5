"""The course's exercises, and the look of its figures.

    result = check_bce_backward(bce_backward)      # shows as text; result.passed is True or False

A check calls the student's function and a reference on the same inputs. Beside the reference it knows some wrong
answers, each a function and a sentence: when the student's numbers are those of a wrong answer, its sentence is the
explanation. To add an exercise, write the reference and the wrong answers, and hand them to `compare`.
"""

import copy
import linecache
import traceback
from typing import NamedTuple

import numpy as np

from .ops.activation import sigmoid
from .ops.conv import conv2d, conv2d_grad_x
from .ops.deconv import conv_transpose2d

# Okabe and Ito's colours, which colour-blind readers can tell apart. Forward and backward keep theirs in every figure.
FORWARD, BACKWARD, GREEN, PINK, YELLOW = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"
TOLERANCE = 1e-9        # of the largest expected number: float64 rounds these sums to about 1e-15


class Result(NamedTuple):
    """What a check found. Shows as its text; is true when passed."""

    exercise: str
    passed: bool
    text: str

    def __bool__(self):
        return self.passed

    def __repr__(self):
        return self.text


def compare(exercise, yours, reference, cases, outputs, mistakes=()):
    """Compare a student's function with the reference, up to the first case that differs.

    Parameters
    ----------
    exercise : str
    yours, reference : functions of the same arguments, which return an array, a number, or a tuple of them
    cases : list of (name, tuple of arguments)
    outputs : tuple of str
        Names of what the functions return.
    mistakes : list of (function, text)
        Wrong answers: functions like the reference. An output that is None says nothing.

    Returns
    -------
    Result
    """
    for name, args in cases:
        with np.errstate(all="ignore"):
            problem = _try(yours, reference, args, outputs, mistakes)
        if problem == "unsolved":
            return Result(exercise, False, f"{exercise}: not solved yet. Fill in the function, then run this cell again.")
        if problem:
            return Result(exercise, False, f"{exercise}: not right yet (case: {name}).\n{problem}")
    return Result(exercise, True, f"{exercise}: passed, all {len(cases)} cases.")


def _try(yours, reference, args, outputs, mistakes):
    """What is wrong in one case: "" for nothing, "unsolved" for a stub."""
    given = copy.deepcopy(args)
    try:
        got = yours(*given)
    except NotImplementedError:
        return "unsolved"
    except Exception as error:     # whatever the student's code raises is shown, not raised
        return _describe_error(error, yours)
    got = tuple(got) if isinstance(got, (tuple, list)) else (got,)
    if all(value is None or value is ... for value in got):
        return "unsolved"
    if len(got) != len(outputs):
        return f"  It returns {len(got)} and should return {len(outputs)}: {', '.join(outputs)}."
    if any(a.tobytes() != b.tobytes() for a, b in zip(_arrays(args), _arrays(given))):
        return ("  It writes into one of its arguments, which others may still need: the same dy goes to every branch.\n"
                "Why, perhaps: an operation in place on an argument, or on a slice of one. Copy it first.")
    want = _tuple(reference(*args))
    wrong_answers = [(_tuple(wrong(*args)), text) for wrong, text in mistakes]
    lines, reasons = [], []
    for k, name in enumerate(outputs):
        line, right = _compare_one(name, got[k], want[k])
        lines.append(line)
        if not right:
            texts = [text for answer, text in wrong_answers if answer[k] is not None and _agree(got[k], answer[k])]
            reasons.append(texts[0] if texts else _pattern(got[k], want[k]))
    return "\n".join([*lines, *(f"Why, perhaps: {reason}" for reason in dict.fromkeys(reasons))]) if reasons else ""


def _compare_one(name, got, want):
    """One line about one output, and whether it is right."""
    got = _numbers(got)
    if got is None:
        return f"  {name}: not an array of numbers", False
    if got.shape != want.shape:
        return f"  {name}: shape {got.shape}, expected {want.shape}", False
    if _agree(got, want):
        return f"  {name}: right, shape {got.shape}", True
    error = np.nan_to_num(np.abs(got - want), nan=np.inf)
    worst, bad = np.unravel_index(error.argmax(), error.shape), np.argwhere(error > TOLERANCE * np.abs(want).max())
    text = f"  {name}: yours {got[worst]:.6g}, expected {want[worst]:.6g}"
    if got.ndim:
        text = (f"  {name}: shape {got.shape} is right, {len(bad)} of {got.size} numbers are wrong, "
                f"the first at {_at(bad[0])}\n"
                f"    largest error {error[worst]:.3g} at {_at(worst)}: yours {got[worst]:.6g}, "
                f"expected {want[worst]:.6g}")
    return text, False


def _agree(a, b):
    """Equal in shape and, to rounding, in value."""
    a = _numbers(a)
    return a is not None and a.shape == b.shape and bool(np.all(np.abs(a - b) <= TOLERANCE * np.abs(b).max(initial=0)))


def _pattern(got, want):
    """What a wrong answer that is none of the known ones looks like."""
    got = _numbers(got)
    if got is None:
        return "return NumPy arrays of numbers."
    if got.shape != want.shape:
        for axis in range(got.ndim):
            if _agree(got.sum(axis=axis), want):
                return f"the sum over axis {axis} is missing: what serves every entry there collects all their gradients."
        return "it is transposed." if _agree(got.T, want) else "write down the shape of every factor and of the result."
    if not np.isfinite(got).all():
        return "a number is not finite: look for an exp that overflows, a log(0), a division by 0."
    factor = np.sum(got * want) / np.sum(want * want)
    if factor and _agree(got, factor * want):
        return "the sign is wrong." if _agree(got, -want) else f"it is {factor:.4g} times the right answer."
    bad = np.abs(got - want) > TOLERANCE * np.abs(want).max()
    if got.ndim >= 2 and min(got.shape[-2:]) > 2 and not bad[..., 1:-1, 1:-1].any():
        return "only the border is wrong: look at the padding and at the first and last index."
    if not got[bad].any():
        return "the wrong numbers are all 0: something never arrives there."
    return "none of the usual mistakes. Try one channel and three pixels, and compare number by number."


def _describe_error(error, function):
    """The exception, and the line of the student's function that it came from."""
    code = getattr(function, "__code__", None)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if code and f.filename == code.co_filename]
    where = f"\n  in the line   {linecache.getline(frames[-1].filename, frames[-1].lineno).strip()}" if frames else ""
    return f"  It raises {type(error).__name__}: {error}{where}"


def _arrays(thing):
    """Every array in a nest of tuples and lists."""
    if isinstance(thing, np.ndarray):
        return [thing]
    return [a for item in thing for a in _arrays(item)] if isinstance(thing, (tuple, list)) else []


def _tuple(y):
    return tuple(None if a is None else np.asarray(a) for a in (y if isinstance(y, tuple) else (y,)))


def _numbers(y):
    """An array, or None for what is none."""
    try:
        return None if y is None else np.asarray(y, np.float64)
    except (TypeError, ValueError):
        return None


def _at(index):
    return "[" + ", ".join(str(int(i)) for i in index) + "]"


# ---- figures ----

def style():
    """The look of the course's figures: colours for everybody, sizes that suit a page."""
    import matplotlib.pyplot as plt
    plt.rcParams.update({
        "figure.dpi": 84, "figure.constrained_layout.use": True, "font.size": 10, "axes.titlesize": 10,
        "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False, "image.interpolation": "nearest",
        "axes.prop_cycle": plt.cycler(color=[FORWARD, BACKWARD, GREEN, PINK, YELLOW]),
    })


def show_matrix(axes, matrix, title, xlabel="", ylabel="", text="{:.2f}"):
    """A small matrix as a picture with its numbers: purple is negative, orange positive. `text` formats a number."""
    matrix = np.atleast_2d(matrix)
    limit = np.abs(matrix).max() or 1
    axes.imshow(matrix, cmap="PuOr_r", vmin=-limit, vmax=limit)
    for (row, column), value in np.ndenumerate(matrix):
        axes.text(column, row, text.format(round(float(value), 6) + 0.0), ha="center", va="center", fontsize=8,
                  color="white" if abs(value) > 0.6 * limit else "black")
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel, xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.set_anchor("N")


PARTS = {     # of a Mask R-CNN: place in the figure, text
    "image": (0, 0.7, "image"), "resnet": (1.2, 0.7, "ResNet\nC2 .. C5"), "fpn": (2.5, 0.7, "pyramid\nP2 .. P6"),
    "rpn": (3.6, 1.75, "RPN"), "roi_align": (4.6, 0.7, "RoIAlign"), "box_head": (6, 1.0, "box head"),
    "mask_head": (6, 0.2, "mask head"), "losses": (7.4, 1.6, "five\nlosses"),
}
FLOWS = [("image", "resnet"), ("resnet", "fpn"), ("fpn", "rpn"), ("fpn", "roi_align"), ("roi_align", "box_head"),
         ("roi_align", "mask_head"), ("rpn", "losses"), ("box_head", "losses"), ("mask_head", "losses")]


def where_we_are(*here, backward=False):
    """Draw a Mask R-CNN with the parts `here` (names of PARTS) filled; `backward` adds the gradients' way back."""
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(figsize=(8, 2.2))
    axes.set(xlim=(-0.5, 7.9), ylim=(0, 2))
    axes.axis("off")
    boxes = {}
    for name, (x, y, text) in PARTS.items():
        face, ink = ("#404040", "white") if name in here else ("#eeeeee", "black")
        boxes[name] = axes.text(x, y, text, ha="center", va="center", color=ink, fontsize=9,
                                bbox=dict(boxstyle="round,pad=0.45", facecolor=face, edgecolor="#808080"))
    figure.draw_without_rendering()     # the arrows end at the boxes' edges, which exist only now

    def arrow(a, b, colour, style="-"):
        axes.annotate("", PARTS[b][:2], PARTS[a][:2], arrowprops=dict(
            arrowstyle="-|>", color=colour, linestyle=style, linewidth=1.3, shrinkA=2, shrinkB=2,
            patchA=boxes[a].get_bbox_patch(), patchB=boxes[b].get_bbox_patch(),
            connectionstyle="arc3,rad=-0.12" if backward else "arc3"))

    for a, b in FLOWS:
        arrow(a, b, FORWARD)
        if backward and a != "image":     # the image needs no gradient
            arrow(b, a, BACKWARD)
    arrow("rpn", "roi_align", FORWARD, ":")     # boxes, which are constants on the way back


# ---- 01: what a backward pass is ----

def check_residual_backward(yours):
    """y = x + relu(z), z = x @ w.T + b: residual_backward(dy, (x, w, z)) -> dx, dw, db."""
    def right(dy, cache, gate=lambda x, z: z > 0, skip=1):
        x, w, z = cache
        dz = dy * gate(x, z)
        return skip * dy + dz @ w, dz.T @ x, dz.sum(axis=0)

    mistakes = [
        (lambda dy, c: (right(dy, c, skip=0)[0], None, None),
         "dx lacks the short cut. x reaches y by two paths, so two gradients add up (fan-out -> sum)."),
        (lambda dy, c: (dy, None, None), "dx has the short cut only. x also enters the layer: add what comes back through w."),
        (lambda dy, c: right(dy, c, lambda x, z: 1), "ReLU's gate is missing: where z <= 0, nothing passes back."),
        (lambda dy, c: right(dy, c, lambda x, z: x > 0), "the gate looks at x, but ReLU was applied to z."),
        (lambda dy, c: right(dy, c, lambda x, z: x + np.maximum(z, 0) > 0),
         "the gate looks at y. For a bare ReLU that would do, but here y is x + relu(z): its sign is not that of z."),
        (lambda dy, c: (dy + (dy * (c[2] > 0)) @ c[1].T, None, None),
         "w is transposed in dx. z[r, o] = sum over i of x[r, i] w[o, i], so the sum for dx[r, i] runs over o."),
        (lambda dy, c: (None, right(dy, c)[1].T, None), "dw is transposed: dw[o, i] belongs to w[o, i]."),
    ]
    rng = np.random.default_rng(1)
    cases = []
    for rows, width in ((5, 4), (1, 3)):
        x, w, b, dy = (rng.standard_normal(shape) for shape in ((rows, width), (width, width), width, (rows, width)))
        cases.append((f"{rows} rows of {width}", (dy, (x, w, x @ w.T + b))))
    return compare("residual_backward", yours, right, cases, ("dx", "dw", "db"), mistakes)


def check_pyramid_backward(yours):
    """pyramid_backward(dy, (c5, w, index)) -> dc4, dc5, dw of the one-dimensional pyramid in notebook 01."""
    def right(dy, cache, spread=np.add.at, p5=1, p6=1):
        c5, w, index = cache
        dp4, dp5, dp6 = np.split(dy, [len(index), len(index) + c5.shape[2]], axis=2)
        dinner = p5 * dp5
        dinner[:, :, ::2] += p6 * dp6
        spread(dinner, (slice(None), slice(None), index), dp4)
        return dp4, w.T @ dinner, np.einsum("ncl,ndl->cd", dinner, c5)

    def add_once(a, place, values):
        a[place] += values

    mistakes = [
        (lambda dy, c: right(dy, c, spread=add_once),
         "the bug is still there: of two gradients that go to the same place one is lost. Which line has an index that "
         "repeats, and what does NumPy do with `a[index] += values` then?"),
        (lambda dy, c: right(dy, c, np.ndarray.__setitem__),
         "dinner is overwritten where the upsampling's gradient should be added to what is there."),
        (lambda dy, c: right(dy, c, lambda *nothing: None), "the path through the upsampling is missing."),
        (lambda dy, c: right(dy, c, p6=0), "the path through p6 is missing (slice -> scatter-add)."),
        (lambda dy, c: right(dy, c, p5=np.arange(c[0].shape[2]) % 2),
         "p6's gradient replaces p5's at every second place. inner went to both, so they add up (fan-out -> sum)."),
        (lambda dy, c: right(dy, c, p5=0), "the path through p5 is missing: inner is itself a part of y."),
    ]
    rng = np.random.default_rng(2)
    cases = []
    for length, half, quarter in ((6, 3, 2), (7, 4, 2)):
        c5, w, dy = (rng.standard_normal(s) for s in ((2, 4, half), (3, 4), (2, 3, length + half + quarter)))
        cases.append((f"c4 has length {length}", (dy, (c5, w, np.arange(length) // 2))))
    return compare("pyramid_backward", yours, right, cases, ("dc4", "dc5", "dw"), mistakes)


def check_bce_backward(yours):
    """bce_backward(dy, (z, t)) -> dz of the mean binary cross-entropy between sigmoid(z) and t."""
    def answer(f):
        return lambda dy, cache: f(dy, sigmoid(cache[0]), *cache)

    right = answer(lambda dy, p, z, t: dy * (p - t) / z.size)
    mistakes = [(answer(f), text) for f, text in (
        (lambda dy, p, z, t: dy * (p - t), "the forward takes a mean, so each element has a share of 1 / z.size."),
        (lambda dy, p, z, t: dy * (p - t) / len(z), "the mean is over all elements, z.size, and not over the rows, len(z)."),
        (lambda dy, p, z, t: (p - t) / z.size, "dy is missing: what follows the loss may scale it."),
        (lambda dy, p, z, t: dy * (t - p) / z.size, "the sign: a logit that is too high (p > t) raises the loss."),
        (lambda dy, p, z, t: dy * (p - t) / (p * (1 - p)) / z.size,
         "that is the gradient to the probability p. A step is left: p = sigmoid(z), whose slope is p (1 - p)."),
        (lambda dy, p, z, t: dy * (p - t) * p * (1 - p) / z.size,
         "the slope p (1 - p) is there once too often: it cancels with that of the logarithms."),
        (lambda dy, p, z, t: dy * (z - t) / z.size, "z is a logit: compare the probability sigmoid(z) with t."),
    )]
    rng = np.random.default_rng(3)
    cases = [(name, (dy, (size * rng.standard_normal((3, 4)), rng.uniform(0, 1, (3, 4)))))
             for name, dy, size in (("3 x 4 logits", 1.7, 2.0), ("logits of some thousand", -0.6, 4000.0))]
    return compare("bce_backward", yours, right, cases, ("dz",), mistakes)


# ---- 02: convolution ----

def check_receptive_field(yours):
    """receptive_field([(kernel, stride, dilation), ...]) -> how many input pixels, along one axis, one output sees."""
    def right(layers, strides=True, early=False, dilations=True):
        size, step = 1, 1
        for kernel, stride, dilation in layers:
            size += (kernel - 1) * (dilation if dilations else 1) * step * (stride if early else 1)
            step *= stride if strides else 1
        return size

    mistakes = [
        (lambda layers: right(layers, strides=False),
         "the strides have no effect. After a layer of stride s, neighbours are s times as far apart in the image."),
        (lambda layers: right(layers, early=True),
         "a layer's own stride widens the layers after it, not itself: add to the size first, then multiply the step."),
        (lambda layers: right(layers, dilations=False), "the dilation has no effect: k pixels d apart span (k - 1) d + 1."),
        (lambda layers: sum(kernel for kernel, _, _ in layers), "a kernel of k adds k - 1 pixels to the one already there."),
        (lambda layers: right(layers) - 1, "one too few: before any layer, an output sees 1 pixel, itself."),
    ]
    cases = [("one 3x3 of stride 2", ([(3, 2, 1)],)), ("three of 3x3", ([(3, 1, 1)] * 3,)),
             ("ResNet's stem", ([(7, 2, 1), (3, 2, 1)],)), ("dilations 1, 2, 4", ([(3, 1, 1), (3, 1, 2), (3, 1, 4)],)),
             ("strides and a dilation", ([(5, 2, 1), (3, 1, 2), (2, 3, 1), (3, 1, 1)],))]
    return compare("receptive_field", yours, right, cases, ("size",), mistakes)


def check_conv_transpose(yours):
    """conv_transpose(x, w, stride) -> y: x (N, C, H, W), w (C, O, KH, KW), no padding."""
    def right(x, w, stride):
        return conv_transpose2d(x, w, None, stride)

    def overwrite(x, w, stride):
        y = np.zeros_like(right(x, w, stride))
        for i, j in np.ndindex(x.shape[2:]):
            top, left = i * stride, j * stride
            y[:, :, top:top + w.shape[2], left:left + w.shape[3]] = np.einsum("nc,coij->noij", x[:, :, i, j], w)
        return y

    mistakes = [
        (overwrite, "stamps that overlap must add up, and yours overwrite one another: = where += is meant."),
        (lambda x, w, s: right(x, w[:, :, ::-1, ::-1], s), "the filter is turned round. The stamp is the filter as it is."),
        (lambda x, w, s: right(x, w, 1), "the stamps lie 1 pixel apart: that of pixel (h, w) begins at (h stride, w stride)."),
        (lambda x, w, s: right(x, w, s)[:, :, :x.shape[2] * s, :x.shape[3] * s],
         "it is cut off. The last stamp begins at (H - 1) * stride and is KH high."),
        (lambda x, w, s: right(x, w.swapaxes(0, 1), s) if w.shape[0] == w.shape[1] else None,
         "w is (C, O, KH, KW), with the input channels first: the sum over channels runs over its first axis."),
    ]
    rng = np.random.default_rng(4)
    cases = [(name, (rng.standard_normal(x), rng.standard_normal(w), stride)) for name, x, w, stride in (
        ("2x2 filters, stride 2, as in the mask head", (1, 2, 3, 4), (2, 2, 2, 2), 2),
        ("3x3 filters, stride 2", (2, 2, 3, 4), (2, 3, 3, 3), 2),
        ("3x2 filters, stride 1", (1, 3, 4, 2), (3, 1, 3, 2), 1),
        ("2x2 filters, stride 3", (1, 1, 2, 3), (1, 2, 2, 2), 3))]
    return compare("conv_transpose", yours, right, cases, ("y",), mistakes)


def check_grad_x_by_convolution(yours):
    """grad_x_by_convolution(dy, w, x_shape, stride, padding) -> dx of conv2d; w (O, C, K, K), padding < K."""
    def answer(dy, w, x_shape, stride, padding, turn=-1, swap=True, rest=True, pad=None):
        k = w.shape[2]
        sizes = [size + 2 * padding - k + 1 if rest else (n - 1) * stride + 1 for size, n in zip(x_shape[2:], dy.shape[2:])]
        spread = np.zeros((*dy.shape[:2], *sizes))
        spread[:, :, ::stride, ::stride][:, :, :dy.shape[2], :dy.shape[3]] = dy
        w = w[:, :, ::turn, ::turn]
        return conv2d(spread, w.swapaxes(0, 1) if swap else w, None, 1, k - 1 - padding if pad is None else pad)

    mistakes = [
        (lambda *a: answer(*a, turn=1), "the filters are not turned round: w[:, :, ::-1, ::-1]."),
        (lambda *a: answer(*a, swap=False) if a[1].shape[0] == a[1].shape[1] else None,
         "input and output channels must change places: dy has O channels, dx has C."),
        (lambda *a: answer(*a, pad=a[4]),
         "that is the forward's padding. The way back needs K - 1 - padding, the same for 3x3 with padding 1 only."),
        (lambda *a: answer(*a, rest=False),
         "the last rows or columns are missing: with a stride, the last window may end before the last pixel. Make the "
         "spread-out dy as large as the output would be with stride 1."),
    ]
    rng = np.random.default_rng(5)
    cases = []
    for name, x_shape, out, k, stride, padding in (
            ("3x3, padding 1, 2 channels to 2", (1, 2, 5, 6), 2, 3, 1, 1),
            ("3x3, no padding, 2 channels to 3", (2, 2, 5, 6), 3, 3, 1, 0),
            ("3x3, stride 2, padding 1, odd size", (1, 2, 7, 5), 3, 3, 2, 1),
            ("3x3, stride 2, padding 1, even size", (1, 2, 8, 6), 2, 3, 2, 1),
            ("5x5, stride 3, padding 2", (1, 1, 12, 11), 2, 5, 3, 2)):
        w = rng.standard_normal((out, x_shape[1], k, k))
        dy = rng.standard_normal(conv2d(np.zeros(x_shape), w, None, stride, padding).shape)
        cases.append((name, (dy, w, x_shape, stride, padding)))
    return compare("grad_x_by_convolution", yours, conv2d_grad_x, cases, ("dx",), mistakes)


# ---- 00: the whole picture ----

def check_roi_levels(yours):
    """roi_levels(boxes (R, 4), size) -> (R,): the pyramid level of each RoI, 2 to 5; side `size` belongs to level 4."""
    def right(boxes, size, side=np.sqrt, to_integer=np.floor, log=np.log2, low=2, high=5):
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        return np.clip(to_integer(4 + log(side(area) / size)), low, high).astype(int)

    mistakes = [
        (lambda b, s: right(b, s, low=-np.inf, high=np.inf), "the RoI heads have P2 to P5 only: limit the level with np.clip."),
        (lambda b, s: right(b, s, low=-np.inf), "it can be smaller than 2: limit it on both sides."),
        (lambda b, s: right(b, s, high=np.inf), "it can be larger than 5: limit it on both sides."),
        (lambda b, s: right(b, s, high=6), "P6 is for the RPN alone: the largest level is 5."),
        (lambda b, s: right(b, s, to_integer=np.round), "it goes to the nearest level. The formula rounds down: np.floor."),
        (lambda b, s: right(b, s, to_integer=lambda k: k), "it is not rounded down to a whole level."),
        (lambda b, s: right(b, s, side=lambda area: area), "the square root is missing: sqrt(w h) is a length."),
        (lambda b, s: right(b, s, log=np.log), "np.log is the natural logarithm. Levels differ by a factor of 2: np.log2."),
        (lambda b, s: right(b, s) - 2, "it counts from 0. Here a level has its name: 2 for P2."),
        (lambda b, s: right(b, 112), "size has no effect: it is the side that belongs to level 4, not always 112."),
    ]
    rng = np.random.default_rng(6)
    cases = []
    for name, size in (("the small model, 112", 112.0), ("the paper's model, 224", 224.0)):
        middle, half = rng.uniform(100, 300, (40, 2)), 4 * 2 ** rng.uniform(0, 9, (40, 2))
        cases.append((name, (np.concatenate([middle - half, middle + half], axis=1), size)))
    return compare("roi_levels", yours, right, cases, ("levels",), mistakes)


def check_deltas_to(yours):
    """deltas_to(boxes (n, 4), anchors (n, 4)) -> (n, 4): the deltas that move each anchor onto its box."""
    def parts(boxes, corner):
        sides = boxes[:, 2:] - boxes[:, :2]
        return boxes[:, :2] + (0 if corner else sides / 2), sides

    def right(boxes, anchors, corner=False, unit=lambda sides, anchor: anchor, log=np.log):
        place, sides = parts(boxes, corner)
        anchor_place, anchor_sides = parts(anchors, corner)
        return np.concatenate([(place - anchor_place) / unit(sides, anchor_sides), log(sides / anchor_sides)], axis=1)

    mistakes = [
        (lambda b, a: right(b, a, corner=True), "x and y are the centres of the boxes, not their corners x1 and y1."),
        (lambda b, a: right(b, a, unit=lambda sides, anchor: 1),
         "dx and dy are relative: divide by the width and height of the anchor."),
        (lambda b, a: right(b, a, unit=lambda sides, anchor: sides),
         "dx and dy are divided by the box's size. The anchor's is meant."),
        (lambda b, a: right(b, a, unit=lambda sides, anchor: anchor[:, ::-1]), "dx belongs to the width and dy to the height."),
        (lambda b, a: right(b, a, log=lambda ratio: ratio), "the logarithm is missing: w = w_a exp(dw)."),
        (lambda b, a: right(b, a, log=np.log2), "the inverse of exp is np.log, not np.log2."),
        (lambda b, a: right(b, a, log=lambda ratio: -np.log(ratio)),
         "dw and dh have the wrong sign: a larger box has positive ones."),
        (lambda b, a: right(a, b), "it is the other way round: the anchor is where the way begins."),
        (lambda b, a: right(b, a)[:, [0, 2, 1, 3]], "the order of the four is dx, dy, dw, dh."),
    ]
    rng = np.random.default_rng(7)
    cases = []
    for name, count in (("1 box", 1), ("5 boxes", 5)):
        boxes, anchors = (np.concatenate([p, p + rng.uniform(5, 60, (count, 2))], axis=1)
                          for p in rng.uniform(0, 60, (2, count, 2)))
        cases.append((name, (boxes, anchors)))
    return compare("deltas_to", yours, right, cases, ("deltas",), mistakes)


def check_best_class_map(yours):
    """best_class_map(labels (n,), scores (n,), masks (n, H, W) bool) -> (H, W): the best mask's label at each pixel."""
    def painted(labels, masks, order):
        classes = np.zeros(masks.shape[1:], int)
        for i in order:
            classes[masks[i]] = labels[i]
        return classes

    def right(labels, scores, masks):
        return painted(labels, masks, np.argsort(scores))

    mistakes = [
        (lambda l, s, m: (l[:, None, None] * m).max(axis=0, initial=0), "where masks overlap it takes the larger label."),
        (lambda l, s, m: (l[:, None, None] * m).sum(axis=0),
         "where masks overlap it adds the labels: two classes do not make a third."),
        (lambda l, s, m: painted(l, m, np.argsort(-s)), "the worst score wins: what is painted last covers the others."),
        (lambda l, s, m: painted(l, m, range(len(l))),
         "the last instance of the list wins. The list is in any order: sort by score."),
        (lambda l, s, m: painted(l, m, range(len(l))[::-1]),
         "the first instance of the list wins. The list is in any order: sort by score."),
        (lambda l, s, m: painted(np.arange(1, len(l) + 1), m, np.argsort(s)),
         "it holds numbers of instances. Classes are wanted: labels."),
    ]
    rng = np.random.default_rng(8)
    masks = np.zeros((4, 12, 15), bool)
    for mask, y, x in zip(masks, (0, 2, 4, 3), (1, 4, 2, 6)):
        mask[y:y + 7, x:x + 8] = True
    cases = [("4 instances that overlap", (np.array([3, 5, 1, 3]), np.array([0.6, 0.9, 0.95, 0.3]), masks)),
             ("10 random masks", (rng.integers(1, 7, 10), rng.permutation(10) / 10, rng.random((10, 8, 9)) < 0.3)),
             ("no instance", (np.zeros(0, int), np.zeros(0), np.zeros((0, 8, 9), bool)))]
    return compare("best_class_map", yours, right, cases, ("map",), mistakes)
