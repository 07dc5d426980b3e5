"""Exercises of notebook 11, five losses and one backward pass; and its drawing of the gradient on its way back."""

import numpy as np

from ..ops.conv import conv2d_backward, conv2d_forward
from .checks import compare
from .figures import BACKWARD

PLACES = {     # stage of a trace: column and row in the drawing, text. Losses on the right, the image on the left
    "losses.loss_objectness": (6, 0, "objectness\nloss"), "losses.loss_rpn_box_reg": (6, 1, "RPN box\nloss"),
    "losses.loss_classifier": (6, 2, "class\nloss"), "losses.loss_box_reg": (6, 3, "box\nloss"),
    "losses.loss_mask": (6, 4, "mask\nloss"), "rpn.objectness": (5, 0, "logits"), "rpn.deltas": (5, 1, "deltas"),
    "roi_heads.class_logits": (5, 2, "class logits"), "roi_heads.box_deltas": (5, 3, "deltas"),
    "roi_heads.mask_logits": (5, 4, "mask logits"), "rpn head": (4, 0.5, "RPN head"),
    "roi_heads.box_hidden": (4, 2.5, "box hidden"), "roi_heads.mask_hidden": (4, 4, "mask hidden"),
    "roi_heads.box_features": (3, 2.5, "7 x 7"), "roi_heads.mask_features": (3, 4, "14 x 14"),
    "fpn.p6": (2, -0.5, "P6"), "fpn.p5": (2, 0.55, "P5"), "fpn.p4": (2, 1.6, "P4"), "fpn.p3": (2, 2.65, "P3"),
    "fpn.p2": (2, 3.7, "P2"), "backbone.layer4": (1, 0.55, "C5"), "backbone.layer3": (1, 1.6, "C4"),
    "backbone.layer2": (1, 2.65, "C3"), "backbone.layer1": (1, 3.7, "C2"), "backbone.stem": (0, 3.7, "stem"),
}
LINKS = [("losses.loss_objectness", "rpn.objectness"), ("losses.loss_rpn_box_reg", "rpn.deltas"),
         ("losses.loss_classifier", "roi_heads.class_logits"), ("losses.loss_box_reg", "roi_heads.box_deltas"),
         ("losses.loss_mask", "roi_heads.mask_logits"), ("roi_heads.class_logits", "roi_heads.box_hidden"),
         ("roi_heads.box_deltas", "roi_heads.box_hidden"), ("roi_heads.mask_logits", "roi_heads.mask_hidden"),
         ("roi_heads.box_hidden", "roi_heads.box_features"), ("roi_heads.mask_hidden", "roi_heads.mask_features"),
         ("fpn.p6", "fpn.p5"), ("rpn.objectness", "rpn head"), ("rpn.deltas", "rpn head"),
         ("backbone.layer4", "backbone.layer3"), ("backbone.layer3", "backbone.layer2"),
         ("backbone.layer2", "backbone.layer1"), ("backbone.layer1", "backbone.stem")]
LINKS += [("rpn head", f"fpn.p{k}") for k in range(2, 7)]
LINKS += [(f"roi_heads.{kind}_features", f"fpn.p{k}") for k in range(2, 6) for kind in ("box", "mask")]
LINKS += [(f"fpn.p{k + 1}", f"backbone.layer{k}") for k in range(1, 5)]
TOP_DOWN = [(f"fpn.p{k}", f"backbone.layer{j}") for k in range(2, 5) for j in range(k, 5)]     # P2 reaches C3, C4, C5


def draw_gradients(gradients):
    """The stages of a Mask R-CNN with a pyramid, each with the norm of its gradient: darker is larger, 0 is white.

    gradients: trace.grad after `backward`. The dotted lines are the pyramid's top-down path.
    """
    import matplotlib.pyplot as plt
    norms = {stage: float(np.linalg.norm(gradients[stage])) for stage in PLACES if stage in gradients}
    low, high = np.log10(min(n for n in norms.values() if n)) - 0.5, np.log10(max(norms.values())) + 0.3
    _, axes = plt.subplots(figsize=(9.2, 4.5))
    for a, b in LINKS + TOP_DOWN:
        (xa, ya, _), (xb, yb, _) = PLACES[a], PLACES[b]
        axes.plot([xa, xb], [ya, yb], ":" if (a, b) in TOP_DOWN else "-", color=BACKWARD, linewidth=0.8, alpha=0.6,
                  zorder=1)
    for stage, (x, y, text) in PLACES.items():
        norm = norms.get(stage)     # none is recorded inside the RPN head
        shade = 0 if not norm else np.clip((np.log10(norm) - low) / (high - low), 0, 1)
        number = "" if norm is None else f"\n{norm:.0e}" if norm else "\n0"
        axes.text(x, y, text + number, ha="center", va="center", fontsize=8, zorder=2, linespacing=1.15,
                  color="white" if shade > 0.6 else "black", bbox=dict(
                      boxstyle="round,pad=0.35", edgecolor="#808080",
                      facecolor="#eeeeee" if norm is None else plt.cm.Oranges(shade)))
    axes.set(xlim=(-0.45, 6.5), ylim=(4.6, -1.0),
             title="norm of the gradient at every stage; it flows from right to left")
    axes.axis("off")


