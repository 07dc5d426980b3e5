"""Where do two models part? Run both on one image and compare their traces stage by stage.

    rows = compare_traces(trace_a, trace_b)         a Row a stage, in the order in which the stages ran
    print(format_rows(rows))
    first_difference(rows)                          the Row where to look, or None

Up to the RPN's outputs every stage is an array of fixed shape. From there on the network decides: which boxes it keeps, and in which
order. Rounding alone can swap two boxes of nearly the same score, and every later array has a row a box. So boxes are compared as
sets, each paired with its equal in the other trace, and later rows in pairs.
"""

from typing import NamedTuple

import numpy as np

from .errors import DataError
from .weights.report import frozen_norms

TOLERANCE = 1e-4  # float32 sums in another order differ by about 1e-6 a layer; a wrong number shows as 1e-3 and more

# What has a row a box, by the stage that decides about the boxes. Some are lists with an array an image, the others have all images' rows
# one after the other.
ROWS = {
    "rpn.proposals_before_nms": ("rpn.scores_before_nms",),
    "rpn.proposals": ("rpn.proposal_scores", "rpn.proposal_anchors", "roi_heads.levels", "roi_heads.box_features", "roi_heads.box_hidden",
                      "roi_heads.class_logits", "roi_heads.box_deltas"),
    "detections.boxes": ("detections.labels", "detections.scores", "roi_heads.mask_features", "roi_heads.mask_hidden",
                         "roi_heads.mask_logits", "roi_heads.mask_probabilities"),
}

# Stage -> the beginnings of the names of the parameters between it and the stages before.
FED_BY = {
    "backbone.stem": ("backbone.body.conv1.", "backbone.body.bn1."),
    **{f"backbone.layer{k}": (f"backbone.body.layer{k}.",) for k in (1, 2, 3, 4)},
    **{f"backbone.conv{k}": ("backbone.body.features.",) for k in (1, 2, 3, 4, 5)},  # VGG
    **{f"fpn.p{k}": (*(f"backbone.fpn.inner_blocks.{i}." for i in range(k - 2, 4)), f"backbone.fpn.layer_blocks.{k - 2}.")
       for k in (2, 3, 4, 5)},
    "fpn.p6": ("backbone.fpn.inner_blocks.3.", "backbone.fpn.layer_blocks.3."),
    **{f"rpn.logits.{level}": ("rpn.head.conv.", "rpn.head.cls_logits.") for level in ("p2", "p3", "p4", "p5", "p6", "single")},
    **{f"rpn.deltas.{level}": ("rpn.head.conv.", "rpn.head.bbox_pred.") for level in ("p2", "p3", "p4", "p5", "p6", "single")},
    "roi_heads.box_hidden": ("roi_heads.box_head.",),
    "roi_heads.class_logits": ("roi_heads.box_predictor.cls_score.",),
    "roi_heads.box_deltas": ("roi_heads.box_predictor.bbox_pred.",),
    "roi_heads.mask_hidden": ("roi_heads.mask_head.", "roi_heads.box_head.layer4."),  # the latter in C4, where both heads share it
    "roi_heads.mask_logits": ("roi_heads.mask_predictor.",),
}


class Row(NamedTuple):
    """One stage. error: max|a - b| / max|b|; for integers the share that differs; for boxes infinite if one has no partner.

    parts: is the error above the tolerance? note: what else there is to know.
    """

    name: str
    shape: str
    error: float
    parts: bool
    note: str


def compare_traces(a, b, tolerance=TOLERANCE):
    """Compare two recordings of the stages.

    Parameters
    ----------
    a, b : Trace, or {name: array or list of arrays}
        See nprcnn.trace.NAMES. b is the reference.
    tolerance : float
        A stage parts when its error is above it. Boxes are the same when no coordinate differs by more than tolerance times the
        largest coordinate.

    Returns
    -------
    [Row], one a stage that both have, in a's order

    Raises
    ------
    DataError
        They have no stage in common.
    """
    names = [name for name in a if name in b]
    if not names:
        raise DataError(f"the two recordings have no stage in common: {', '.join(list(a)[:3])} ... and {', '.join(list(b)[:3])} ...")
    rows = []
    pairs_of = {}  # stage with a row a box -> its Pairs
    for name in names:
        if name in ROWS:
            pairs = _pair_boxes(a, b, name, tolerance)
            pairs_of.update(dict.fromkeys(ROWS[name], pairs))
            error, note = pairs.error, pairs.note
        else:
            error, note = _difference(_in_pairs(a[name], b[name], pairs_of.get(name)))
        rows.append(Row(name, shape_text(a[name]), error, not error <= tolerance, note))
    return rows


