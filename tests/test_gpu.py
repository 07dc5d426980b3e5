"""On a GPU, through CuPy: `pytest -m gpu`. What test_devices.py shows with a double, and the kernels at odd and at large sizes.

Without one every test is skipped, and says why.
"""

import functools

import device_bodies as bodies
import numpy as np
import pytest

import nprcnn
from nprcnn import backend, devices, ops
from nprcnn.errors import BackendError
from nprcnn.kernels.cuda import conv2d as conv
from nprcnn.kernels.cuda import launch, nms, norm_relu, paste, pool, resize, roi_align, roi_pool
from nprcnn.ops.norm import frozen_batch_norm_forward

pytestmark = pytest.mark.gpu
REALS = [np.float32, np.float64]


@pytest.fixture(scope="module")
def cupy():
    """CuPy and a GPU; for float32 products without TF32, which CuPy leaves off unless CUPY_TF32 is set."""
    try:
        return devices.cupy()
    except BackendError as error:
        pytest.skip(str(error))


@pytest.fixture
def forgetful(cupy, monkeypatch):
    """The set of kernels that a test chose is forgotten."""
    monkeypatch.setattr(backend, "_active_on_gpu", None)


# ---- the model

@pytest.mark.parametrize("name", bodies.MODELS)
def test_predict_equals_numpy(forgetful, name):
    bodies.predict_equals_numpy(bodies.MODELS[name], other_pixels=1e-3)


@pytest.mark.parametrize("name", bodies.MODELS)
def test_training_steps_equal_numpy(forgetful, name):
    bodies.steps_equal_numpy(bodies.MODELS[name], steps=2)


def test_what_crosses(forgetful):
    predicting, training = bodies.copies_of(bodies.MODELS["pyramid"], 2)
    assert {copy.name for copy in predicting} == {"proposals", "detections", "pasted masks"}
    assert {copy.name for copy in training} == {"proposals", "losses", "norms of the gradients"}


def test_deterministic_runs_have_the_same_bits(forgetful):
    assert len({bodies.bytes_after_steps(bodies.MODELS["pyramid"], True) for _ in range(3)}) == 1


def test_the_memory_is_full_and_the_process_lives_on(forgetful, cupy):
    model = bodies.MODELS["pyramid"]().to("cuda")
    found = model.predict(bodies.IMAGES[0])
    pool_of_memory = cupy.get_default_memory_pool()
    limit = pool_of_memory.get_limit()
    pool_of_memory.free_all_blocks()
    pool_of_memory.set_limit(pool_of_memory.used_bytes() + 20_000)
    try:
        with pytest.raises(BackendError, match="memory of the GPU is full"):
            model.predict(bodies.IMAGES[0])
    finally:
        pool_of_memory.set_limit(limit)
    np.testing.assert_array_equal(model.predict(bodies.IMAGES[0]).boxes, found.boxes)


# ---- the kernels, every version against NumPy's float64

def close(cupy, results, expected, real, length):
    """float32 sums of `length` products of normal numbers: rounded, a partial sum of sqrt(length) errs by 2^-24 of itself `length` times at
    random, which makes length * 2^-24; and four times that to be safe."""
    scale = 4 * length * 2.0 ** (-24 if real is np.float32 else -53)
    for result, right in zip(results, expected, strict=True):
        assert result.dtype == real and isinstance(result, cupy.ndarray)
        np.testing.assert_allclose(result.get(), right, rtol=0, atol=scale)


# N, C, H, W, O, K, stride, padding: odd sizes, and layers of the network
LAYERS = [(2, 20, 13, 11, 150, 3, 1, 1), (1, 64, 17, 9, 40, 1, 1, 0), (1, 36, 15, 14, 70, 3, 2, 1), (1, 3, 130, 97, 64, 7, 2, 3),
          (3, 5, 1, 1, 7, 1, 1, 0), (1, 256, 100, 152, 256, 3, 1, 1), (2, 512, 25, 38, 2048, 1, 1, 0)]