def check_rules_backward(yours):
    """rules_backward(dy (C, k + n), (s, w, index)) -> dp, dq, dw of the graph in exercise 1 of notebook 11."""
    def right(dy, cache, repeat=True, gather=1, scale=1, split="first", half=1.0):
        s, w, index = cache
        k, n = len(index), s.shape[1]
        da, db = (dy[:, :k], dy[:, k:]) if split == "first" else (dy[:, n:], dy[:, :n])
        ds = scale * db * w
        scattered = np.zeros_like(s)
        if repeat:
            np.add.at(scattered, (slice(None), index), da)
        else:
            scattered[:, index] = da
        ds = ds + gather * scattered
        return half * ds, half * ds, np.sum(db * s, axis=1, keepdims=True)

    mistakes = [
        (lambda dy, c: right(dy, c, repeat=False),
         "a column that was picked twice gets one gradient only. ds[:, index] += da writes each place once: "
         "np.add.at adds them all."),
        (lambda dy, c: right(dy, c, gather=0), "the path through a is missing: s feeds a and b (fan-out -> sum)."),
        (lambda dy, c: right(dy, c, scale=0), "the path through b is missing: s feeds a and b (fan-out -> sum)."),
        (lambda dy, c: right(dy, c, split="last"),
         "dy is cut at the wrong place: its first k columns belong to a, the other n to b."),
        (lambda dy, c: right(dy, c, half=0.5),
         "the gradient of the sum is shared out between p and q. Both get all of it (add -> the same to both)."),
        (lambda dy, c: (right(dy, (c[0], np.ones_like(c[1]), c[2]))[0],) * 2 + (None,),
         "on the way from b to s the factor w is missing."),
        (lambda dy, c: (None, None, np.mean(dy[:, len(c[2]):] * c[0], axis=1, keepdims=True)),
         "w served every column: their gradients add up. A mean is too small."),
    ]
    rng = np.random.default_rng(61)
    cases = []
    for name, c, n, index in (("no column repeats", 2, 4, [3, 0]), ("columns repeat", 3, 4, [1, 1, 2, 1]),
                              ("more picked than there are", 1, 2, [0, 1, 0, 1, 1])):
        s, w = rng.standard_normal((c, n)), rng.standard_normal((c, 1))
        cases.append((name, (rng.standard_normal((c, len(index) + n)), (s, w, np.array(index)))))
    return compare("rules_backward", yours, right, cases, ("dp", "dq", "dw"), mistakes)


def check_shares(yours):
    """shares(gradients (L, ...)) -> (L,): the part of each along their sum, equation (2) of notebook 11."""
    def right(gradients):
        flat = gradients.reshape(len(gradients), -1)
        total = flat.sum(axis=0)
        size = total @ total
        return np.zeros(len(flat)) if size == 0 else flat @ total / size

    def norms(gradients):
        return np.linalg.norm(gradients.reshape(len(gradients), -1), axis=1)

    def size(gradients):
        total = gradients.sum(axis=0)
        return np.sum(total * total)

    mistakes = [
        (lambda g: norms(g) / norms(g).sum(),
         "those are shares of the norms. They do not see that two gradients may cancel: take inner products with "
         "the sum."),
        (lambda g: norms(g) / np.sqrt(size(g)),
         "norm over norm: these do not add up to 1. Take the part *along* the sum."),
        (lambda g: norms(g) ** 2 / (norms(g) ** 2).sum(),
         "those are shares of the squared norms, <g_l, g_l>. The second factor should be the sum of all, g."),
        (lambda g: norms(g) ** 2 / size(g),
         "that is <g_l, g_l> / <g, g>. The second factor above should be the sum of all, g."),
        (lambda g: np.abs(right(g)), "the sign is lost: a share may be negative, when the others outvote a loss."),
        (lambda g: right(g) * size(g), "not divided by <g, g>: the shares should add up to 1."),
        (lambda g: right(g) * np.sqrt(size(g)), "divided by the norm of g. Its square is meant, <g, g>."),
    ]
    rng = np.random.default_rng(62)
    against = rng.standard_normal((3, 2, 4))
    against[2] = -0.6 * against[0]
    cancel = rng.standard_normal((2, 5))
    cancel[1] = -cancel[0]
    return compare("shares", yours, right, [("5 gradients of shape (3, 4)", (rng.standard_normal((5, 3, 4)),)),
                                            ("two that pull against each other", (against,)),
                                            ("a sum of 0", (cancel,))], ("shares",), mistakes)


