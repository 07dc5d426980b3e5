import numpy as np
import pytest

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
