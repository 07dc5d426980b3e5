"""When a loss or a gradient is not finite: stop before the weights are touched, say where it began, and keep what a replay needs.

From one NaN on every weight would become NaN, and an hour later nobody knows why. So each step ends in one test (finite losses, finite
norm of the gradient), which costs nothing, and only if it fails is the step run again with a trace to find the first stage and image.
"""

import json
import zipfile
from typing import NamedTuple

import numpy as np

from .. import devices
from ..data.images import write_whole
from ..errors import WeightsError
from ..models.decisions import Decisions
from ..trace import Trace
from .gradients import Part


class Place(NamedTuple):
    """Where the first number that is not finite is.

    kind: "weight" (before the step), "stage" (forward), "gradient of" (a stage) or "gradient of weight"; name: of the stage or the
    parameter; bad, size: how many of its numbers; images: positions in the part, all that may be the cause; part: which.
    """

    kind: str
    name: str
    bad: int
    size: int
    images: list
    part: int

    def __str__(self):
        return f"{self.kind} {self.name} ({self.bad} of {self.size} numbers are not finite)"


def find_nonfinite(model, parts):
    """Run the parts of a batch again, and look at every stage in order, forward and then backward.

    Parameters
    ----------
    model : MaskRCNN
        As it was before the step. It is left with other running statistics and gradients.
    parts : list of Part, with fresh rngs

    Returns
    -------
    Place, or None if all is finite this time; and the Decisions of that part (None if it came to none)
    """
    for name, array in model.state_dict().items():
        if not np.isfinite(array).all():
            return Place("weight", name, *_count(array), [], 0), None
    for k, part in enumerate(parts):
        trace = Trace()
        model.zero_grad()
        _, cache = model.losses(part.images, part.targets, part.rngs, trace=trace)
        place = _first(trace.values, "stage", cache.decisions, k)
        if place is None:
            model.backward(cache, trace)
            gradients = {name: devices.to_host(p.grad, "gradients") for name, p in model.named_parameters() if p.grad is not None}
            place = _first(trace.grad, "gradient of", cache.decisions, k) or _first(gradients, "gradient of weight", cache.decisions, k)
        if place is not None:
            if len(place.images) != 1:  # a norm or a sum has spread it
                place = place._replace(images=_alone(model, part, cache.decisions, place.images))
            return place, cache.decisions
    return None, None


def _count(value):
    arrays = [np.asarray(v) for v in (value if isinstance(value, (list, tuple)) else [value])]
    return sum(int((~np.isfinite(a)).sum()) for a in arrays), sum(a.size for a in arrays)


def _first(values, kind, decisions, part):
    """The Place of the first of {name: array or list of arrays} that is not finite, or None."""
    for name, value in values.items():
        bad, size = _count(value)
        if bad:
            return Place(kind, name, bad, size, _images_of(name, value, decisions), part)
    return None


def _images_of(name, value, decisions):
    """Positions of the images whose rows of a stage hold the bad numbers; all where the stage has no rows of single images."""
    count = len(decisions.labels)
    if isinstance(value, (list, tuple)):
        bad = [not np.isfinite(v).all() for v in value]
    else:
        rows = np.ones(count, int)  # an image each
        if name.startswith("roi_heads.box") or name == "roi_heads.class_logits":
            rows = np.array([len(labels) for labels in decisions.labels])
        elif name.startswith("roi_heads.mask"):
            rows = np.array([(labels > 0).sum() for labels in decisions.labels])
        if np.ndim(value) == 0 or len(value) != rows.sum() or not name.startswith(("backbone.", "fpn.", "rpn.", "roi_heads.")) \
                or name.endswith((".weight", ".bias")):
            return list(range(count))
        bad_rows = ~np.isfinite(value).reshape(len(value), -1).all(axis=1)
        bad = [rows_of_one.any() for rows_of_one in np.split(bad_rows, np.cumsum(rows)[:-1])]
    return [i for i in range(count) if bad[i]]


def _alone(model, part, decisions, suspects):
    """Those of the suspects that give numbers that are not finite in a batch of their own; all if that tells nothing."""
    guilty = []
    same_size = len({image.shape for image in part.images}) == 1  # else the padding is another, and so are the numbers of the anchors
    for i in suspects:
        one = Decisions(*([field[i]] for field in decisions)) if same_size else None
        model.zero_grad()
        try:
            losses, cache = model.losses([part.images[i]], [part.targets[i]], np.random.default_rng(0), one)
            model.backward(cache)
        except ValueError:  # batch norm cannot take statistics of a single value
            continue
        arrays = list(losses.values()) + [p.grad for p in model.parameters() if p.grad is not None]
        if not all(np.isfinite(a).all() for a in arrays):
            guilty.append(i)
    return guilty or suspects


def explain(place, parts, step, losses, grad_norm, lr):
    """The message: what was seen, where it began, in which image, what to do."""
    bad = [f"{name} is {value}" for name, value in losses.items() if not np.isfinite(value)]
    text = f"the training diverged: at step {step} {', '.join(bad) or f'the norm of the gradient is {grad_norm}'}"
    if place is not None:
        names = [parts[place.part].names[i] for i in place.images]
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        text += f"; the first numbers that are not finite are in {place}" + (f", of {shown}" if names else "")
    elif not bad:
        text += "; each gradient alone is finite, their squares are too large"
    return text + f"; the weights are as they were before the step; lower the learning rate (lr={lr:g}) or warm up longer"


# ---- the replay file

def save_replay(path, step, part, decisions, checkpoint, text):
    """Write the part of a batch that failed to an .npz: images and targets as the network got them, names, decisions (or None), the step,
    the name of the checkpoint beside it with the weights before the step, and the message."""
    about = {"step": step, "names": part.names, "checkpoint": checkpoint, "text": text}
    arrays = {"about": np.array(json.dumps(about))}
    for i, (image, target) in enumerate(zip(part.images, part.targets)):
        arrays[f"image.{i}"] = image
        arrays.update({f"target.{i}.{key}": np.asarray(value) for key, value in target.items()})
    for name, field in ({} if decisions is None else decisions._asdict()).items():
        arrays.update({f"decisions.{name}.{i}": array for i, array in enumerate(field)})
    write_whole(path, lambda file: np.savez_compressed(file, **arrays))


def load_replay(path):
    """The Part (without rngs), the Decisions or None, and {"step", "names", "checkpoint", "text"}. WeightsError if it cannot be read."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        about = json.loads(str(arrays["about"]))
        count = len(about["names"])
        targets = [{name.removeprefix(f"target.{i}."): a for name, a in arrays.items() if name.startswith(f"target.{i}.")}
                   for i in range(count)]
        part = Part([arrays[f"image.{i}"] for i in range(count)], targets, [], about["names"])
        decisions = None
        if "decisions.labels.0" in arrays:
            decisions = Decisions(*([arrays[f"decisions.{name}.{i}"] for i in range(count)] for name in Decisions._fields))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise WeightsError(f"{path}: not a whole replay file ({error})") from error
    return part, decisions, about
