"""Every version of every CUDA kernel, run on the CPU, against the values of PyTorch and torchvision that all implementations meet."""

import functools
from types import SimpleNamespace

import numpy as np
import pytest

from nprcnn import ops
from nprcnn.kernels.cuda import conv2d as conv
from nprcnn.kernels.cuda import launch, nms, norm_relu, paste, pool, roi_align, roi_pool
from nprcnn.kernels.cuda_on_cpu import compiler, inspection
from nprcnn.kernels.cuda_on_cpu.loader import LaunchError, Module
from nprcnn.ops.nms import batched_nms, nms as numpy_nms
from nprcnn.ops.norm import frozen_batch_norm_forward
from nprcnn.ops.paste import paste_masks as numpy_paste
from reference_values import load_cases, strided

try:
    compiler.find()
except compiler.NoCompiler as error:
    pytest.skip(str(error).split("\n")[0], allow_module_level=True)

ALIGN, CONV, NMS, POOL, PASTE = (load_cases(f"{name}.npz") for name in ("roi_align", "conv", "nms", "pool", "paste"))
INPUTS, MASK_TARGET = ALIGN.pop("inputs"), ALIGN.pop("mask target")
NMS_INPUTS = NMS.pop("inputs")
POOL.pop("average")
# The tolerances are those of the NumPy functions' own tests against the same values (test_roi_align.py, test_conv.py), where they are
# derived: the kernels sum the same numbers in another order
TOLERANCE = {np.float64: 1e-12, np.float32: 1e-5}
REALS = [np.float32, np.float64]


@pytest.mark.parametrize("change", [lambda a: a, strided], ids=["contiguous", "strided"])
@pytest.mark.parametrize("real", REALS)
@pytest.mark.parametrize("version", [1, 2, 3])
def test_roi_align_equals_torchvision(version, real, change):
    features, rois = (change(INPUTS[name].astype(real)) for name in ("features", "rois"))
    checked = 0
    for ref in ALIGN.values():
        if version > 1 and ref["options"]["sampling_ratio"] < 1:
            continue
        y = roi_align.roi_align(features, rois, 0.5, (4, 3), **ref["options"], version=version)
        assert y.dtype == real and y.flags.c_contiguous
        np.testing.assert_allclose(y, ref["y"], rtol=0, atol=TOLERANCE[real])
        checked += 1
    assert checked == (8 if version == 1 else 6)


@pytest.mark.parametrize("real", REALS)
@pytest.mark.parametrize("version", [1, 2])
def test_roi_align_grad_equals_torchvision(version, real):
    dy, rois = strided(INPUTS["dy"].astype(real)), INPUTS["rois"].astype(real)
    for ref in ALIGN.values():
        dx = roi_align.roi_align_grad(dy, rois, (2, 3, 9, 13), 0.5, (4, 3), **ref["options"], version=version)
        assert dx.dtype == real
        np.testing.assert_allclose(dx, ref["dx"], rtol=0, atol=TOLERANCE[real])


def test_roi_align_is_of_a_version_that_fits_into_shared_memory():
    """What a GPU would be given; 14 x 14 bins of float64 are too many for version 3."""
    for real, version in ((np.float32, 3), (np.float64, 2)):
        assert roi_align.choose((14, 14), 2, 256, 100, True, np.dtype(real)) == version
    assert roi_align.choose((7, 7), 2, 256, 1000, True, np.dtype(np.float64)) == 3


def test_roi_align_mask_target_equals_torchvision():
    target = roi_align.roi_align(MASK_TARGET["masks"].astype(float), MASK_TARGET["rois"], 1.0, 28, sampling_ratio=-1)
    np.testing.assert_allclose(target, MASK_TARGET["y"], rtol=0, atol=1e-12)


def random_rois(rng, count, images, side):
    corner = rng.uniform(-5, side, (count, 2))
    return np.hstack([rng.integers(0, images, (count, 1)), corner, corner + rng.uniform(0, side, (count, 2))]).astype(np.float32)


