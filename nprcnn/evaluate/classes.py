"""Which class of the data set each class of the model is.

A model for COCO has 91 outputs (torchvision) or 81 (Detectron2), a COCO file 80 categories, and a part of COCO perhaps ten: what
belongs together is found by the names.
"""

import numpy as np

from ..data.coco_names import say_nothing, some
from ..errors import ConfigError


def match_classes(model_names, source_names):
    """The data set's label for each label of the model, and what there is to say about it.

    Parameters
    ----------
    model_names : sequence of str, or None
        By label, the background first. None, or names that say nothing ("class 1"): labels are taken as they are.
    source_names : sequence of str

    Returns
    -------
    label_of : (K,) int64
        label_of[the model's label] is the data set's, or 0: a class that the data set does not have. What the model finds of it does
        not count, neither for nor against it.
    notes : list of sentences

    Raises
    ------
    ConfigError
        The two have no name in common, and not the same number of classes.
    """
    own, theirs = list(source_names), list(model_names or source_names)
    if theirs == own:
        return np.arange(len(own)), []
    label = {name: k for k, name in enumerate(own) if k > 0}
    shared = [name for name in theirs[1:] if name in label]
    if shared:
        notes = [f"of the model's classes, {len(shared)} are in the data set"]
        missing = [name for name in own[1:] if name not in shared]
        if missing:
            notes.append(f"the model does not know, and so misses: {some(missing)}")
        return np.array([label.get(name, 0) if k > 0 else 0 for k, name in enumerate(theirs)]), notes
    if len(theirs) == len(own):
        return np.arange(len(own)), [] if say_nothing(theirs) else [f"classes are taken by number: {some(theirs[1:])} for {some(own[1:])}"]
    raise ConfigError(f"the model has the classes {some(theirs[1:])}, the data set {some(own[1:])}: none in common, and not the same "
                      "number; evaluate on the kind of data that it was trained on")
