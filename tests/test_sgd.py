import numpy as np
import pytest

from nprcnn.backend import kernel_set
from nprcnn.layers import Parameter
from nprcnn.train import SGD, clip_gradients


def test_three_steps_are_pytorchs():
    w = Parameter(np.array([1.0, -2.0]))
    optimizer = SGD([w], momentum=0.9, weight_decay=0.01)
    # torch.optim.SGD(lr=.1, momentum=.9, weight_decay=.01) in float64 prints
    expected = [[0.949, -2.023], [1.002151, -2.241677], [1.048984749, -2.536244623]]
    for grad, after in zip(([0.5, 0.25], [-1.0, 2.0], [0.0, 1.0]), expected):
        w.grad = np.array(grad)
        optimizer.step(0.1)
        np.testing.assert_allclose(w.data, after, rtol=1e-15)


@pytest.fixture(params=["numpy", "numba"])
def momentum_step(request):
    if request.param == "numba":
        pytest.importorskip("numba")
    return kernel_set(request.param).momentum_step


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(0, 3), (1,), (1000, 1301), (5, 4, 3, 2)], ids=str)
def test_every_kernel_gives_the_same_bits_for_any_order_in_memory(momentum_step, shape, dtype):
    rng = np.random.default_rng(0)
    w, v, grad = (rng.standard_normal(shape).astype(dtype) for _ in range(3))
    expected_v = dtype(0.9) * v + grad + dtype(0.01) * w
    for order in (np.ascontiguousarray, np.asfortranarray, lambda a: np.repeat(a, 2, axis=0)[::2]):
        weights, velocity, before = order(w), order(v.copy()), w.copy()
        moved = momentum_step(weights, order(grad), velocity, 0.1, 0.9, 0.01)
        np.testing.assert_array_equal(velocity, expected_v)
        np.testing.assert_array_equal(moved, w - dtype(0.1) * expected_v)
        assert moved.dtype == dtype and (weights == before).all()  # a new array: others may hold the old one


def test_shapes_that_differ_are_refused(momentum_step):
    with pytest.raises(ValueError, match=r"weights \(2, 3\), gradient \(3,\)"):
        momentum_step(np.zeros((2, 3)), np.zeros(3), np.zeros((2, 3)), 0.1, 0.9, 0)


def test_frozen_and_unreached_parameters_stay():
    frozen, unreached = Parameter(np.ones(2)), Parameter(np.ones(2))
    frozen.trainable = False
    frozen.grad = np.ones(2)
    SGD([frozen, unreached]).step(0.1)
    assert (frozen.data == 1).all() and (unreached.data == 1).all()


def test_clipping_scales_all_gradients_by_one_factor():
    a, b, c = (Parameter(np.zeros(n)) for n in (1, 2, 3))
    a.grad, b.grad = np.array([3.0]), np.array([0.0, 4.0])
    assert clip_gradients([a, b, c], 1.0) == pytest.approx(5.0)
    np.testing.assert_allclose(a.grad, [0.6])
    np.testing.assert_allclose(b.grad, [0.0, 0.8])
    assert clip_gradients([a, b, c], 10.0) == pytest.approx(1.0)
    np.testing.assert_allclose(a.grad, [0.6])
