"""A backbone's weights, from the file of an image classifier or of another detector."""

import re

from ..errors import WeightsError
from .files import read_weights
from .report import current_names

# Where a detector has a classifier's layers; the C4 models have the last stage in the box head.
PLACES = ("backbone.body.", "roi_heads.box_head.")
LAYERS = re.compile(r"(conv1|bn1|layer\d+|features)\.")


def load_backbone(model, path):
    """Load the backbone alone; the other layers keep what they have.

    Parameters
    ----------
    model : MaskRCNN
    path : path of a file that read_weights takes
        A classifier's of torchvision (`conv1.weight`, `layer1.0...`; `features.0.weight` for VGG), whose last fully connected layers are
        left out, or a detector's, of which only the backbone is taken. The C4 models' layer4 is filled as well. The biases that
        torchvision's VGG has before its batch norms are subtracted from the norms' running means, which is the same.

    Returns
    -------
    list of the names in the model that were filled

    Raises
    ------
    WeightsError
        See read_weights; or something of the backbone is missing, left over or of another shape. Then the model is unchanged.
    """
    theirs = _under_the_classifiers_names(current_names(read_weights(path)))
    state = model.state_dict()
    names = _under_the_classifiers_names({name: name for name in state})
    for name in [name for name in theirs if name not in names]:
        norm_mean = re.sub(r"^features\.(\d+)\.bias$", lambda m: f"features.{int(m[1]) + 1}.running_mean", name)
        if norm_mean != name and norm_mean in names and norm_mean in theirs:
            # norm(conv + bias) subtracts the mean of (conv + bias)
            theirs[norm_mean] = theirs[norm_mean] - theirs.pop(name)
    problems = [f"{name} is missing" for name in names if name not in theirs]
    problems += [f"{name} is left over" for name in theirs if name not in names]
    problems += [f"{name} has shape {theirs[name].shape}, the model wants {state[own].shape}"
                 for name, own in names.items() if name in theirs and theirs[name].shape != state[own].shape]
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise WeightsError(f"{path}: the file's backbone is not the model's (another depth or norm?): {'; '.join(problems[:3])}{more}")
    model.load_state_dict({**state, **{own: theirs[name] for name, own in names.items()}})
    return list(names.values())


def _under_the_classifiers_names(state):
    """What belongs to the backbone: {"layer1.0.conv1.weight": value}."""
    found = {}
    for name, value in state.items():
        for place in PLACES:
            name = name.removeprefix(place)
        if LAYERS.match(name) and not name.endswith(".num_batches_tracked"):
            found[name] = value
    return found
