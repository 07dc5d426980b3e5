import numpy as np
import pytest

from nprcnn.errors import ConfigError
from nprcnn.train import cosine_schedule, make_schedule, step_schedule


def test_warm_up_is_linear_then_the_rate_drops_by_ten():
    lr = step_schedule(0.2, total_steps=90, warmup_steps=10, drops=(2 / 3, 8 / 9))
    assert [lr(s) for s in range(10)] == pytest.approx([0.02 * (s + 1) for s in range(10)], rel=1e-14)
    assert lr(59) == 0.2
    assert lr(60) == lr(79) == pytest.approx(0.02, rel=1e-14)
    assert lr(80) == pytest.approx(0.002, rel=1e-14)


def test_no_warm_up():
    assert step_schedule(0.1, 10, 0)(0) == 0.1 == cosine_schedule(0.1, 10, 0)(0)


def test_cosine():
    lr = cosine_schedule(0.2, total_steps=110, warmup_steps=10)
    assert [lr(s) for s in range(10)] == pytest.approx([0.02 * (s + 1) for s in range(10)], rel=1e-14)
    assert lr(10) == 0.2 and lr(60) == pytest.approx(0.1, rel=1e-14)
    assert [lr(s) for s in (35, 85)] == pytest.approx([0.1 + 0.1 * np.cos(np.pi / 4), 0.1 - 0.1 * np.cos(np.pi / 4)], rel=1e-14)
    assert 0 < lr(109) < 1e-4 and all(lr(s) > lr(s + 1) for s in range(10, 109))
    assert cosine_schedule(0.2, 100, 0, last=0.02)(100) == pytest.approx(0.02)


def test_a_warm_up_as_long_as_the_training():
    assert cosine_schedule(1.0, 4, 4)(3) == 1.0


def test_by_name():
    for s in range(20):
        assert make_schedule("step", 0.1, 20, 5, (0.5,))(s) == step_schedule(0.1, 20, 5, (0.5,))(s)
        assert make_schedule("cosine", 0.1, 20, 5)(s) == cosine_schedule(0.1, 20, 5)(s)
    with pytest.raises(ConfigError, match="schedule='triangle' is not one of step, cosine"):
        make_schedule("triangle", 0.1, 20, 5)
