"""Exercises of notebook 19, your own data, fine-tuned; and its picture of the way there."""

import numpy as np

from .checks import compare
from .figures import BACKWARD, FORWARD

WAY = {     # place in the figure, text
    "files": (0.1, 1.6, "your photos,\nyour annotations"), "source": (2.0, 1.6, "source"), "check": (2.0, 0.35, "check,\ncontact sheet"),
    "augment": (3.4, 1.6, "augmentation"), "loader": (4.75, 1.6, "loader"), "weights": (3.7, 0.35, "weights from\nelsewhere"),
    "start": (5.15, 0.35, "start,\nfreeze"), "train": (6.25, 1.0, "training"), "checkpoint": (7.6, 1.75, "checkpoint"),
    "best": (7.6, 0.9, "best weights"), "measure": (7.6, 0.15, "AP, hits\nand misses"),
}
STEPS = [("files", "source"), ("source", "augment"), ("augment", "loader"), ("loader", "train"), ("weights", "start"), ("start", "train"),
         ("train", "checkpoint"), ("train", "best"), ("best", "measure")]
BACK = [("check", "files"), ("checkpoint", "train")]     # mend the files; resume


def draw_way():
    """The way from annotated photos to a fine-tuned model, into a new pyplot figure."""
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(figsize=(8.4, 2.3))
    axes.set(xlim=(-0.8, 8.4), ylim=(-0.2, 2.1))
    axes.axis("off")
    boxes = {name: axes.text(x, y, text, ha="center", va="center", fontsize=9,
                             bbox=dict(boxstyle="round,pad=0.45", facecolor="#eeeeee", edgecolor="#808080"))
             for name, (x, y, text) in WAY.items()}
    figure.draw_without_rendering()     # the arrows end at the boxes' edges, which exist only now

    def arrow(a, b, colour, style="-", bend=0.0):
        axes.annotate("", WAY[b][:2], WAY[a][:2], arrowprops=dict(
            arrowstyle="-|>", color=colour, linestyle=style, linewidth=1.3, shrinkA=2, shrinkB=2, patchA=boxes[a].get_bbox_patch(),
            patchB=boxes[b].get_bbox_patch(), connectionstyle=f"arc3,rad={bend}"))

    for a, b in [*STEPS, ("source", "check")]:
        arrow(a, b, FORWARD)
    for a, b in BACK:
        arrow(a, b, BACKWARD, "--", 0.25)
    axes.text(0.75, 0.75, "mend", color=BACKWARD, fontsize=8, ha="center")
    axes.text(6.55, 1.72, "resume", color=BACKWARD, fontsize=8, ha="center")


def check_flip_target(yours):
    """flip_target(image (H, W, 3), boxes (n, 4), masks (n, H, W)) -> all three, left and right exchanged."""
    def moved(boxes, width, swap=True):
        x1, y1, x2, y2 = boxes.T
        return np.stack([width - x2, y1, width - x1, y2] if swap else [width - x1, y1, width - x2, y2], axis=1)

    def right(image, boxes, masks):
        return image[:, ::-1], moved(boxes, image.shape[1]), masks[:, :, ::-1]

    def upside_down(image, boxes, masks):
        x1, y1, x2, y2 = boxes.T
        height = image.shape[0]
        return image[::-1], np.stack([x1, height - y2, x2, height - y1], axis=1), masks[:, ::-1]

    mistakes = [(wrong, text) for wrong, text in (
        (upside_down, "top and bottom are exchanged. Left and right are columns: axis 1 of the image, axis 2 of the masks."),
        (lambda i, b, m: (i, b, m),
         "it is as it was. Whatever lies in the image moves with it: image, boxes and masks."),
        (lambda i, b, m: (i[:, :, ::-1], moved(b, i.shape[1], swap=False), m[::-1]),
         "the last axis of the image are its colours; a box's new x1 comes from its old x2, so that x1 < x2 stays; and the first axis of "
         "the masks are the objects, whose order stays."),
        (lambda i, b, m: (None, moved(b, i.shape[1] - 1), None),
         "the boxes are one pixel too far to the left. Column c covers c to c + 1, so the right edge of the image is at W, not at W - 1."),
        (lambda i, b, m: (None, moved(b, i.shape[0]), None),
         "the height stands where the width should. image.shape is (H, W, 3)."),
        (lambda i, b, m: (i[::-1, ::-1], None, m[:, ::-1, ::-1]), "both axes are turned over; that is half a turn. Only the columns."))]
    rng = np.random.default_rng(19)
    cases = []
    for name, height, width, count in (("two objects", 4, 7, 2), ("one object", 6, 5, 1), ("none", 3, 4, 0)):
        x, y = (np.sort(rng.uniform(0, side, (count, 2)), axis=1) for side in (width, height))
        boxes = np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], axis=1)
        cases.append((name, (rng.integers(0, 256, (height, width, 3), np.uint8), boxes,
                             rng.integers(0, 2, (count, height, width), np.uint8))))
    return compare("flip_target", yours, right, cases, ("image", "boxes", "masks"), mistakes)