def first_difference(rows):
    """The first Row whose stage parts, or None."""
    return next((row for row in rows if row.parts), None)


class Pairs(NamedTuple):
    """Which boxes of one decision are the same: for each image the rows of a and, in the same order, those of b."""

    a: list
    b: list
    same: bool    # every box has its partner in the same place
    error: float
    note: str


def _pair_boxes(a, b, name, tolerance):
    boxes_a, boxes_b = _as_list(a[name]), _as_list(b[name])
    if len(boxes_a) != len(boxes_b):
        return Pairs([], [], False, np.inf, f"{len(boxes_a)} images against {len(boxes_b)}")
    scale = max((np.abs(boxes).max(initial=0) for boxes in boxes_b), default=0) or 1.0
    scores = next(other for other in ROWS[name] if "scores" in other)
    rows_a, rows_b, error = [], [], 0.0
    for image, (x, y) in enumerate(zip(boxes_a, boxes_b)):
        tie_break = [_as_list(t[scores])[image] for t in (a, b)] if scores in a and scores in b else [None, None]
        i, j = pair_rows(x, y, tolerance * scale, *tie_break)
        rows_a.append(i)
        rows_b.append(j)
        error = max(error, np.abs(x[i] - y[j]).max(initial=0) / scale)
    only_a = sum(map(len, boxes_a)) - sum(map(len, rows_a))
    only_b = sum(map(len, boxes_b)) - sum(map(len, rows_b))
    same = not (only_a or only_b) and all(np.array_equal(i, j) for i, j in zip(rows_a, rows_b))
    note = f"{only_a} boxes only in A, {only_b} only in B" if only_a or only_b else "" if same else "the same boxes in another order"
    return Pairs(rows_a, rows_b, same, np.inf if only_a or only_b else float(error), note)


def pair_rows(x, y, distance, scores_x=None, scores_y=None):
    """Pair each box of x (n, 4) with an unpaired one of y (m, 4) that is the same: no coordinate differs by more than `distance`.

    Of several such boxes the one with the nearest score is taken (without scores, the nearest box): a box that was clipped to the
    image can be there twice. Returns the rows of x and those of y, (k,) int64 each.
    """
    if x.shape == y.shape and (np.abs(x - y) <= distance).all():
        return np.arange(len(x)), np.arange(len(x))
    i, j, free = [], [], np.ones(len(y), bool)
    for row in range(len(x)):
        gap = np.abs(y - x[row]).max(axis=1, initial=0)
        near = np.flatnonzero(free & (gap <= distance))
        if len(near):
            choice = gap[near] if scores_x is None else np.abs(scores_y[near] - scores_x[row])
            i.append(row)
            j.append(int(near[choice.argmin()]))
            free[j[-1]] = False
    return np.array(i, np.int64), np.array(j, np.int64)


def _in_pairs(x, y, pairs):
    """Lists of the arrays to be compared, and a note."""
    x_list, y_list = _as_list(x), _as_list(y)
    if pairs is None or pairs.same:
        return x_list, y_list, ""
    kept = sum(map(len, pairs.a))
    if kept == 0:
        return [], [], "not compared: no box in common"
    note = f"on the {kept} boxes that both have" if "only" in pairs.note else "in the other's order"
    if isinstance(x, (list, tuple)) and len(x_list) == len(pairs.a) and isinstance(y, (list, tuple)):
        return [v[i] for v, i in zip(x_list, pairs.a)], [v[j] for v, j in zip(y_list, pairs.b)], note
    if len(pairs.a) == 1:  # all images' rows in one array; with one image these are the image's
        return [x_list[0][pairs.a[0]]], [y_list[0][pairs.b[0]]], note
    return [], [], "not compared: which rows belong together is known for one image only"


