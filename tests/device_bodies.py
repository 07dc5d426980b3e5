"""What must hold of a whole model on a GPU: test_devices.py asserts it on the double of CuPy, test_gpu.py on a GPU.

The model is that of small_models.py, of 4 channels at first, on images of 60 x 80 and 75 x 70 pixels, in float32.
"""

import numpy as np
from reference import seeded
from small_models import one_map, tiny_image_model

import nprcnn
from nprcnn import devices
from nprcnn.train.gradients import Part, batch_gradients
from nprcnn.train.sgd import SGD, clip_gradients

IMAGES, TARGETS = seeded.scene()
MODELS = {
    "pyramid": lambda: tiny_image_model(dtype=np.float32),
    "frozen norms, softmax masks": lambda: tiny_image_model(norm="frozen", head_norm=None, dtype=np.float32, mask_loss="softmax"),
    "Detectron2's conventions": lambda: tiny_image_model(dtype=np.float32, paste="continuous", resize="pil", channel_order="bgr", pixel_range=255.0,
                                                         image_mean=(103.5, 116.3, 123.7), image_std=(57.4, 57.1, 58.4), aligned=True,
                                                         rpn_nms_on="logits"),
    "without masks": lambda: tiny_image_model(dtype=np.float32, masks=False),
    "C4": lambda: one_map("c4 frozen", dtype=np.float32),
    "VGG, RoIPool": lambda: one_map("vgg pool", dtype=np.float32),
}


def predict_equals_numpy(make, other_pixels=0):
    """Boxes, scores and masks; of these at most `other_pixels` of all may differ: where a GPU fuses multiply-adds, .5 is reached earlier."""
    with nprcnn.use("numpy"):
        expected = make().predict(IMAGES)
        found = make().to("cuda").predict(IMAGES)
    assert sum(len(e.boxes) for e in expected) > 5
    for a, b in zip(expected, found):
        assert all(isinstance(field, np.ndarray) for field in b if field is not None)
        assert (np.diff(b.scores) <= 0).all()
        a, b = (type(d)(*(None if field is None else field[np.lexsort((d.labels, d.proposal))] for field in d)) for d in (a, b))   # scores nearly tie
        for name in ("labels", "proposal", "level", "anchor"):
            np.testing.assert_array_equal(getattr(b, name), getattr(a, name), err_msg=name)
        # float32 through some 15 layers, summed in another order: pixels to 1e-4 of the image's side
        np.testing.assert_allclose(b.boxes, a.boxes, rtol=0, atol=1e-2)
        np.testing.assert_allclose(b.scores, a.scores, rtol=0, atol=1e-4)
        if a.masks is not None:
            assert b.masks.dtype == bool and (a.masks != b.masks).sum() <= other_pixels * a.masks.size


def steps_equal_numpy(make, steps=1):
    """Losses, gradients, their clipping and the weights after some steps of SGD with momentum."""
    with nprcnn.use("numpy"):
        expected = take_steps(make(), steps)
        found = take_steps(make().to("cuda"), steps)
    for (losses, norm, grads), (losses2, norm2, grads2) in zip(expected[0], found[0]):
        np.testing.assert_allclose([*losses2.values(), norm2], [*losses.values(), norm], rtol=1e-4)
        for name, grad in grads.items():
            np.testing.assert_allclose(grads2[name], grad, rtol=0, atol=1e-4 * max(np.abs(grad).max(), 1e-3 * norm), err_msg=name)
    before = make().state_dict()
    for name, weight in expected[1].items():
        moved = np.abs(weight - before[name]).max()
        np.testing.assert_allclose(found[1][name], weight, rtol=1e-6, atol=1e-3 * moved + 1e-7, err_msg=name)


def take_steps(model, steps, lr=0.02):
    """Train on the one batch: [(losses, norm of the gradient, gradients) a step], weights at the end, in the CPU's memory."""
    optimizer, rows = SGD(model.parameters()), []
    for step in range(steps):
        model.zero_grad()
        rngs = [np.random.default_rng([step, i]) for i in range(len(IMAGES))]
        losses = batch_gradients(model, [Part(IMAGES, TARGETS, rngs, ["a", "b"])])
        norm = clip_gradients(optimizer.parameters, 1.0)
        grads = {name: devices.to_host(p.grad, "test").copy() for name, p in model.named_parameters() if p.grad is not None}
        rows.append((losses, norm, grads))
        optimizer.step(lr)
    return rows, {name: array.copy() for name, array in model.state_dict().items()}


def copies_of(make, images):
    """What comes to the CPU in a prediction, and in a step of training: two devices.Copies."""
    model = make().to("cuda")
    optimizer = SGD(model.parameters())
    with devices.count_copies() as predicting:
        model.predict(IMAGES[:images])
    with devices.count_copies() as training:
        rngs = [np.random.default_rng(i) for i in range(images)]
        batch_gradients(model, [Part(IMAGES[:images], TARGETS[:images], rngs, ["a", "b"][:images])])
        clip_gradients(optimizer.parameters, 1.0)
        optimizer.step(0.02)
    return predicting, training


def bytes_after_steps(make, deterministic):
    """All weights after a step on the GPU, as bytes."""
    with nprcnn.use("cupy", deterministic):
        return b"".join(array.tobytes() for array in take_steps(make().to("cuda"), 1)[1].values())
