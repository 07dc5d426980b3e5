"""A model from a file of weights alone: what it is, is read off the file."""

import math
from pathlib import Path

import numpy as np

from .data.coco_names import class_names
from .errors import ConfigError, WeightsError
from .models import builders
from .weights.files import load_state, read_weights
from .weights.recognise import recognise


class NoNumbers:
    """In place of a random generator, for parameters that are about to be loaded: zeros cost no time.

    budget: so many zeros, and then a WeightsError: a model larger than its file comes from a file that claims what it does not have.
    """

    def __init__(self, budget):
        self.budget = budget

    def standard_normal(self, shape, dtype=np.float64):
        self.budget -= math.prod(shape)
        if self.budget < 0:
            raise WeightsError("the file holds much less than the model that its shapes speak of; it is damaged or incomplete")
        return np.zeros(shape, dtype)

    def uniform(self, low, high, shape):
        return self.standard_normal(shape)


def load_model(path, like=None, **arguments):
    """Recognise the model that a file's weights belong to, build it and load them.

    Parameters
    ----------
    path : see nprcnn.weights.read_weights
    like : Recognised, optional
        Build this model, whatever the file looks like.
    arguments
        Replace those of the builder that were recognised, or add to them: box_score_thresh=0.5, norm="batch", ...

    Returns
    -------
    model, LoadReport
        The report's first note says what was recognised. model.class_names are those in the file, else COCO's for 91 and 81 classes,
        else "class 1", "class 2", ...

    Raises
    ------
    WeightsError
        See read_weights and recognise. ConfigError for an argument that the builder does not take.
    """
    state = read_weights(path)
    try:
        found = like or recognise(state)
        budget = 10 ** 6 + 2 * sum(array.size for array in state.values())
        model = getattr(builders, found.builder)(rng=NoNumbers(budget), **{**found.arguments, **arguments})
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None
    except TypeError as error:
        raise ConfigError(f"{Path(path).name} was recognised as: {found}; {error}") from error
    report = load_state(model, state, path)
    report.notes.insert(0, str(found))
    if model.class_names is None:
        model.class_names = class_names(model.num_classes)
    return model, report