def _difference(lists):
    """error and note of two lists of arrays."""
    x_list, y_list, note = lists
    if [v.shape for v in x_list] != [v.shape for v in y_list]:
        return np.inf, f"{shape_text(x_list)} in A, {shape_text(y_list)} in B"
    if any(v.dtype.kind in "iub" for v in x_list):
        wrong, count = sum((v != w).sum() for v, w in zip(x_list, y_list)), sum(v.size for v in x_list)
        return (float(wrong / count), f"{wrong} of {count} integers differ") if wrong else (0.0, note)
    return relative_error(np.concatenate([np.ravel(v) for v in x_list] or [np.zeros(0)]),
                          np.concatenate([np.ravel(w) for w in y_list] or [np.zeros(0)])), note


def relative_error(x, y):
    """max|x - y| / max|y| of two arrays of one shape; the plain maximum where y is 0; NaN if there is one."""
    if x.size == 0:
        return 0.0
    difference, scale = np.abs(np.subtract(x, y, dtype=np.float64)).max(), float(np.abs(y).max())
    return float(difference / (scale or 1.0))


def _as_list(value):
    return [np.asarray(v) for v in value] if isinstance(value, (list, tuple)) else [np.asarray(value)]


def shape_text(value):
    """"(1, 48, 32, 32)", or for a list "[(100, 4)]"."""
    shapes = ", ".join(str(tuple(v.shape)) for v in _as_list(value))
    return f"[{shapes}]" if isinstance(value, (list, tuple)) else shapes


def format_rows(rows):
    """The rows as a table, the first that parts marked."""
    first = first_difference(rows)
    names, shapes = max(len(row.name) for row in rows), max(len(row.shape) for row in rows)
    lines = [f"{'stage':<{names}}  {'shape':<{shapes}}  max|a-b| / max|b|"]
    for row in rows:
        mark = "  <== here they part" if row is first else "  *" if row.parts else ""
        lines.append(f"{row.name:<{names}}  {row.shape:<{shapes}}  {row.error:<9.1e}{row.note and '  ' + row.note}{mark}".rstrip())
    return "\n".join(lines)


# ---- parameters ----

def differing_parameters(a, b, stage=None):
    """[(name, error)] of the arrays that differ between two state dicts of the same names, in the order of a.

    stage: only those that feed this stage and no stage before it (see FED_BY).
    """
    found = [(name, relative_error(a[name], b[name])) for name in a if name in b and a[name].shape == b[name].shape
             and not np.array_equal(a[name], b[name])]
    return [(name, error) for name, error in found if stage is None or name.startswith(FED_BY.get(stage, ()))]


def explain(rows, a=None, b=None):
    """What to do about the rows, in a few sentences. a, b: the models, if there are two."""
    first = first_difference(rows)
    if first is None:
        worst = max(rows, key=lambda row: row.error)
        return f"All {len(rows)} stages agree; the largest error is {worst.error:.1e}, at {worst.name}."
    k = rows.index(first)
    lines = [f"They part at {first.name}; the {k} stages before it agree." if k else f"They part at the first stage, {first.name}."]
    if b is None:
        return lines[0]
    feeding = differing_parameters(a.state_dict(), b.state_dict(), first.name)
    for name, error in feeding[:8]:
        lines.append(f"  {name} differs, max|a-b| / max|b| = {error:.1e}")
    if len(feeding) > 8:
        lines.append(f"  and {len(feeding) - 8} more of the parameters between it and the stage before")
    if not feeding:
        lines.append("  No parameter that feeds it differs: the difference is in a setting or in the code.")
        eps = [sorted({norm.eps for norm in frozen_norms(model)}) for model in (a, b)]
        if eps[0] != eps[1]:
            lines.append(f"  FrozenBatchNorm's eps is {eps[0]} in A and {eps[1]} in B: two releases of torchvision want 0, which a copy of "
                         "such a file under another name does not tell.")
    return "\n".join(lines)
