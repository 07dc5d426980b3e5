"""The look of the course's figures, and the picture of where a notebook is in the network."""

import numpy as np

# Okabe and Ito's colours, which colour-blind readers can tell apart. Forward and backward keep theirs in every figure.
FORWARD, BACKWARD, GREEN, PINK, YELLOW = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"


def style():
    """The look of the course's figures: colours for everybody, sizes that suit a page."""
    import matplotlib.pyplot as plt
    plt.rcParams.update({
        "figure.dpi": 84, "figure.constrained_layout.use": True, "font.size": 10, "axes.titlesize": 10,
        "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False, "image.interpolation": "nearest",
        "axes.prop_cycle": plt.cycler(color=[FORWARD, BACKWARD, GREEN, PINK, YELLOW]),
    })


def show_matrix(axes, matrix, title, xlabel="", ylabel="", text="{:.2f}", limit=None):
    """A small matrix as a picture with its numbers: purple is negative, orange positive.

    `text` formats a number; `limit` is the size that gets the full colour (None: the matrix's own largest).
    """
    matrix = np.atleast_2d(matrix)
    limit = limit or np.abs(matrix).max() or 1
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
    "mask_head": (6, 0.2, "mask head"), "losses": (7.4, 1.6, "five\nlosses"), "anchors": (2.2, 1.75, "anchors"),
}
FLOWS = [("image", "resnet"), ("resnet", "fpn"), ("fpn", "rpn"), ("fpn", "roi_align"), ("roi_align", "box_head"),
         ("roi_align", "mask_head"), ("rpn", "losses"), ("box_head", "losses"), ("mask_head", "losses")]


def where_we_are(*here, backward=False):
    """Draw a Mask R-CNN with the parts `here` (names of PARTS) filled; `backward` adds the gradients' way back.

    The anchors, which are constants, are drawn only where they are among `here`.
    """
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(figsize=(8, 2.2))
    axes.set(xlim=(-0.5, 7.9), ylim=(0, 2))
    axes.axis("off")
    boxes = {}
    for name, (x, y, text) in PARTS.items():
        if name == "anchors" and name not in here:
            continue
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
    if "anchors" in here:
        arrow("anchors", "rpn", FORWARD, ":")