@pytest.mark.parametrize("version", [1, 2, 3])
def test_roi_align_of_the_networks_sizes(version):
    """More channels than a block takes, a number of them that fills no tile, 14 bins."""
    rng = np.random.default_rng(0)
    features, rois = rng.standard_normal((2, 70, 25, 19), np.float32), random_rois(rng, 9, 2, 60)
    expected = ops.roi_align.roi_align(features, rois, 0.25, 14)
    # The two orders of summing 16 products of numbers below 5 differ by at most 16 * 5 * 2^-24; coordinates are rounded alike
    np.testing.assert_allclose(roi_align.roi_align(features, rois, 0.25, 14, version=version), expected, rtol=0, atol=1e-5)


def test_ordered_gradient_has_the_same_bits_whatever_the_order_of_threads(monkeypatch):
    """Threads in another order and on more workers, as no two runs of a GPU are alike."""
    rng = np.random.default_rng(1)
    rois, dy = random_rois(rng, 30, 2, 40), rng.standard_normal((30, 5, 7, 7), np.float32)
    results = {}
    for version in (1, 2):
        for order in ("0", "1", "7"):
            monkeypatch.setenv("CUDA_ON_CPU_ORDER", order)
            dx = roi_align.roi_align_grad(dy, rois, (2, 5, 12, 14), 0.25, 7, version=version)
            results.setdefault(version, set()).add(dx.tobytes())
    assert len(results[2]) == 1
    assert len(results[1]) > 1          # or this test could not fail: atomics do depend on the order


@pytest.mark.parametrize("real", REALS)
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("case", NMS)
def test_nms_equals_torchvision(case, version, real):
    boxes, scores = (strided(NMS_INPUTS[name].astype(real)) for name in ("boxes", "scores"))
    kept = nms.nms(boxes, scores, NMS[case]["options"]["iou_threshold"], version=version)
    np.testing.assert_array_equal(kept, NMS[case][f"kept{8 * np.dtype(real).itemsize}"])
    assert kept.dtype == np.int64


@pytest.mark.parametrize("case", NMS)
def test_nms_of_all_groups_in_one_launch(case):
    kept = nms.batched_nms(NMS_INPUTS["boxes"], NMS_INPUTS["distinct_scores"], NMS_INPUTS["groups"], **NMS[case]["options"])
    np.testing.assert_array_equal(kept, NMS[case]["batched"])


@pytest.mark.parametrize("count", [1, 63, 64, 65, 128, 300])
def test_nms_equals_numpy_at_the_edges_of_words(count):
    rng = np.random.default_rng(count)
    corner = rng.uniform(0, 30, (count, 2))
    boxes = np.hstack([corner, corner + rng.uniform(0, 20, (count, 2))]).astype(np.float32)
    scores, groups = np.round(rng.random(count), 1), rng.integers(-1, 5, count)
    for version in (1, 2):
        np.testing.assert_array_equal(nms.nms(boxes, scores, 0.4, version=version), numpy_nms(boxes, scores, 0.4))
    np.testing.assert_array_equal(nms.batched_nms(boxes, scores, groups, 0.4), batched_nms(boxes, scores, groups, 0.4))


def conv_versions():
    for case, ref in CONV.items():
        for version in (1, 2, 3, 4):                # 5 and "winograd": below, against what their rounding allows
            depth = ref["w"][0].size
            taken = version == 1 or ref["options"]["groups"] == 1 and (version < 4 or depth % 4 == 0 and ref["w"][0, 0].size <= 32)
            if taken:
                yield case, version


@pytest.mark.parametrize("case, version", list(conv_versions()))
def test_conv2d_equals_pytorch(case, version):
    ref, options = CONV[case], CONV[case]["options"]
    for real, tolerance in ((np.float64, 1e-12), (np.float32, 1e-4)):
        if version == 4 and real is np.float64:
            continue
        x, w, dy = (strided(ref[name].astype(real)) for name in ("x", "w", "dy"))
        b = ref["b"].astype(real) if "b" in ref else None
        results = {"y": conv.conv2d(x, w, b, **options, version=version),
                   "dx": conv.conv2d_grad_x(dy, w, x.shape, **options, version=version),
                   "dw": conv.conv2d_grad_w(dy, x, w.shape, **options, version=version)}
        for name, result in results.items():
            assert result.dtype == real
            np.testing.assert_allclose(result, ref[name], rtol=tolerance, atol=tolerance, err_msg=name)


