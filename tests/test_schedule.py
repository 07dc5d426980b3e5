import pytest

from nprcnn.train import step_schedule


def test_warm_up_is_linear_then_the_rate_drops_by_ten():
    lr = step_schedule(0.2, total_steps=90, warmup_steps=10, drops=(2 / 3, 8 / 9))
    assert [lr(s) for s in range(10)] == pytest.approx([0.02 * (s + 1) for s in range(10)], rel=1e-14)
    assert lr(59) == 0.2
    assert lr(60) == lr(79) == pytest.approx(0.02, rel=1e-14)
    assert lr(80) == pytest.approx(0.002, rel=1e-14)


def test_no_warm_up():
    assert step_schedule(0.1, 10, 0)(0) == 0.1