@functools.lru_cache(maxsize=2)      # of one layer in both dtypes, for all versions
def convolution_case(layer, real):
    """x, w, b, dy in float64, rounded to `real`; and y, dx, dw."""
    n, channels, height, width, out_channels, k, stride, padding = layer
    rng = np.random.default_rng(2)
    x, w, b = (rng.standard_normal(shape) for shape in ((n, channels, height, width), (out_channels, channels, k, k), (out_channels,)))
    out = [(side + 2 * padding - k) // stride + 1 for side in (height, width)]
    dy = rng.standard_normal((n, out_channels, *out))
    x, w, b, dy = (a.astype(real).astype(float) for a in (x, w, b, dy))
    return x, w, b, dy, (ops.conv.conv2d(x, w, b, stride, padding), ops.conv.conv2d_grad_x(dy, w, x.shape, stride, padding),
                         ops.conv.conv2d_grad_w(dy, x, w.shape, stride, padding))


@pytest.mark.parametrize("real", REALS)
@pytest.mark.parametrize("version", [1, 2, 3, 4, None])
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_convolution(cupy, layer, version, real):
    n, channels, height, width, out_channels, k, stride, padding = layer
    if version == 4 and not conv.takes_v4(channels, k, k, real):
        pytest.skip("version 4 does not take this layer")
    x, w, b, dy, expected = convolution_case(layer, real)
    gx, gw, gb, gdy = (cupy.asarray(a.astype(real)) for a in (x, w, b, dy))
    results = (conv.conv2d(gx, gw, gb, stride, padding, version=version), conv.conv2d_grad_x(gdy, gw, x.shape, stride, padding, version=version),
               conv.conv2d_grad_w(gdy, gx, w.shape, stride, padding, version=version))
    close(cupy, results, expected, real, max(channels * k * k, out_channels * k * k, n * dy.shape[2] * dy.shape[3]))


def random_rois(rng, count, images, side):
    corner = rng.uniform(-5, side, (count, 2))
    return np.hstack([rng.integers(0, images, (count, 1)), corner, corner + rng.uniform(0, side, (count, 2))]).astype(np.float32)


@pytest.mark.parametrize("real", REALS)
@pytest.mark.parametrize("size, rois, bins", [((2, 70, 25, 19), 9, 14), ((1, 3, 1, 1), 4, 7), ((1, 256, 200, 304), 1000, 7)])
def test_roi_align(cupy, size, rois, bins, real):
    rng = np.random.default_rng(0)
    features, rois = rng.standard_normal(size, np.float32), random_rois(rng, rois, size[0], 4 * max(size[2:]))
    expected = ops.roi_align.roi_align(features.astype(float), rois.astype(float), 0.25, bins)
    dy = rng.standard_normal(expected.shape, np.float32)
    gradient = ops.roi_align.roi_align_grad(dy.astype(float), rois.astype(float), size, 0.25, bins)
    on_gpu, gdy = cupy.asarray(features.astype(real)), cupy.asarray(dy.astype(real))
    # coordinates of up to 1200 rounded to float32 move a sample by 1e-4 of a pixel, between pixels that differ by about 3
    tolerance = 1e-3 if real is np.float32 else 1e-9
    for version in (1, 2, *([3] if roi_align.fits_v3((bins, bins), np.dtype(real)) else []), None):
        np.testing.assert_allclose(roi_align.roi_align(on_gpu, rois, 0.25, bins, version=version).get(), expected, rtol=0, atol=tolerance)
    for version in (1, 2):
        dx = roi_align.roi_align_grad(gdy, rois, size, 0.25, bins, version=version).get()
        np.testing.assert_allclose(dx, gradient, rtol=0, atol=tolerance * max(1, np.abs(gradient).max()))
    again = {roi_align.roi_align_grad(gdy, rois, size, 0.25, bins, deterministic=True).get().tobytes() for _ in range(3)}
    assert len(again) == 1


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 300, 5000])
def test_nms(cupy, count):
    rng = np.random.default_rng(count)
    corner = rng.uniform(0, 30 + count / 20, (count, 2))
    boxes = np.hstack([corner, corner + rng.uniform(0, 20, (count, 2))]).astype(np.float32)
    scores, groups = np.round(rng.random(count), 2).astype(np.float32), rng.integers(0, 5, count)
    expected, batched = ops.nms.nms(boxes, scores, 0.5), ops.nms.batched_nms(boxes, scores, groups, 0.5)
    boxes, scores, groups = map(cupy.asarray, (boxes, scores, groups))
    for version in (1, 2):
        np.testing.assert_array_equal(nms.nms(boxes, scores, 0.5, version=version).get(), expected)
    np.testing.assert_array_equal(nms.batched_nms(boxes, scores, groups, 0.5).get(), batched)