# N, C, H, W, O, K, stride, padding: sizes that fill no tile, more than one tile each way, the network's kinds of layer
LAYERS = [(2, 20, 13, 11, 150, 3, 1, 1), (1, 64, 17, 9, 40, 1, 1, 0), (1, 36, 15, 14, 70, 3, 2, 1), (1, 3, 30, 20, 64, 7, 2, 3),
          (2, 132, 6, 7, 5, 1, 2, 0)]


@pytest.mark.parametrize("version", [1, 2, 3, 4])
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_conv2d_of_the_networks_sizes(layer, version):
    n, channels, height, width, out_channels, k, stride, padding = layer
    if version == 4 and not conv.takes_v4(channels, k, k, np.float32):
        with pytest.raises(ValueError, match="version 4"):
            conv.conv2d(np.zeros((1, 3, 8, 8), np.float32), np.zeros((4, 3, 7, 7), np.float32), version=4)
        return
    rng = np.random.default_rng(2)
    x, w = rng.standard_normal((n, channels, height, width), np.float32), rng.standard_normal((out_channels, channels, k, k), np.float32)
    b = rng.standard_normal(out_channels, np.float32)
    exact = functools.partial(np.asarray, dtype=np.float64)
    y = ops.conv.conv2d(exact(x), exact(w), exact(b), stride, padding)
    dy = rng.standard_normal(y.shape).astype(np.float32)
    expected = y, ops.conv.conv2d_grad_x(exact(dy), exact(w), x.shape, stride, padding), \
        ops.conv.conv2d_grad_w(exact(dy), exact(x), w.shape, stride, padding)
    results = (conv.conv2d(x, w, b, stride, padding, version=version), conv.conv2d_grad_x(dy, w, x.shape, stride, padding, version=version),
               conv.conv2d_grad_w(dy, x, w.shape, stride, padding, version=version))
    # Up to 1350 float32 additions, each rounding a partial sum of up to 140 by 2^-24 of it: about 140 * sqrt(1350) * 2^-24 = 3e-4.
    # The largest difference measured is 2e-4; a wrong pixel would make one of about 1
    for result, right in zip(results, expected):
        np.testing.assert_allclose(result, right, rtol=0, atol=1e-3)
    np.testing.assert_allclose(conv.conv2d(x, w, b, stride, padding), y, rtol=0, atol=1e-3)      # whatever version is chosen


# ---- tensor cores

def tf32_by_hand(value):
    """The nearest multiple of 2^(e - 10), e being the exponent of `value`; of two equally near the one further from 0."""
    if value == 0 or not np.isfinite(value):
        return value
    unit = 2.0 ** (max(np.floor(np.log2(abs(float(value)))), -126) - 10)
    return np.copysign(np.floor(abs(float(value)) / unit + 0.5) * unit, value)


def odd_numbers():
    """Both sides of each tie, numbers of all sizes, the largest, denormal ones, and what is no number."""
    rng = np.random.default_rng(9)
    exponents = rng.integers(-140, 127, 3000)
    numbers = np.ldexp(rng.uniform(1, 2, 3000), exponents) * rng.choice([-1, 1], 3000)
    tie = np.float32(1 + 2.0**-11)
    special = [0, -0.0, 1, tie, -tie, np.nextafter(tie, np.float32(0)), np.nextafter(tie, np.float32(2)), 3 * tie, 1e38, 65504,
               np.inf, -np.inf, np.nan]
    return np.concatenate([numbers, special]).astype(np.float32)


