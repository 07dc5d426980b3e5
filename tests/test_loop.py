import numpy as np
import pytest
from small_models import snapshot, tiny_image_model
from tiny_training import Source

from nprcnn.data.loader import Loader
from nprcnn.errors import ConfigError, DataError
from nprcnn.models.decisions import LOSSES
from nprcnn.train import SGD, clip_gradients, train
from nprcnn.train.gradients import sampling_rngs
from nprcnn.train.loop import progress_text


def trained(seed=0, steps=3, **options):
    model = tiny_image_model(dtype=np.float32, **{k: options.pop(k) for k in ("trainable",) if k in options})
    history = train(model, Source(), steps=steps, batch_size=2, warmup_steps=2, seed=seed, progress=False, **options)
    for row in history:
        assert row.pop("seconds") > 0
    return model, history


def test_the_same_seed_gives_the_same_weights_bit_for_bit():
    (a, history_a), (b, history_b), (c, _) = trained(0), trained(0), trained(1)
    start = snapshot(tiny_image_model(dtype=np.float32))
    assert snapshot(a) == snapshot(b) and history_a == history_b
    assert all(x != y for x, y in zip(snapshot(a).values(), snapshot(c).values()))
    assert all(x != y for x, y in zip(snapshot(a).values(), start.values()))
    assert {array.dtype for array in a.state_dict().values()} == {np.dtype(np.float32)}


def test_the_loop_is_what_one_would_write_by_hand():
    """Losses, fresh gradients, clipping, one step: to the last bit, with gradients in the model that came from elsewhere."""
    model, by_hand = (tiny_image_model(dtype=np.float32) for _ in range(2))
    for parameter in model.parameters():
        parameter.add_grad(np.ones_like(parameter.data))
    train(model, Source(), steps=3, batch_size=2, lr=0.02, warmup_steps=0, drops=(), seed=5, progress=False)
    optimizer, loader = SGD(by_hand.parameters(), 0.9, 1e-4), Loader(Source(), 2, 5)
    for step in range(3):
        images, targets, indices = loader.batch(step)
        _, cache = by_hand.losses(images, targets, sampling_rngs(5, step, indices))
        by_hand.zero_grad()
        by_hand.backward(cache)
        clip_gradients(by_hand.parameters(), 10.0)
        optimizer.step(0.02)
    assert snapshot(model) == snapshot(by_hand)


def test_history_has_a_row_a_step():
    _, history = trained(steps=3, lr=0.02, drops=(0.5,))
    assert len(history) == 3
    for row in history:
        assert set(row) == {*LOSSES, "loss", "lr", "grad_norm"} and all(type(v) is float for v in row.values())
        assert row["loss"] == pytest.approx(sum(row[name] for name in LOSSES)) and row["grad_norm"] > 0
    assert [row["lr"] for row in history] == pytest.approx([0.01, 0.02, 0.002])


def test_training_lowers_the_loss():
    """Measured: from 2.7 to 1.4."""
    _, history = trained(steps=40, lr=0.02)
    assert np.mean([row["loss"] for row in history[-5:]]) < 0.7 * np.mean([row["loss"] for row in history[:5]])


def test_on_step_sees_every_step():
    seen = []
    _, history = trained(steps=2, on_step=lambda step, row: seen.append((step, row)))
    assert seen == list(enumerate(history))


def test_frozen_parameters_stay_and_the_others_move():
    start = tiny_image_model(dtype=np.float32)
    model, _ = trained(trainable=3)
    for (name, p), (_, q) in zip(model.named_parameters(), start.named_parameters()):
        assert (p.data.tobytes() == q.data.tobytes()) == (not p.trainable), name
        assert p.trainable == (not name.startswith(("backbone.body.conv1", "backbone.body.bn1", "backbone.body.layer1")))