def check_labels_of_ids(yours):
    """labels_of_ids(ids (n,) int, categories (K - 1,) int) -> (n,) int: labels 1 to K - 1, by ascending category id."""
    def right(ids, categories, first=1):
        return np.searchsorted(np.sort(categories), ids) + first

    def by_place(ids, categories):
        place = {c: k + 1 for k, c in enumerate(categories.tolist())}
        return np.array([place[i] for i in ids.tolist()], int)

    mistakes = [
        (lambda ids, c: right(ids, c, first=0), "the labels begin at 0, and 0 is the background. The first class is 1."),
        (lambda ids, c: ids, "these are the ids themselves. With gaps, the largest id is more than the number of classes."),
        (lambda ids, c: ids - c.min() + 1, "the ids are moved, but their gaps are still there."),
        (by_place, "the labels follow the order in the file. Two files of the same set may list their categories differently; the ids are "
                   "what they share. By ascending id."),
        (lambda ids, c: np.searchsorted(np.unique(ids), ids) + 1,
         "only the ids that occur among the objects are counted. Then the same class has another label in another image: count all of "
         "`categories`."),
        (lambda ids, c: np.searchsorted(c, ids) + 1, "searchsorted needs a sorted list, and `categories` is not."),
    ]
    cases = [("ids 3, 7 and 12, all there", (np.array([12, 3, 7, 3, 12]), np.array([7, 3, 12]))),
             ("an image with some of the classes", (np.array([12, 3]), np.array([7, 12, 3]))),
             ("another file", (np.array([90, 5, 18]), np.array([90, 1, 18, 5]))),
             ("an image without objects", (np.zeros(0, int), np.array([2, 1])))]
    return compare("labels_of_ids", yours, right, cases, ("labels",), mistakes)


def check_crop_target(yours):
    """crop_target(boxes (n, 4), masks (n, H, W), window x1 y1 x2 y2) -> boxes (k, 4), masks (k, h, w) of what the window still shows."""
    def right(boxes, masks, window, move=True, clip=True, tight="cut", last=1, drop="mask"):
        left, top, stop_x, stop_y = window
        size = np.array([stop_x - left, stop_y - top] * 2)
        moved = boxes - (np.array([left, top] * 2) if move else 0)
        new = np.clip(moved, 0, size) if clip else moved.copy()
        masks = masks[:, top:stop_y, left:stop_x]
        for i in range(len(boxes)):
            if masks[i].any() and (tight == "all" or tight == "cut" and (new[i] != moved[i]).any()):
                rows, columns = np.flatnonzero(masks[i].any(axis=1)), np.flatnonzero(masks[i].any(axis=0))
                new[i] = columns[0], rows[0], columns[-1] + last, rows[-1] + last
        keep = {"mask": masks.any(axis=(1, 2)), "box": (new[:, 2:] > new[:, :2]).all(axis=1), "none": np.ones(len(boxes), bool)}[drop]
        return new[keep], masks[keep]

    def other(**changes):
        return lambda *a: right(*a, **changes)

    def boxes_only(**changes):
        return lambda *a: (right(*a, **changes)[0], None)

    def uncropped(boxes, masks, window):
        return None, masks

    def uncropped_kept(boxes, masks, window):
        return None, masks[right(boxes, masks, window, drop="none")[1].any(axis=(1, 2))]

    mistakes = [
        (boxes_only(clip=False, tight="no"), "the boxes moved, but are not cut: they reach out of the window. Around which pixels should "
                                             "the box of a cut object be?"),
        (boxes_only(clip=False, tight="no", drop="none"), "the boxes are not cut, and objects of which nothing is left are still there."),
        (boxes_only(move=False, tight="no"), "the boxes are cut, but stay where they were: the window's corner is the new origin."),
        (boxes_only(move=False, clip=False, tight="no"), "the boxes are as they were. The window's corner is the new origin."),
        (boxes_only(tight="no"), "the boxes are cut at the window's edge, as if every object filled its box. Of a cut object other sides may "
                                 "change, too: look at what its mask still shows."),
        (boxes_only(tight="no", drop="box"), "a box may reach into the window while no pixel of the object does. The mask says whether "
                                             "anything is left."),
        (other(drop="none"), "objects of which nothing is left are still there. A box without an object teaches the network nonsense."),
        (other(drop="box"), "a box may reach into the window while no pixel of the object does. The mask says whether anything is left."),
        (boxes_only(tight="all"), "objects wholly inside got a new box, too. Theirs was right, to a fraction of a pixel: only those that are "
                                  "cut need a new one."),
        (boxes_only(last=0), "x2 and y2 are one too small: a box ends behind its last pixel, at last + 1."),
        (uncropped, "the masks are not cut."), (uncropped_kept, "the masks are not cut."),
    ]
    masks = np.zeros((4, 9, 10), np.uint8)
    masks[0, 2:5, 3:6] = 1                                # wholly inside
    masks[1, 4:9, 5:7] = 1                                # an L that loses its foot and gets narrower
    masks[1, 7:9, 5:10] = 1
    masks[2, 0:2, 0:9] = 1                                # only its box would reach inside: the arm of an angle
    masks[2, 0:8, 0:1] = 1
    masks[3, 0:1, 8:10] = 1                               # wholly outside
    boxes = np.array([[2.75, 1.5, 6.25, 5.5], [5, 4, 10, 9], [0, 0, 9, 8], [8, 0, 10, 1]], float)
    window = (1, 1, 8, 7)
    cases = [("one inside, one cut", (boxes[:2], masks[:2], window)), ("one wholly outside", (boxes[[0, 3]], masks[[0, 3]], window)),
             ("an angle whose arms stay outside", (boxes[1:3], masks[1:3], (1, 2, 8, 7))), ("nothing is cut away", (boxes, masks, (0, 0, 10, 9))),
             ("nothing is left", (boxes[3:], masks[3:], window))]
    return compare("crop_target", yours, right, cases, ("boxes", "masks"), mistakes)
