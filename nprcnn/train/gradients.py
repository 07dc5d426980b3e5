"""The gradient of a batch that is too large to be computed at once: in parts, on one machine or on several.

A loss is a sum over anchors or RoIs, divided by how many they are in the whole batch. Let part k have N_k of the batch's N, and the
loss l_k, the mean over its own N_k. Then

    loss of the batch = sum over k of (N_k / N) l_k

and the gradient likewise. The five losses have three different N (sampled anchors, sampled RoIs, positive RoIs), so each loss has a weight
of its own: model.backward(cache, weights=...). N must be known before the first backward pass. What is sampled in a part depends
neither on the other parts nor on gradients, so a first forward pass over all parts, which keeps nothing, decides it and counts.

With batch norm in training mode each part has its own statistics, and the equality ends there; with frozen norms it holds to rounding.
"""

from typing import NamedTuple

import numpy as np

from .. import devices
from ..data.targets import drop_crowds
from ..errors import DataError


class Part(NamedTuple):
    """Images that go through the network together, and all that the losses need of them: lists with one entry an image.

    rngs: numpy.random.Generators, fresh ones for every call; names: for messages.
    """

    images: list
    targets: list
    rngs: list
    names: list


def make_parts(batch, count, seed, step, source):
    """Cut a Batch of the source (see nprcnn.data.loader) into `count` Parts of one size."""
    size = len(batch.images) // count
    names = [image_name(source, i) for i in batch.indices]
    fields = batch.images, [drop_crowds(t) for t in batch.targets], sampling_rngs(seed, step, batch.indices), names
    return [Part(*(list(field[i * size:(i + 1) * size]) for field in fields))
            for i in range(count)]


def sampling_rngs(seed, step, indices):
    """A generator an image, a function of (seed, step, index in the source): which anchors and RoIs the losses look at depends neither on
    what was drawn before nor on what else is in the batch."""
    return [np.random.default_rng([seed, 1, step, int(i)]) for i in indices]


def image_name(source, index):
    """What messages call an image of any source."""
    return source.name(index) if hasattr(source, "name") else f"image {index}"


def batch_gradients(model, parts, total=lambda counts: counts):
    """Add the gradient of a batch to the model's parameters.

    Parameters
    ----------
    model : MaskRCNN
    parts : list of Part
    total : function
        {loss: count of these parts} -> {loss: count of the whole batch}. Where several processes have a share of the batch each, it
        sums over them; they then sum the gradients and the losses.

    Returns
    -------
    {name: loss}, a float each: of the whole batch, or the share of these parts in it. If one is not finite, the gradient is incomplete.

    Raises
    ------
    DataError
        An image or a target cannot be used; the message names it.
    """
    try:
        if len(parts) == 1:  # one forward pass will do: its cache can wait for the count
            losses, cache = model.losses(parts[0].images, parts[0].targets, parts[0].rngs)
            decisions = [cache.decisions]
        else:
            decisions = [model.decide(part.images, part.targets, part.rngs) for part in parts]
        counts = [model.loss_counts(d) for d in decisions]
        whole = total({name: sum(c[name] for c in counts) for name in counts[0]})
        sums = dict.fromkeys(whole, 0.0)
        for k, part in enumerate(parts):
            if len(parts) > 1:
                losses, cache = model.losses(part.images, part.targets, None, decisions[k])
            weights = {name: counts[k][name] / max(whole[name], 1) for name in whole}
            for name, loss in losses.items():
                sums[name] += weights[name] * float(devices.to_host(loss, "losses"))
            if not np.isfinite(list(sums.values())).all():
                break
            model.backward(cache, weights=weights)
            del cache  # the largest arrays of the step, before those of the next part
    except DataError as error:
        names = "; ".join(", ".join(f"{i} is {name}" for i, name in enumerate(part.names)) for part in parts)
        raise DataError(f"{error} (of the batch {names})") from error
    return sums