def test_gradients_are_clipped():
    """With momentum and decay off the first step is -lr * gradient, and the common norm of all gradients is at most 1e-3."""
    start = tiny_image_model(dtype=np.float32).state_dict()
    model, history = trained(steps=1, lr=2.0, momentum=0.0, weight_decay=0.0, max_grad_norm=1e-3)
    moved = sum(np.sum((p.data.astype(float) - start[name]) ** 2) for name, p in model.named_parameters())
    assert history[0]["grad_norm"] > 1  # before clipping
    assert np.sqrt(moved) == pytest.approx(1e-3 * 1.0, rel=1e-2)  # lr is 1 in the first of two steps of warm-up


def test_going_on_in_the_middle_is_bit_for_bit_the_same():
    """All that is random is a function of seed, step and image: start and the optimiser's velocity are all that is needed."""
    whole, history = trained(steps=5, lr=0.02, schedule="cosine")
    model = tiny_image_model(dtype=np.float32)
    optimizer, rows = SGD(model.parameters()), []
    for start in (0, 2):
        class Enough(Exception):
            pass

        def stop(step, row):
            rows.append({k: v for k, v in row.items() if k != "seconds"})
            if step == 1:
                raise Enough
        try:
            train(model, Source(), steps=5, batch_size=2, lr=0.02, schedule="cosine", warmup_steps=2, start=start, optimizer=optimizer,
                  progress=False, on_step=stop)
        except Enough:
            pass
    assert snapshot(model) == snapshot(whole) and rows == history


def test_a_sample_depends_on_seed_step_and_image_alone():
    def draws(*args):
        return [rng.integers(2 ** 60) for rng in sampling_rngs(*args)]
    a = draws(0, 3, [4, 7])
    assert a == draws(0, 3, [7, 4])[::-1] and a[1:] == draws(0, 3, [7])
    others = draws(1, 3, [4]) + draws(0, 4, [4]) + draws(0, 3, [5]) + [np.random.default_rng([0, 2, 3, 4]).integers(2 ** 60)]
    assert len({*a, *others}) == 6


def test_crowds_are_left_out():
    class Crowded(Source):
        def __getitem__(self, i):
            image, target = super().__getitem__(i)
            more = {k: np.concatenate([v, v[:1]]) for k, v in target.items() if k in ("boxes", "labels", "masks")}
            return image, {**more, "iscrowd": np.array([0] * len(target["labels"]) + [1])}
    model = tiny_image_model(dtype=np.float32)
    train(model, Crowded(), steps=3, batch_size=2, warmup_steps=2, progress=False)
    assert snapshot(model) == snapshot(trained()[0])


def test_an_image_that_cannot_be_used_is_named():
    class Broken(Source):
        def name(self, i):
            return f"photo{i}.png"

        def __getitem__(self, i):
            image, target = super().__getitem__(i)
            if i == 3:
                target = {**target, "labels": target["labels"] + 7}
            return image, target
    with pytest.raises(DataError, match=r"target (\d): label 0 is .*of the batch .*\1 is photo3.png"):
        train(tiny_image_model(dtype=np.float32), Broken(), steps=3, batch_size=2, progress=False)


def test_no_steps_no_change():
    model, history = trained(steps=0)
    assert history == [] and snapshot(model) == snapshot(tiny_image_model(dtype=np.float32))


def test_progress(capsys):
    row = dict(zip(LOSSES, (1.0, 2.0, 3.0, 4.0, 5.0)))
    text = progress_text([{name: 2 * value for name, value in row.items()}, row])
    assert text == "obj 1.500  rpn-box 3.000  cls 4.500  box 6.000  mask 7.500"
    assert progress_text([{name: row[name] for name in LOSSES[:4]}]).endswith("box 4.000")  # Faster R-CNN
    assert progress_text([row] * 30 + [{name: 0.0 for name in LOSSES}] * 20).startswith("obj 0.000")
    train(tiny_image_model(dtype=np.float32), Source(), steps=1, batch_size=2, progress=True)
    assert "mask " in capsys.readouterr().err