@pytest.mark.parametrize("real", REALS)
@pytest.mark.parametrize("size", [(1, 1, 1, 1), (2, 3, 13, 9), (1, 16, 400, 608)])
def test_pooling_resizing_and_norm(cupy, size, real):
    rng = np.random.default_rng(4)
    x = rng.standard_normal(size).astype(real)
    gx = cupy.asarray(x)
    y, index = ops.pool.max_pool2d(x, 3, 2, 1)
    gy, gindex = pool.max_pool2d(gx, 3, 2, 1)
    np.testing.assert_array_equal(gy.get(), y)
    np.testing.assert_array_equal(gindex.get(), index)
    for deterministic in (False, True):
        close(cupy, [pool.max_pool2d_grad(gy, gindex, size, deterministic)], [ops.pool.max_pool2d_grad(y, index, size)], real, 16)
    for out in ((7, 5), (2 * size[2], 2 * size[3])):
        for name in ("nearest", "bilinear"):
            forward, backward = f"resize_{name}", f"resize_{name}_grad"
            expected = getattr(ops.resize, forward)(x, out)
            np.testing.assert_array_equal(getattr(resize, forward)(gx, out).get(), expected)     # the same operations in the same order
            covered = max(1, out[0] // size[2] + 2) * max(1, out[1] // size[3] + 2)
            # a place of up to size[3], rounded to float32, moves a weight by as much as that many roundings of 1
            close(cupy, [getattr(resize, backward)(cupy.asarray(expected), size)], [getattr(ops.resize, backward)(expected.astype(float), size)],
                  real, 16 * covered + max(size))
    masks = rng.integers(0, 2, (2, 1, 9, 7)).astype(np.uint8)
    np.testing.assert_array_equal(resize.resize_nearest(cupy.asarray(masks), (20, 11)).get(), ops.resize.resize_nearest(masks, (20, 11)))
    weight, bias, mean, var = rng.random((4, size[1])).astype(real)
    scale = weight / np.sqrt(var + real(1e-5))
    z, _ = frozen_batch_norm_forward(x, weight, bias, mean, var)
    result = norm_relu.norm_relu(gx, cupy.asarray(scale), cupy.asarray(bias - mean * scale), gx)
    close(cupy, [result], [np.maximum(z + x, 0)], real, 64)


def test_roi_pool(cupy):
    rng = np.random.default_rng(5)
    x, rois = rng.standard_normal((2, 33, 25, 19), np.float32), random_rois(rng, 40, 2, 80)
    y, index = ops.roi_pool.roi_pool(x, rois, 0.25, 7)
    gy, gindex = roi_pool.roi_pool(cupy.asarray(x), rois, 0.25, 7)
    np.testing.assert_array_equal(gy.get(), y)
    np.testing.assert_array_equal(gindex.get(), index)
    for deterministic in (False, True):
        close(cupy, [roi_pool.roi_pool_grad(gy, gindex, rois, x.shape, deterministic)], [ops.roi_pool.roi_pool_grad(y, index, rois, x.shape)],
              np.float32, 256)


@pytest.mark.parametrize("count, size", [(3, (50, 70)), (100, (800, 1216))])
def test_paste(cupy, count, size):
    rng = np.random.default_rng(6)
    masks = rng.random((count, 28, 28), np.float32)
    corner = rng.uniform(-20, 0.9 * size[1], (count, 2))
    boxes = np.hstack([corner, corner + rng.uniform(1, size[1] / 2, (count, 2))]).astype(np.float32)
    expected = ops.paste.paste_masks(masks, boxes, size)
    np.testing.assert_allclose(paste.paste_masks(cupy.asarray(masks), boxes, size).get(), expected, rtol=0, atol=1e-5)


def test_arrays_of_2_to_the_31_elements_are_refused(cupy):
    """Clearly, and without an array of that size: a view that repeats one number."""
    x = cupy.lib.stride_tricks.as_strided(cupy.zeros(1, np.float32), (1, 2, 2**15, 2**15), (0, 0, 0, 0))
    with pytest.raises(ValueError, match="2147483648 elements"):
        launch._ready("conv2d", 0, x, np.dtype(np.float32))


def test_arrays_of_both_machines_in_one_launch_are_refused(cupy):
    x, scale = cupy.zeros((1, 2, 3, 3), np.float32), np.zeros(2, np.float32)
    with pytest.raises(TypeError):
        norm_relu.norm_relu(x, scale, scale)


def test_input_that_is_not_contiguous(cupy):
    """Views with steps and exchanged axes are copied before a kernel sees them; the results are those of the copies."""
    rng = np.random.default_rng(7)
    x, w = rng.standard_normal((2, 11, 13, 12), np.float32), rng.standard_normal((3, 3, 6, 4), np.float32)
    rois, boxes, scores = random_rois(rng, 12, 2, 40), rng.uniform(0, 30, (40, 8)).astype(np.float32), rng.random(40, np.float32)
    boxes[:, 2:4] += boxes[:, :2]

    def results(up):
        features, filters = up(x).transpose(0, 2, 1, 3)[:, :12:2, ::-1, 1:], up(w).transpose(3, 2, 0, 1)         # (2, 6, 11, 11), (4, 6, 3, 3)
        assert not features.flags.c_contiguous and not filters.flags.c_contiguous
        y = conv.conv2d(features, filters, None, 1, 1)
        pooled, index = pool.max_pool2d(features, 3, 2, 1)
        return [y, conv.conv2d_grad_x(y[:, :, ::-1], filters, features.shape, 1, 1), conv.conv2d_grad_w(y, features, filters.shape, 1, 1),
                pooled, pool.max_pool2d_grad(pooled[::-1], index[::-1], features.shape), resize.resize_bilinear(features, (7, 30)),
                roi_align.roi_align(features, rois[::2], 0.25, 3), nms.nms(up(boxes)[:, :4], up(scores)[::-1], 0.3)]
    for found, right in zip(results(cupy.asarray), results(np.asarray), strict=True):
        np.testing.assert_allclose(found.get(), right, rtol=0, atol=1e-4)


def test_empty_input(cupy):
    none = cupy.zeros((0, 4, 9, 9), np.float32)
    assert conv.conv2d(none, cupy.zeros((8, 4, 3, 3), np.float32)).shape == (0, 8, 7, 7)
    assert pool.max_pool2d(none, 3, 2, 1)[0].shape == (0, 4, 5, 5) and resize.resize_nearest(none, (3, 3)).shape == (0, 4, 3, 3)
    one, no_rois = cupy.zeros((1, 4, 9, 9), np.float32), np.zeros((0, 5), np.float32)
    assert roi_align.roi_align(one, no_rois, 0.25, 7).shape == (0, 4, 7, 7)
    assert not roi_align.roi_align_grad(cupy.zeros((0, 4, 7, 7), np.float32), no_rois, one.shape, 0.25, 7).get().any()
    assert paste.paste_masks(cupy.zeros((0, 28, 28), np.float32), np.zeros((0, 4), np.float32), (20, 30)).shape == (0, 20, 30)
    assert nms.batched_nms(cupy.zeros((0, 4), np.float32), cupy.zeros(0, np.float32), cupy.zeros(0, np.int64), 0.5).shape == (0,)


def test_a_grid_that_no_gpu_takes_is_refused(cupy):
    y = cupy.zeros(4, np.float32)
    for grid, block in (((1, 65536), 32), (2**31, 32), (1, 1025), (0, 32)):
        with pytest.raises(ValueError, match="grid of|block of"):
            launch.launch("norm_relu_v1", "norm_relu", grid, block, (y, y, y, y, y, 4, 1, 4, 0, 0), np.float32)


def test_float64_gradients_of_the_kernels(forgetful, cupy):
    """The whole model in float64 on the GPU equals NumPy's to rounding."""
    with nprcnn.use("numpy"):
        make = lambda: bodies.tiny_image_model(dtype=np.float64)       # noqa: E731
        (losses, _, grads), = bodies.take_steps(make(), 1)[0]
        (losses2, _, grads2), = bodies.take_steps(make().to("cuda"), 1)[0]
    np.testing.assert_allclose([*losses2.values()], [*losses.values()], rtol=1e-9)
    for name, grad in grads.items():
        np.testing.assert_allclose(grads2[name], grad, rtol=0, atol=1e-9 * max(1, np.abs(grad).max()), err_msg=name)


# ---- convolution with tensor cores, and Winograd's

@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_convolution_with_tensor_cores(cupy, layer):
    """The convolution of numbers rounded to TF32. NVIDIA does not say how the hardware rounds its sums: allowed is eight times float32's bound."""
    n, channels, height, width, out_channels, k, stride, padding = layer
    if not conv.takes_v4(channels, k, k, np.float32):
        pytest.skip("version 5 does not take this layer")
    try:
        conv.check_tensor_cores(cupy)
    except conv.NoTensorCores as error:
        pytest.skip(str(error))
    rng = np.random.default_rng(2)
    x, w, b = (rng.standard_normal(shape, np.float32) for shape in ((n, channels, height, width), (out_channels, channels, k, k), (out_channels,)))
    tx, tw = (conv.round_to_tf32(a).astype(float) for a in (x, w))
    y = ops.conv.conv2d(tx, tw, b.astype(float), stride, padding)
    dy = rng.standard_normal(y.shape, np.float32)
    tdy = conv.round_to_tf32(dy).astype(float)
    gx, gw, gb, gdy = map(cupy.asarray, (x, w, b, dy))
    results = [conv.conv2d(gx, gw, gb, stride, padding, version=5), conv.conv2d_grad_w(gdy, gx, w.shape, stride, padding, version=5)]
    expected = [y, ops.conv.conv2d_grad_w(tdy, tx, w.shape, stride, padding)]
    if stride == 1 and out_channels * k * k % 4 == 0:            # else version 3 does it, in float32
        results.append(conv.conv2d_grad_x(gdy, gw, x.shape, stride, padding, version=5))
        expected.append(ops.conv.conv2d_grad_x(tdy, tw, x.shape, stride, padding))
    close(cupy, results, expected, np.float32, 8 * max(channels * k * k, out_channels * k * k, n * y.shape[2] * y.shape[3]))


def test_the_gpu_rounds_to_tf32_as_round_to_tf32_does(cupy):
    """One channel, one tap, a filter of 1: what comes out is x, rounded by cvt.rna.tf32.f32. (C = 4, for the version takes multiples of 4.)"""
    rng = np.random.default_rng(3)
    x = np.zeros((1, 4, 64, 64), np.float32)
    x[0, 0] = np.ldexp(rng.uniform(1, 2, (64, 64)), rng.integers(-60, 60, (64, 64))) * rng.choice([-1, 1], (64, 64))
    x[0, 0, 0, :4] = 1 + 2.0**-11, -1 - 2.0**-11, 1 + 3 * 2.0**-11, 0          # ties
    w = np.zeros((1, 4, 1, 1), np.float32)
    w[0, 0] = 1
    try:
        conv.check_tensor_cores(cupy)
    except conv.NoTensorCores as error:
        pytest.skip(str(error))
    y = conv.conv2d(cupy.asarray(x), cupy.asarray(w), version=5)
    np.testing.assert_array_equal(y.get()[0, 0], conv.round_to_tf32(x[0, 0]))


@pytest.mark.parametrize("layer", [(2, 20, 13, 11, 150, 1), (3, 5, 4, 4, 3, 2), (1, 3, 1, 1, 4, 1), (1, 256, 100, 152, 256, 1), (100, 256, 14, 14, 256, 1)],
                         ids=str)
def test_winograd(cupy, layer):
    n, channels, height, width, out_channels, padding = layer
    rng = np.random.default_rng(2)
    x, w, b = (rng.standard_normal(shape, np.float32) for shape in ((n, channels, height, width), (out_channels, channels, 3, 3), (out_channels,)))
    gx, gw, gb = map(cupy.asarray, (x, w, b))
    y = ops.conv.conv2d(x.astype(float), w.astype(float), b.astype(float), 1, padding)
    dy = rng.standard_normal(y.shape, np.float32)
    dx = ops.conv.conv2d_grad_x(dy.astype(float), w.astype(float), x.shape, 1, padding)
    # kernels/cpu/conv_errors.py: about 1e-5 of the largest value for normal numbers
    for found, right in ((conv.conv2d(gx, gw, gb, 1, padding, version="winograd"), y),
                         (conv.conv2d_grad_x(cupy.asarray(dy), gw, x.shape, 1, padding, version="winograd"), dx)):
        np.testing.assert_allclose(found.get(), right, rtol=0, atol=2e-5 * np.abs(right).max())
