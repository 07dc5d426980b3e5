"""A training step of the full-size Mask R-CNN beside torchvision 0.29: five losses, the gradient of every parameter, running statistics.

Two photos of different size in one batch; the samplers take every anchor and every RoI, so nothing is random. With torchvision's Decisions
fed in, and with our own. Measured with the NumPy kernels, frozen, float32: losses 7e-7, norms of gradients 6e-4 at worst, 1 - cosine 8e-6,
running statistics equal; torchvision's own float32 run is from its float64 run 4e-6, 8e-4 and 9e-6 away.
"""

import numpy as np
import pytest
from parity import FOLDER, Reference, full_model
from reference import parity_inputs as inputs

from nprcnn.models.mask_rcnn import LOSSES, Decisions
from nprcnn.models.roi_features import assign_levels

FILE = np.load(FOLDER / "parity_losses.npz")
RUNS = [(variant, decided_by) for variant in ("frozen.float32", "frozen.float64", "batch.float64")
        for decided_by in ("torchvision", "nprcnn")]


def torchvisions_decisions(reference):
    """What torchvision decided in its run, as our Decisions."""
    matched = np.split(reference["anchor_matched"], 2)  # two images on one canvas have equally many anchors
    splits = np.cumsum(reference["counts"])[:-1]
    proposals = np.split(reference["proposals"], splits)
    return Decisions(
        anchor_positive=[np.flatnonzero(m >= 0) for m in matched], anchor_negative=[np.flatnonzero(m == -1) for m in matched],
        anchor_matched=[m[m >= 0].astype(np.int64) for m in matched],
        proposals=proposals, proposal_anchor=[np.full(len(p), -1) for p in proposals],
        labels=[x.astype(np.int64) for x in np.split(reference["labels"], splits)],
        matched=[x.astype(np.int64) for x in np.split(reference["matched"], splits)],
        levels=[assign_levels(p, 4) for p in proposals])


@pytest.fixture(scope="module", params=RUNS, ids=" decided by ".join)
def step(request):
    """variant, reference, our losses, gradients, running statistics and decisions."""
    variant, decided_by = request.param
    reference = Reference(FILE, variant)
    norm, precision = variant.split(".")
    model = full_model(np.dtype(precision).type, norm, **inputs.TRAINING)
    decisions = torchvisions_decisions(reference) if decided_by == "torchvision" else None
    losses, cache = model.losses(*inputs.training_batch(), np.random.default_rng(0), decisions)
    model.backward(cache)
    gradients = {name: inputs.summary(name, p.grad) for name, p in model.named_parameters()}
    running = {name: inputs.summary(name, x) for name, x in model.state_dict().items() if "running" in name}
    return variant, reference, losses, gradients, running, cache.decisions


def test_losses(step):
    """Float32: 1e-5 of each. Float64: 1e-9. torchvision keeps the labels of its objectness loss in float32, which rounds that loss to
    float32; the reference has them in float64 instead, and with float32 labels it is what torchvision gives as it is."""
    variant, reference, losses, *_ = step
    assert list(losses) == list(LOSSES) == list(inputs.LOSSES) and (reference["losses"] > 1e-4).all()
    np.testing.assert_allclose(list(losses.values()), reference["losses"], rtol=1e-5 if "32" in variant else 1e-9)
    assert losses["loss_objectness"] == pytest.approx(float(reference["objectness_as_it_is"]), rel=1e-5 if "32" in variant else 1.2e-7)


def test_gradient_of_every_parameter(step):
    """Float32: 1e-3 in norm and a cosine of .9999. Float64: 1e-6 of the norm, in norm, in the sums under random signs, in each number."""
    variant, reference, _, gradients, *_ = step
    assert len(gradients) == len(reference["gradients"])
    norms, sums, samples = np.split(np.array(list(gradients.values())), [1, 3], axis=1)
    wanted_norms, wanted_sums, wanted_samples = np.split(reference["gradients"], [1, 3], axis=1)
    # the sums and samples of the difference: of a difference d, <signs, d> is |d| in size, and a number is at most |d|
    of_difference = np.concatenate([sums - wanted_sums, np.nan_to_num(samples - wanted_samples)], axis=1) / wanted_norms
    if "64" in variant:
        assert np.abs(norms / wanted_norms - 1).max() <= 1e-6
        assert np.abs(of_difference).max() <= 1e-6
        return
    assert np.abs(norms / wanted_norms - 1).max() <= 1e-3
    # a cosine of .9999 is a difference of .014 of the norm; three of the random sums' standard deviations
    assert np.abs(of_difference).max() <= 3 * np.sqrt(2 * 1e-4)
    for name, ours, theirs in zip(gradients, np.nan_to_num(samples), np.nan_to_num(wanted_samples)):
        assert ours @ theirs >= 0.9999 * np.linalg.norm(ours) * np.linalg.norm(theirs), name


def test_decisions(step):
    """Our own are torchvision's. (Fed in, they come back as they were.)"""
    variant, reference, *_, decisions = step
    wanted = torchvisions_decisions(reference)
    for i in range(2):
        for name in ("anchor_positive", "anchor_negative", "anchor_matched"):
            np.testing.assert_array_equal(getattr(decisions, name)[i], getattr(wanted, name)[i])
        order, distance = inputs.pair_up(decisions.proposals[i], wanted.proposals[i])
        assert distance.max() <= (0.02 if "32" in variant else 1e-9 * wanted.proposals[i].max())
        for name in ("labels", "levels"):
            np.testing.assert_array_equal(getattr(decisions, name)[i][order], getattr(wanted, name)[i])
        positive = wanted.labels[i] > 0
        assert positive.any() and not positive.all()
        np.testing.assert_array_equal(decisions.matched[i][order][positive], wanted.matched[i][positive])


def test_running_statistics(step):
    variant, reference, _, _, running, _ = step
    ours = np.array(list(running.values()))
    assert len(ours) == 106
    tolerance = 1e-6 if "32" in variant else 1e-9
    np.testing.assert_allclose(ours[:, 0], reference["running"][:, 0], rtol=tolerance)
    np.testing.assert_allclose(ours, reference["running"], rtol=0, atol=tolerance * np.nanmax(np.abs(ours)))