def test_rounding_to_tf32():
    """The function for NumPy, and the kernel's own twin of cvt.rna.tf32.f32, bit for bit."""
    numbers = odd_numbers()
    expected = np.array([tf32_by_hand(v) for v in numbers], np.float32)
    rounded = conv.round_to_tf32(numbers)
    np.testing.assert_array_equal(rounded, expected)
    assert np.array_equal(np.signbit(rounded), np.signbit(numbers)) and rounded.dtype == np.float32
    finite = np.isfinite(numbers) & (np.abs(numbers) > 2.0**-126)
    assert (np.abs(rounded[finite] - numbers[finite]) <= np.abs(numbers[finite]) * 2.0**-11).all()
    assert not (rounded[finite].view(np.uint32) & 0x1fff).any()
    text = launch.source("conv2d_v5_tensor_cores") + '''
extern "C" __global__ void round_all(const float* x, float* y, int n) {
    const int i = thread_number();
    if (i < n) y[i] = to_tf32(x[i]);
}'''
    y = np.empty_like(numbers)
    Module(text).get_function("round_all")((len(y) // 64 + 1,), (64,), (numbers, y, np.int32(len(y))))
    np.testing.assert_array_equal(y, rounded)


def test_the_instruction_of_a_warp():
    """mma of three warps on whole numbers, which TF32 and the sums keep exactly: each result equals the matrix product, so every lane
    gives and takes what PTX says that it holds (the fragments of m16n8k8 with .tf32)."""
    text = launch.source("conv2d_v5_tensor_cores") + '''
extern "C" __global__ void one(const float* A, const float* B, const float* C, float* D) {
    const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
    A += warp * 128; B += warp * 64; C += warp * 128; D += warp * 128;
    const float a[4] = {A[g * 8 + q], A[(g + 8) * 8 + q], A[g * 8 + q + 4], A[(g + 8) * 8 + q + 4]};
    const float b[2] = {B[q * 8 + g], B[(q + 4) * 8 + g]};
    float sum[4] = {C[g * 8 + 2 * q], C[g * 8 + 2 * q + 1], C[(g + 8) * 8 + 2 * q], C[(g + 8) * 8 + 2 * q + 1]};
    mma(sum, a, b);
    D[g * 8 + 2 * q] = sum[0]; D[g * 8 + 2 * q + 1] = sum[1];
    D[(g + 8) * 8 + 2 * q] = sum[2]; D[(g + 8) * 8 + 2 * q + 1] = sum[3];
}'''
    rng = np.random.default_rng(8)
    A, B, C = (rng.integers(-99, 100, (3, *shape)).astype(np.float32) for shape in ((16, 8), (8, 8), (16, 8)))
    D = np.empty_like(C)
    Module(text).get_function("one")((1,), (96,), (A, B, C, D))
    np.testing.assert_array_equal(D, A @ B + C)


TF32_LAYERS = [(2, 20, 13, 11, 148, 3, 1, 1), (1, 64, 17, 9, 40, 1, 1, 0), (1, 36, 15, 14, 70, 3, 2, 1), (2, 132, 6, 7, 5, 1, 2, 0)]


@pytest.mark.parametrize("layer", TF32_LAYERS, ids=str)
def test_tensor_cores_equal_the_convolution_of_rounded_numbers(layer):
    n, channels, height, width, out_channels, k, stride, padding = layer
    rng = np.random.default_rng(2)
    x, w = rng.standard_normal((n, channels, height, width), np.float32), rng.standard_normal((out_channels, channels, k, k), np.float32)
    b = rng.standard_normal(out_channels, np.float32)

    def nearest(array):
        return conv.round_to_tf32(array).astype(np.float64)

    y = ops.conv.conv2d(nearest(x), nearest(w), b.astype(np.float64), stride, padding)
    dy = rng.standard_normal(y.shape).astype(np.float32)
    dx, dw = ops.conv.conv2d_grad_x(nearest(dy), nearest(w), x.shape, stride, padding), \
        ops.conv.conv2d_grad_w(nearest(dy), nearest(x), w.shape, stride, padding)
    found = conv.conv2d(strided(x), w, b, stride, padding, version=5)
    # the sums are float32's: the bound of test_conv2d_of_the_networks_sizes
    np.testing.assert_allclose(found, y, rtol=0, atol=1e-3)
    np.testing.assert_allclose(conv.conv2d_grad_w(dy, x, w.shape, stride, padding, version=5), dw, rtol=0, atol=1e-3)
    if stride == 1:
        np.testing.assert_allclose(conv.conv2d_grad_x(dy, w, x.shape, stride, padding, version=5), dx, rtol=0, atol=1e-3)
    # And the rounding is there: a product is off by up to 2 * 2^-11 of itself, a sum of `depth` of them by about sqrt(depth) of that
    exact = ops.conv.conv2d(x.astype(float), w.astype(float), b.astype(float), stride, padding)
    depth = channels * k * k
    assert 2.0**-13 * depth**0.5 < np.abs(found - exact).max() < 8 * 2.0**-11 * depth**0.5


def test_tensor_cores_are_only_chosen_where_they_are_allowed():
    sizes = conv.geometry((1, 64, 20, 20), (64, 64, 3, 3), 1, 1, 1, 1)
    assert conv.choose(sizes, 1, np.float32) == 4 and conv.choose(sizes, 1, np.float32, tf32=True) == 5
    assert conv.choose(sizes, 1, np.float64, tf32=True) == 3 and conv.choose(sizes, 2, np.float32, tf32=True) == 1
    assert conv.choose(sizes, 1, np.float32, winograd=True) == "winograd"
    assert conv.choose(conv.geometry((1, 64, 20, 20), (64, 64, 3, 3), 2, 1, 1, 1), 1, np.float32, winograd=True) == 4
    rng = np.random.default_rng(3)
    x, w = rng.standard_normal((1, 32, 9, 8), np.float32), rng.standard_normal((32, 32, 3, 3), np.float32)
    dy = rng.standard_normal((1, 32, 7, 6), np.float32)
    for options, version in (({"tf32": True}, 5), ({"winograd": True}, "winograd"), ({}, 4)):
        np.testing.assert_array_equal(conv.conv2d(x, w, **options), conv.conv2d(x, w, version=version))
        np.testing.assert_array_equal(conv.conv2d_grad_x(dy, w, x.shape, **options), conv.conv2d_grad_x(dy, w, x.shape, version=version))
        np.testing.assert_array_equal(conv.conv2d_fused(x, w, relu=True, **options), np.maximum(conv.conv2d(x, w, version=version), 0))
    np.testing.assert_array_equal(conv.conv2d_grad_w(dy, x, w.shape, tf32=True, version=None),
                                  conv.conv2d_grad_w(dy, x, w.shape, version=1))       # on the CPU version 1 is the fastest


@pytest.mark.parametrize("capability, good", [("75", False), ("70", False), ("80", True), ("90", True), ("120", True)])
def test_a_gpu_without_tf32_is_refused_by_name(capability, good):
    device = SimpleNamespace(compute_capability=capability)
    module = SimpleNamespace(cuda=SimpleNamespace(Device=lambda: device))
    if good:
        conv.check_tensor_cores(module)
    else:
        with pytest.raises(conv.NoTensorCores, match=rf"this GPU has {capability[0]}\.{capability[1]}: leave tf32 off"):
            conv.check_tensor_cores(module)


# ---- Winograd

# N, C, H, W, O, padding: tiles that hang over, one pixel, more tiles and channels than a block takes
WINOGRAD_LAYERS = [(2, 20, 13, 11, 150, 1), (1, 64, 17, 9, 40, 0), (3, 5, 4, 4, 3, 2), (1, 3, 1, 1, 4, 1), (1, 16, 48, 46, 10, (1, 0))]


@pytest.mark.parametrize("layer", WINOGRAD_LAYERS, ids=str)
def test_winograd_equals_the_formula(layer):
    n, channels, height, width, out_channels, padding = layer
    rng = np.random.default_rng(2)
    x, w = rng.standard_normal((n, channels, height, width), np.float32), rng.standard_normal((out_channels, channels, 3, 3), np.float32)
    b = rng.standard_normal(out_channels, np.float32)
    y = ops.conv.conv2d(x.astype(float), w.astype(float), b.astype(float), 1, padding)
    dy = rng.standard_normal(y.shape).astype(np.float32)
    dx = ops.conv.conv2d_grad_x(dy.astype(float), w.astype(float), x.shape, 1, padding)
    # F(4x4) in float32: at most about 1e-5 of the largest value for normal numbers (kernels/cpu/conv_errors.py); measured here 3e-6, 6e-6
    for found, right in ((conv.conv2d(strided(x), w, b, 1, padding, version="winograd"), y),
                         (conv.conv2d_grad_x(strided(dy), w, x.shape, 1, padding, version="winograd"), dx)):
        np.testing.assert_allclose(found, right, rtol=0, atol=2e-5 * np.abs(right).max())


def test_winograd_takes_what_it_says():
    x, w = np.ones((1, 4, 6, 6), np.float32), np.ones((4, 4, 3, 3), np.float32)
    for bad in ({"stride": 2}, {"dilation": 2}):
        with pytest.raises(ValueError, match="winograd takes float32, 3x3 filters, stride 1"):
            conv.conv2d(x, w, **bad, version="winograd")
    for arrays in ((x, w[:, :, :2]), (x.astype(float), w.astype(float))):
        with pytest.raises(ValueError, match="winograd takes float32, 3x3 filters, stride 1"):
            conv.conv2d(*arrays, version="winograd")
    # where it has no kernel, version 3's numbers
    dy = np.ones((1, 4, 4, 4), np.float32)
    np.testing.assert_array_equal(conv.conv2d_grad_w(dy, x, w.shape, version="winograd"), conv.conv2d_grad_w(dy, x, w.shape, version=3))
    # 36 products for 16 outputs: a quarter, where tiles fit, and the transforms
    share = conv.winograd_share(conv.geometry((1, 256, 64, 64), (256, 256, 3, 3), 1, 1, 1, 1))
    assert 0.25 < share < 0.26 < conv.winograd_share(conv.geometry((1, 256, 14, 14), (256, 256, 3, 3), 1, 1, 1, 1))


def test_a_missing_barrier_before_the_tensor_cores_is_found():
    """mma brings a warp together, but orders no memory, and other warps have written the tiles: each of both barriers is needed."""
    text = launch.source("conv2d_v5_tensor_cores")
    forward = text.index("extern \"C\" __global__ void __launch_bounds__(256, 2) conv2d(")
    assert text.count("__syncthreads();") == 4
    rng = np.random.default_rng(1)
    x, w, b = rng.standard_normal((1, 8, 6, 6), np.float32), rng.standard_normal((8, 8, 3, 3), np.float32), np.zeros(8, np.float32)
    sizes = conv.geometry(x.shape, w.shape, 1, 1, 1, 1)
    for barrier in (0, 1):
        whole = text[forward:].split("__syncthreads();")
        broken = text[:forward] + "".join(part + ("__syncthreads();" if i < len(whole) - 1 and i != barrier else "")
                                          for i, part in enumerate(whole))
        kernel = inspection.watched(Module(broken, mode="inspect", name="conv2d_v5_broken").get_function("conv2d"))
        with inspection.inspect(), pytest.raises(LaunchError, match="race in shared memory|no thread of the block has written"):
            kernel((1, 1), (16, 16), (x, w, b, conv.tap_table(np, sizes), np.empty((1, 8, 6, 6), np.float32), *map(np.int32, sizes)))


@pytest.mark.parametrize("real", REALS)
@pytest.mark.parametrize("case", POOL)
def test_max_pool2d_equals_pytorch(case, real):
    ref = POOL[case]
    y, index = pool.max_pool2d(strided(ref["x"].astype(real)), **ref["options"])
    np.testing.assert_array_equal(y, ref["y"].astype(real))
    if real is np.float64:          # rounding makes new ties
        np.testing.assert_array_equal(index, ref["index"])
    assert index.dtype == np.int64
    for deterministic in (False, True):
        dx = pool.max_pool2d_grad(strided(ref["dy"].astype(real)), ref["index"], ref["x"].shape, deterministic)
        np.testing.assert_allclose(dx, ref["dx"], rtol=0, atol=TOLERANCE[real])


def test_roi_pool_gradients_add_what_overlaps():
    """(Forward and gradient against torchvision's values: test_roi_pool.py. Here the version with a fixed order.)"""
    rng = np.random.default_rng(5)
    x, rois = rng.standard_normal((2, 5, 12, 9), np.float32), random_rois(rng, 30, 2, 40)
    y, index = roi_pool.roi_pool(x, rois, 0.25, 7)
    dy = rng.standard_normal(y.shape, np.float32)
    expected = ops.roi_pool.roi_pool_grad(dy, index, rois, x.shape)
    for deterministic in (False, True):
        # up to 30 * 49 numbers of size 1 are added
        np.testing.assert_allclose(roi_pool.roi_pool_grad(dy, index, rois, x.shape, deterministic), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("case", ["m 7", "m 28"])
def test_paste_equals_torchvision(case):
    ref = PASTE[case]
    size = tuple(ref["size"])
    pasted = paste.paste_masks(ref["masks"], ref["boxes"], size)
    np.testing.assert_allclose(pasted, ref["pasted"], rtol=0, atol=1e-12)
    masks, boxes = ref["masks"].astype(np.float32), ref["boxes"].astype(np.float32)
    np.testing.assert_allclose(paste.paste_masks(masks, boxes, size), numpy_paste(masks, boxes, size), rtol=0, atol=1e-6)


@pytest.mark.parametrize("real", REALS)
def test_norm_relu_equals_the_composition(real):
    rng = np.random.default_rng(3)
    x, residual = rng.standard_normal((2, 2, 5, 6, 7)).astype(real)
    weight, bias, mean, var = rng.random((4, 5)).astype(real)
    scale = weight / np.sqrt(var + real(1e-5))
    y, _ = frozen_batch_norm_forward(x, weight, bias, mean, var)
    args = strided(x), scale, bias - mean * scale
    # the same two operations a number, but for the order of one addition
    np.testing.assert_allclose(norm_relu.norm_relu(*args, relu=False), y, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(norm_relu.norm_relu(*args, residual), np.maximum(y + residual, 0), rtol=1e-6, atol=1e-6)
    assert norm_relu.norm_relu(*args).min() == 0


def test_conv2d_fused_equals_its_steps():
    rng = np.random.default_rng(4)
    x, w, b = rng.standard_normal((2, 3, 8, 9)), rng.standard_normal((5, 3, 3, 3)), rng.standard_normal(5)
    scale, shift, residual = rng.standard_normal(5), rng.standard_normal(5), rng.standard_normal((2, 5, 4, 5))
    for options in ({}, {"scale": scale}, {"shift": shift, "relu": True}, {"residual": residual},
                    {"scale": scale, "shift": shift, "residual": residual, "relu": True}):
        expected = ops.conv.conv2d_fused(x, w, b, 2, 1, **options)
        np.testing.assert_allclose(conv.conv2d_fused(x, w, b, 2, 1, **options), expected, rtol=0, atol=1e-12)
    for bad in ({"scale": scale[:4]}, {"shift": shift[:4]}, {"residual": residual[:1]}):
        with pytest.raises(ValueError, match="must"):
            conv.conv2d_fused(x, w, b, 2, 1, **bad)


@pytest.mark.parametrize("real", REALS)
def test_nothing_to_do(real):
    none = np.zeros((0, 5), real)
    features = np.ones((2, 3, 9, 13), real)
    y = roi_align.roi_align(features, none, 0.5, 7)
    assert y.shape == (0, 3, 7, 7) and y.dtype == real
    assert not roi_align.roi_align_grad(y, none, features.shape, 0.5, 7).any()
    assert nms.nms(none[:, :4], none[:, 0], 0.5).shape == nms.batched_nms(none[:, :4], none[:, 0], np.zeros(0, int), 0.5).shape == (0,)
    w = np.ones((4, 3, 3, 3), real)
    assert conv.conv2d(features[:0], w).shape == (0, 4, 7, 11)
    assert conv.conv2d_grad_x(np.zeros((0, 4, 7, 11), real), w, (0, 3, 9, 13)).shape == (0, 3, 9, 13)
    assert not conv.conv2d_grad_w(np.zeros((0, 4, 7, 11), real), features[:0], w.shape).any()
    assert pool.max_pool2d(features[:0], 2)[0].shape == (0, 3, 4, 6)
    assert paste.paste_masks(np.zeros((0, 7, 7), real), none[:, :4], (5, 6)).shape == (0, 5, 6)


@pytest.mark.parametrize("call, message", [
    (lambda x: roi_align.roi_align(x, np.zeros((1, 4)), 1, 7), r"\(1, 4\)"),
    (lambda x: roi_align.roi_align(x, np.zeros((1, 5)), 1, 7, sampling_ratio=0, version=2), "sampling_ratio of 0"),
    (lambda x: roi_align.roi_align(x, np.zeros((1, 5)), 1, 7, sampling_ratio=10, version=3), "version 3"),
    (lambda x: roi_align.roi_align(x, np.zeros((1, 5)), 1, 14, version=3), "50432 bytes.*use version 2"),
    (lambda x: conv.conv2d(x, np.zeros((4, 2, 3, 3))), r"\(4, 2, 3, 3\)"),
    (lambda x: conv.conv2d(x[:, :2], np.zeros((4, 1, 3, 3)), groups=2, version=3), "no groups"),
    (lambda x: conv.conv2d(x, np.zeros((4, 3, 3, 3)), np.zeros(3)), r"\(4,\)"),
    (lambda x: conv.conv2d(x, np.zeros((4, 3, 13, 3))), "larger"),
    (lambda x: conv.conv2d_grad_w(x, x, (3, 3, 3, 3)), r"\(1, 3, 4, 5\)"),
    (lambda x: pool.max_pool2d(x, 3, padding=2), "at most half"),
    (lambda x: nms.nms(x[0, 0], x[0, 0, :, 0], 0.5), r"\(6, 7\)"),
    (lambda x: paste.paste_masks(x[0], x[0, 0, :3, :4], (4, 4)), r"\(3, 6, 7\)"),
])
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.ones((1, 3, 6, 7)))


def test_what_a_gpu_would_not_take_is_refused():
    x, y = np.zeros(4, np.float32), np.zeros(4, np.float32)
    args = x, y, x, y, np.ones(4, np.float32), 4, 4, 1, 0, 0

    def norm(grid=1, block=32, real=np.float32, args=args):
        launch.launch("norm_relu_v1", "norm_relu", grid, block, args, real)

    norm()
    for grid, block in ((0, 32), ((1, 65536), 32), (2**31, 32), (1, 1025), (1, (32, 33))):
        with pytest.raises(ValueError, match="grid|block"):
            norm(grid, block)
    with pytest.raises(TypeError, match="float32 or float64"):
        norm(real=np.float16)
    with pytest.raises(TypeError, match="contiguous"):
        norm(args=(np.zeros(8, np.float32)[::2], *args[1:]))
    with pytest.raises(TypeError, match="float32.*float64"):
        norm(args=(np.zeros(4), *args[1:]))
    with pytest.raises(ValueError, match="32 bits"):
        norm(args=(*args[:5], 2**31, *args[6:]))
    with pytest.raises(TypeError, match="10 arguments, got 9"):
        norm(args=args[:-1])
    # 2^31 elements that need no memory
    huge = np.lib.stride_tricks.as_strided(x, (2**16, 2**15), (0, 0))
    with pytest.raises(ValueError, match="2147483648 elements"):
        norm(args=(huge, *args[1:]))
    with pytest.raises(LaunchError, match="no kernel 'nothing' here, only: norm_relu"):
        launch.launch("norm_relu_v1", "nothing", 1, 32, args, np.float32)


def test_every_file_says_whether_it_was_measured_and_includes_nothing():
    files = sorted(launch.FOLDER.glob("*.cu"))
    assert len(files) >= 12
    for file in files:
        text = file.read_text()
        assert text.startswith("//") and "\n// measured: " in text, file.name
        assert "#include" not in text, file.name
