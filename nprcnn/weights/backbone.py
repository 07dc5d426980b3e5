"""A backbone's weights, from the file of an image classifier or of another detector."""

from ..errors import WeightsError
from .files import read_weights
from .report import current_names

PLACES = (("backbone.body.", ""), ("roi_heads.box_head.layer4.", "layer4."))  # in a detector; in a classifier


def load_backbone(model, path):
    """Load the backbone alone; the other layers keep what they have.

    Parameters
    ----------
    model : MaskRCNN
    path : path of a file that read_weights takes
        A classifier's of torchvision (`conv1.weight`, `layer1.0...`; `features.0.weight` for VGG), whose last fully connected layers are
        left out, or a detector's, of which only the backbone is taken. The C4 models' layer4 is filled as well.

    Returns
    -------
    list of the names in the model that were filled

    Raises
    ------
    WeightsError
        See read_weights; or something of the backbone is missing or has another shape. Then the model is unchanged.
    """
    state = current_names(read_weights(path))
    found = {}
    own = model.state_dict()
    for name in own:
        for here, there in PLACES:
            if name.startswith(here):
                source = name if name in state else there + name.removeprefix(here)
                if source not in state:
                    raise WeightsError(f"{path}: {source} is missing; the file's backbone is not the model's (another depth?)")
                if state[source].shape != own[name].shape:
                    raise WeightsError(f"{path}: {source} has shape {state[source].shape}, the model wants {own[name].shape}; "
                                       "the file's backbone is not the model's (another depth?)")
                found[name] = state[source]
    model.load_state_dict({**own, **found})
    return list(found)
