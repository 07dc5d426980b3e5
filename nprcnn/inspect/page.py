"""The page of `nprcnn inspect`: one file, which needs no network and no library."""

import html
import json
import re
from pathlib import Path

import numpy as np

from ..data.images import as_image, write_whole
from ..trace import Trace
from . import forward as forward_half
from .arrays import Arrays
from .backward import backward
from .forward import forward

PAGE = Path(__file__).parent / "page"
SCRIPTS = ("draw.js", "crops.js", "stages.js", "gradients.js", "page.js")


def page(model, image, target=None, title="an image", about="", score=0.5):
    """The page as text.

    Parameters
    ----------
    model : MaskRCNN
    image : (H, W, 3) uint8, or float in 0..1
    target : dict, optional
        "boxes", "labels" and "masks" of the image, as for MaskRCNN.losses: with it the page shows the gradients, too.
    title, about : str
        What the image is, and what the model is.
    score : float
        Where the slider of scores stands at first.
    """
    image = as_image(image)
    trace, arrays = Trace(), Arrays()
    result = model.predict(image, trace=trace)
    stages = forward(model, image, target, trace, result, arrays)
    trainable = target is not None and len(target["boxes"]) > 0
    stages.update(title=title, about=about, score=score,
                  backward=backward(model, image, target, np.random.default_rng(0), arrays) if trainable else None)
    stages["notes"] = notes(stages)
    parts = {"TITLE": html.escape(title), "STYLE": read("page.css"), "SCRIPT": "\n".join(map(read, SCRIPTS)),
             # "</script>" in a name would end the element
             "STAGES": json.dumps(stages, separators=(",", ":")).replace("</", "<\\/"), "ARRAYS": arrays.text()}
    return re.sub("@(TITLE|STYLE|SCRIPT|STAGES|ARRAYS)@", lambda found: parts[found[1]], read("page.html"))


def read(name):
    """The text of a file of the page."""
    return (PAGE / name).read_text(encoding="utf-8")


def write_page(path, model, image, target=None, **options):
    """Write the page to a file, whole or not at all. Arguments: see page. Returns its size in bytes."""
    content = page(model, image, target, **options).encode()
    write_whole(path, lambda file: file.write(content))
    return len(content)


def notes(stages):
    """What the page does not show, in sentences."""
    found, shown = stages["detectionsFound"], len(stages["detections"])
    image = stages["image"]
    lines = [f"Of {found} detections the best {shown} are here." if shown < found else
             f"All {found} detections with a score above {stages['settings']['boxScore']:g} are here.",
             f"Of every feature map the {forward_half.CHANNELS} channels that vary most are here, of a large one fewer, and a map longer "
             f"than {forward_half.MAP_SIDE} cells is averaged over squares of cells.",
             "Values of maps are stored in 256 steps between the smallest and the largest one; numbers in the text are exact to four "
             "digits."]
    if image["shown"] != [image["width"], image["height"]]:
        lines.append("The picture is a smaller copy of the image, and masks are pasted into the copy.")
    if stages["backward"] is None:
        lines.append("There is no target for this image, so there are no losses and no gradients.")
    return lines
