"""What every exercise is checked with.

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
        if problem.startswith("unsolved"):
            return Result(exercise, False, f"{exercise}: not solved yet. Fill in the function, then run this cell again."
                          + problem.removeprefix("unsolved"))
        if problem:
            return Result(exercise, False, f"{exercise}: not right yet (case: {name}).\n{problem}")
    return Result(exercise, True, f"{exercise}: passed, all {len(cases)} cases.")


def _try(yours, reference, args, outputs, mistakes):
    """What is wrong in one case: "" for nothing, "unsolved" and perhaps where for a stub."""
    given = copy.deepcopy(args)
    try:
        got = yours(*given)
    except NotImplementedError:
        return "unsolved"
    except Exception as error:     # whatever the student's code raises is shown, not raised
        line = _line_of(error, yours)
        if "ellipsis" in str(error):
            return f"unsolved\n  A ... is left. It is first needed in the line   {line}"
        return f"  It raises {type(error).__name__}: {error}" + (f"\n  in the line   {line}" if line else "")
    if isinstance(got, list) and len(outputs) == 1 and len(got) and not np.ndim(got[0]):
        got = (got,)               # a list of numbers is as good as an array
    got = tuple(got) if isinstance(got, (tuple, list)) else (got,)
    if all(value is None or value is ... for value in got):
        return "unsolved"
    if len(got) != len(outputs):
        return f"  It returns {len(got)} and should return {len(outputs)}: {', '.join(outputs)}."
    if any(a.tobytes() != b.tobytes() for a, b in zip(_arrays(args), _arrays(given))):
        return ("  It writes into one of its arguments, which others may still need: a dy, for one, goes to every branch.\n"
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
        if _agree(got.T, want):
            return "it is transposed."
        if got.size == want.size and _agree(got.reshape(want.shape), want):
            return f"the numbers are right, in another shape: reshape to {want.shape}."
        return "write down the shape of every factor and of the result."
    if not np.isfinite(got).all():
        return "a number is not finite: look for an exp that overflows, a log(0), a division by 0."
    factor = np.sum(got * want) / np.sum(want * want)
    telling = got.size > 1 or np.isfinite(factor) and _simple(factor)     # one number alone is always some multiple of another
    if factor and telling and _agree(got, factor * want):
        return "the sign is wrong." if _agree(got, -want) else f"it is {factor:.4g} times the right answer."
    bad = np.abs(got - want) > TOLERANCE * np.abs(want).max()
    if got.ndim >= 2 and min(got.shape[-2:]) > 2 and not bad[..., 1:-1, 1:-1].any():
        return "only the border is wrong: look at the padding and at the first and last index."
    if not got[bad].any():
        return "the wrong numbers are all 0: something never arrives there."
    if not got.ndim:
        return "none of the usual mistakes. Work this one case out by hand, and print each step of yours beside it."
    return "none of the usual mistakes. Try the smallest input you can think of, and compare number by number."


def _simple(factor):
    """Is it a small whole number, or one over one?"""
    return any(abs(f - round(f)) < 1e-9 and 1 <= abs(round(f)) <= 16 for f in (factor, 1 / factor if factor else 0.0))


def _line_of(error, function):
    """The line of the student's function that an exception came from, "" if it is not to be found."""
    code = getattr(function, "__code__", None)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if code and f.filename == code.co_filename]
    return linecache.getline(frames[-1].filename, frames[-1].lineno).split("  #")[0].strip() if frames else ""


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
