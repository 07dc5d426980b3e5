"""Parts of a batch against the whole batch, in float64."""

import numpy as np
import pytest
from reference import seeded
from small_models import one_map, snapshot, tiny_image_model

from nprcnn.data.loader import Batch
from nprcnn.train.gradients import batch_gradients, make_parts

FROZEN = dict(norm="frozen", head_norm="frozen")


def scene(count=6):
    """Images of one size, with unlike numbers of objects, one without any."""
    images, targets = seeded.scene()
    image, target = images[0], targets[0]
    batch = []
    for i in range(count):
        n = (2, 0, 1, 3, 1, 2)[i]
        n = min(n, len(target["labels"]))
        batch.append((np.roll(image, 5 * i, axis=1), {k: target[k][:n] for k in ("boxes", "labels", "masks")}))
    return Batch(*zip(*batch), tuple(range(count)))


def result(model, count, batch, **options):
    model.zero_grad()
    losses = batch_gradients(model, make_parts(batch, count, 0, 5, None), **options)
    return losses, {name: p.grad.copy() for name, p in model.named_parameters() if p.grad is not None}


def largest_difference(a, b):
    """Relative to the largest gradient of each parameter."""
    assert set(a) == set(b)
    return max(np.abs(a[n] - b[n]).max() / max(np.abs(b[n]).max(), 1e-12) for n in b)


@pytest.mark.parametrize("kind, options", [("fpn", {}), ("fpn", {"rpn_loss_normalizer": "wanted"}), ("fpn", {"mask_loss": "softmax"}),
                                           ("c4 frozen", {})])
def test_parts_add_up_to_the_whole_batch(kind, options):
    """float64: sums in another order differ by a few roundings. Measured: 8e-16."""
    model = tiny_image_model(**FROZEN, **options) if kind == "fpn" else one_map(kind, **options)
    batch = scene()
    whole_losses, whole = result(model, 1, batch)
    assert min(whole_losses.values()) > 0
    for count in (2, 3, 6):
        losses, gradients = result(model, count, batch)
        assert losses == pytest.approx(whole_losses, rel=1e-10)
        assert largest_difference(gradients, whole) < 1e-10


def test_plain_means_of_the_parts_would_be_wrong():
    """The test above can fail: the parts have unlike counts."""
    model, batch = tiny_image_model(**FROZEN), scene()
    _, whole = result(model, 1, batch)
    model.zero_grad()
    for part in make_parts(batch, 2, 0, 5, None):
        _, cache = model.losses(part.images, part.targets, part.rngs)
        model.backward(cache, weights=dict.fromkeys(model.loss_counts(cache.decisions), 0.5))
    assert largest_difference({n: p.grad for n, p in model.named_parameters() if p.grad is not None}, whole) > 1e-3


def test_shares_of_several_processes_add_up():
    """What each of two processes would compute, given the counts of both."""
    model, batch = tiny_image_model(**FROZEN), scene()
    whole_losses, whole = result(model, 1, batch)
    shares = [Batch(*(field[k::2] for field in batch)) for k in (0, 1)]
    counts = []
    for share in shares:
        result(model, 1, share, total=lambda c: counts.append(c) or c)
    total = {name: counts[0][name] + counts[1][name] for name in counts[0]}
    assert counts[0] != counts[1]
    (l0, g0), (l1, g1) = (result(model, k, share, total=lambda c: total) for k, share in zip((1, 3), shares))
    assert {n: l0[n] + l1[n] for n in l0} == pytest.approx(whole_losses, rel=1e-10)
    assert largest_difference({n: g0[n] + g1[n] for n in g0}, whole) < 1e-10


def test_no_object_at_all():
    images, _ = seeded.scene()
    empty = {"boxes": np.zeros((0, 4)), "labels": np.zeros(0, int), "masks": np.zeros((0, *images[0].shape[:2]), np.uint8)}
    batch = Batch((images[0],) * 2, (empty,) * 2, (0, 1))
    model = tiny_image_model(**FROZEN)
    (whole_losses, whole), (losses, gradients) = result(model, 1, batch), result(model, 2, batch)
    assert losses["loss_mask"] == 0 and losses == pytest.approx(whole_losses, rel=1e-10)
    assert largest_difference(gradients, whole) < 1e-10


def test_one_part_costs_nothing_and_changes_nothing():
    """Bit for bit losses and backward, and one forward pass."""
    model, batch, passes = tiny_image_model(), scene(2), []
    first_stage = model._first_stage
    model._first_stage = lambda *args: passes.append(1) or first_stage(*args)
    losses, gradients = result(model, 1, batch)
    assert len(passes) == 1
    part, = make_parts(batch, 1, 0, 5, None)
    plain = tiny_image_model()
    plain_losses, cache = plain.losses(part.images, part.targets, part.rngs)
    plain.backward(cache)
    assert losses == {n: float(v) for n, v in plain_losses.items()}
    assert {n: g.tobytes() for n, g in gradients.items()} == {n: p.grad.tobytes() for n, p in plain.named_parameters()}


def test_deciding_first_decides_the_same_and_changes_nothing():
    model, (part,) = tiny_image_model(norm="batch", head_norm="batch"), make_parts(scene(2), 1, 0, 5, None)
    before = snapshot(model)
    decisions = model.decide(part.images, part.targets, part.rngs)
    assert snapshot(model) == before
    part, = make_parts(scene(2), 1, 0, 5, None)
    _, cache = model.losses(part.images, part.targets, part.rngs)
    assert snapshot(model) != before  # running statistics
    for ours, theirs in zip(decisions, cache.decisions):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b)