def two_level_forward(c4, c5, w4, w5, w):
    """The pyramid of exercise 3: -> (P4, P5, P6), cache."""
    i5, cache5 = conv2d_forward(c5, w5)
    l4, cache4 = conv2d_forward(c4, w4)
    i4 = l4 + i5.repeat(2, axis=2).repeat(2, axis=3)
    p5, out5 = conv2d_forward(i5, w, None, 1, 1)
    p4, out4 = conv2d_forward(i4, w, None, 1, 1)
    return (p4, p5, p5[:, :, ::2, ::2]), (cache4, cache5, out4, out5)


def check_two_level_backward(yours):
    """two_level_backward(dy, cache) -> dc4, dc5, dw4, dw5, dw of the pyramid in exercise 3 of notebook 11."""
    def right(dy, cache, down="sum", p6=1, shared="both"):
        dp4, dp5, dp6 = dy
        cache4, cache5, out4, out5 = cache
        dp5 = dp5.copy()
        if p6 == "overwrite":
            dp5[:, :, ::2, ::2] = dp6
        else:
            dp5[:, :, ::2, ::2] += p6 * dp6
        di4, dw_4, _ = conv2d_backward(dp4, out4)
        di5, dw_5, _ = conv2d_backward(dp5, out5)
        n, c, h, w = di5.shape
        copies = di4.reshape(n, c, h, 2, w, 2)
        di5 = di5 + {"sum": copies.sum(axis=(3, 5)), "one": copies[:, :, :, 0, :, 0],
                     "mean": copies.mean(axis=(3, 5)), "none": 0,
                     "tiles": di4.reshape(n, c, 2, h, 2, w).sum(axis=(2, 4))}[down]
        dc4, dw4, _ = conv2d_backward(di4, cache4)
        dc5, dw5, _ = conv2d_backward(di5, cache5)
        return dc4, dc5, dw4, dw5, dw_4 + dw_5 if shared == "both" else dw_4 if shared == "4" else dw_5

    mistakes = [
        (lambda dy, c: right(dy, c, down="one"),
         "the bug is still there: of the four copies that up made of a pixel, one is asked. All four gradients add "
         "up (fan-out -> sum)."),
        (lambda dy, c: right(dy, c, down="mean"),
         "the four copies' gradients are averaged. They add up: sum, not mean."),
        (lambda dy, c: right(dy, c, down="none"),
         "the top-down path is missing: i5 feeds P5 and, enlarged, i4."),
        (lambda dy, c: right(dy, c, down="tiles"),
         "the reshape takes the wrong pixels together: copies are neighbours, so (N, C, h, 2, w, 2)."),
        (lambda dy, c: right(dy, c, p6="overwrite"),
         "P6's gradient overwrites P5's: P5 is an output itself (slice -> scatter-*add*)."),
        (lambda dy, c: right(dy, c, p6=0), "P6's gradient is missing: it was cut out of P5 (slice -> scatter-add)."),
        (lambda dy, c: right(dy, c, shared="4"),
         "w served both levels: the gradients of both add up. P5's is missing."),
        (lambda dy, c: right(dy, c, shared="5"),
         "w served both levels: the gradients of both add up. P4's is missing."),
    ]
    rng = np.random.default_rng(63)
    cases = []
    for name, n, d, e, c, h, w in (("one image, P5 of 2 x 3", 1, 2, 3, 4, 2, 3),
                                   ("two images, P5 of 3 x 2", 2, 1, 2, 2, 3, 2)):
        tensors = [rng.standard_normal(s) for s in ((n, d, 2 * h, 2 * w), (n, e, h, w), (c, d, 1, 1), (c, e, 1, 1),
                                                    (c, c, 3, 3))]
        y, cache = two_level_forward(*tensors)
        cases.append((name, (tuple(rng.standard_normal(out.shape) for out in y), cache)))
    return compare("two_level_backward", yours, right, cases, ("dc4", "dc5", "dw4", "dw5", "dw"), mistakes)
