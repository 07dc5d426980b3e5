"""A model from a file of weights alone: what it is, is read off the file."""

import json
import math
import numbers
import re
from pathlib import Path

import numpy as np

from .data.coco_names import class_names
from .errors import ConfigError, WeightsError
from .models import builders
from .models.settings import Settings
from .weights.files import load_state, read_weights
from .weights.recognise import Recognised, recognise


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
    """Recognise the model that a file's weights belong to, build it and load them. Weights that nprcnn.train wrote say it themselves, with
    all settings.

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
    check_settings(arguments)
    state = read_weights(path)
    try:
        found = like or stated_model(path) or recognise(state)
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


def stated_model(path):
    """The model that the metadata of a .safetensors file names (see nprcnn.train.start.model_metadata), or None.

    WeightsError if what it says cannot be a model.
    """
    if Path(path).suffix != ".safetensors":
        return None
    from safetensors import safe_open
    with safe_open(path, "numpy") as file:
        text = (file.metadata() or {}).get("model")
    if text is None:
        return None
    try:
        stated = json.loads(text)
        name, arguments = builder_name(stated["builder"]), {key: as_tuples(value) for key, value in stated["arguments"].items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        name = None
    # a builder reads the files that these two name
    if name is None or "weights" in arguments or "weights_backbone" in arguments:
        raise WeightsError("what its metadata says of its model cannot be understood; build the model yourself and give it to "
                           "nprcnn.load_weights")
    return Recognised(name, arguments, f"{name}, {arguments.get('num_classes', '?')} classes with the background, as it was trained")


def build_model(builder, arguments, rng=None):
    """A model by the name of its builder, such as "maskrcnn_tiny" or "tiny", and the builder's arguments, which may come from JSON.

    ConfigError for a name or an argument that there is not.
    """
    name = builder_name(builder)
    if name is None:
        known = [n.removeprefix("maskrcnn_") for n in vars(builders) if n.startswith(("maskrcnn_", "fasterrcnn_"))]
        raise ConfigError(f"there is no model {builder!r}; choose one of: {', '.join(known)}")
    check_settings(arguments)
    try:
        return getattr(builders, name)(rng=rng, **{key: as_tuples(value) for key, value in arguments.items()})
    except TypeError as error:
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        raise ConfigError(f"the model {builder} has no setting {unknown[1]!r}" if unknown else
                          f"the model {builder} cannot be built: {error}") from error


def check_settings(arguments):
    """ConfigError for a setting of another kind than its default, or a number that cannot be: later it would be an error of NumPy's."""
    kinds = {"masks": True, "num_classes": 2, **Settings._field_defaults}
    for name, value in arguments.items():
        default, problem = kinds.get(name), None
        number = isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
        if isinstance(default, bool):
            problem = None if isinstance(value, bool) else "True or False is needed"
        elif isinstance(default, int):
            least = 1 if name in ("min_size", "max_size", "size_divisible") else 0
            problem = None if number and value == int(value) and value >= least else f"an integer of at least {least} is needed"
        elif isinstance(default, float):
            problem = None if number and value >= 0 else "a number of at least 0 is needed"
        if problem:
            raise ConfigError(f"the setting {name}={value!r}: {problem}")


def builder_name(name):
    """"tiny" or "maskrcnn_tiny" -> "maskrcnn_tiny"; None if there is no such builder."""
    for candidate in (name, f"maskrcnn_{name}"):
        if candidate.startswith(("maskrcnn_", "fasterrcnn_")) and hasattr(builders, candidate):
            return candidate
    return None


def as_tuples(value):
    """JSON has lists where the builders have tuples."""
    return tuple(map(as_tuples, value)) if isinstance(value, list) else value
