"""Every pair of nprcnn.ops against its own forward pass, and the checker against functions whose answer is known.

The tolerances are those of the method. A central difference with eps 1e-5 in float64 errs by about eps^2 = 1e-10
(truncation) and 1e-16 / eps = 1e-11 (rounding), times the sizes of third derivative and value: 1e-6 leaves room for
both (measured: at most 1e-8). The adjoint test has only the rounding of sums of some thousand products (measured: at
most 2e-14): 1e-12 leaves room for a sum that nearly cancels.
"""
import importlib
import pkgutil

import numpy as np
import pytest

import nprcnn.ops
from nprcnn.gradcheck import GradientCheckError, check_adjoint, check_gradients
from nprcnn.pairs import PAIRS, Case, Pair, adjoint_error, bind, check_case, format_table, run_all, run_pairs

CASES = [pytest.param(pair, case, id=f"{pair.name}: {case.name}") for pair in PAIRS for case in pair.cases]


# ---- the pairs ----

def test_every_pair_of_ops_is_covered():
    found = {}
    for info in pkgutil.iter_modules(nprcnn.ops.__path__):
        module = importlib.import_module(f"nprcnn.ops.{info.name}")
        found.update({name: f for name, f in vars(module).items() if name.endswith(("_forward", "_backward"))})
    assert len(found) >= 34, "the 17 pairs of the design are not all there"
    covered = {f.__name__: f for pair in PAIRS for f in (pair.forward, pair.backward)}
    assert covered == found
    for pair in PAIRS:
        assert pair.forward.__name__ == f"{pair.name}_forward" and pair.backward.__name__ == f"{pair.name}_backward"


def test_every_pair_has_the_awkward_cases():
    for pair in PAIRS:
        assert len({case.name for case in pair.cases}) == len(pair.cases)
        assert any(case.strided for case in pair.cases), f"{pair.name} has no case that is not contiguous"
        inputs = [case.make_inputs(np.random.default_rng(0)) for case in pair.cases]
        assert any(x[0].size == 0 for x in inputs), f"{pair.name} has no empty case"
        assert any(x[0].ndim < 4 or (x[0].shape[0] > 1 and x[0].shape[2] != x[0].shape[3]) for x in inputs), pair.name
        for x, case in zip(inputs, pair.cases):
            if case.strided:
                strided = bind(pair, case)[2]
                np.testing.assert_array_equal(strided[0], x[0])
                assert not strided[0].flags.c_contiguous


@pytest.mark.parametrize("pair, case", CASES)
def test_gradients(pair, case):
    for error in check_gradients(*bind(pair, case)):
        assert error.relative <= 1e-6
        nothing = case.name.startswith(("no ", "empty"))
        assert nothing or error.numeric != 0, "the output does not depend on the argument: nothing was checked"


@pytest.mark.parametrize("pair, case", [p for p in CASES if p.values[0].linear])
def test_linear_pairs_pass_the_adjoint_test(pair, case):
    inputs = bind(pair, case)[2]
    for position in pair.linear:
        if inputs[position] is not None:
            assert adjoint_error(pair, case, position) <= 1e-12


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_linear_flags_are_true(pair):
    """f(a + b) - f(0) = (f(a) - f(0)) + (f(b) - f(0)): without it the adjoint test would mean nothing."""
    forward, _, inputs = bind(pair, pair.cases[0])
    rng = np.random.default_rng(2)
    for i in pair.linear:
        def f(v, i=i):
            return forward(*inputs[:i], v, *inputs[i + 1:])[0] - forward(*inputs[:i], 0 * v, *inputs[i + 1:])[0]
        a, b = rng.standard_normal(inputs[i].shape), rng.standard_normal(inputs[i].shape)
        # sums of at most some hundred products of normal numbers: 1e-12 is a thousand times their rounding
        np.testing.assert_allclose(f(a + b), f(a) + f(b), atol=1e-12)


def test_table_names_every_pair_and_passes():
    rows = run_all()
    text = format_table(rows)
    assert all(row.passed and not row.problem for row in rows)
    assert {row.pair for row in rows} == {pair.name for pair in PAIRS}
    assert all(f"{pair.name} " in text for pair in PAIRS) and "FAIL" not in text
    assert f"{len(rows)} of {len(rows)} passed" in text
    linear = {pair.name for pair in PAIRS if pair.linear}
    assert all((row.adjoint is not None) == (row.pair in linear) for row in rows)


def test_kernel_sets_are_used():
    """A set whose resize_nearest_grad forgets a factor fails, and in that pair only."""
    from nprcnn.backend import NUMPY
    broken = NUMPY._replace(resize_nearest_grad=lambda *args: 0.5 * NUMPY.resize_nearest_grad(*args))
    chosen = [pair for pair in PAIRS if pair.name in ("resize_nearest", "resize_bilinear")]
    rows = run_pairs(chosen, broken)
    failed = [row for row in rows if not row.passed]
    assert {row.pair for row in failed} == {"resize_nearest"}
    text = format_table(rows)
    assert "FAIL" in text and "backward / forward = 0.5" in text
    assert f"{len(rows) - len(failed)} of {len(rows)} passed" in text


def test_a_pair_that_writes_into_dy_is_in_the_table():
    def backward(dy, cache):
        dy *= cache
        return dy
    pair = Pair("square", lambda x: (0.5 * x * x, x), backward, [])
    rows = check_case(pair, Case("5 numbers", lambda rng: (rng.standard_normal(5),)))
    assert len(rows) == 1 and not rows[0].passed and "writes into dy" in rows[0].problem
    assert "FAIL" in format_table(rows) and "0 of 1 passed" in format_table(rows)


# ---- the checker ----

def scale_forward(x, w):
    """y[n, c] = w[c] x[n, c]^3: small, not linear, and with a parameter that is summed over the batch."""
    return w * x**3, (x, w)


def scale_backward(dy, cache):
    x, w = cache
    return dy * w * 3 * x**2, (dy * x**3).sum(axis=0)


def inputs_of_scale():
    rng = np.random.default_rng(5)
    return rng.standard_normal((4, 3)), rng.standard_normal(3)


def test_a_right_one_passes():
    rows = check_gradients(scale_forward, scale_backward, inputs_of_scale(), directions=3)
    assert [(row.position, row.argument, row.problem) for row in rows] == [(0, "argument 0 'x' (4, 3)", ""), (1, "argument 1 'w' (3,)", "")]
    assert 0 < max(row.relative for row in rows) < 1e-6


def test_every_direction_is_another_one_and_the_worst_is_told():
    calls = []

    def forward(x):
        calls.append(x)
        return x**3, x

    x = np.array([0.5, 2.0, -1.0])
    worst = [check_gradients(forward, lambda dy, x: dy * 3 * x**2, [x], directions=n)[0].relative for n in (1, 2, 5)]
    assert len(calls) == 3 + 4 * (1 + 2 + 5) and sorted(worst) == worst
    steps = [c - x for c in calls[-20:]]
    directions = {tuple((np.abs(s) / np.linalg.norm(s)).round(6)) for s in steps}
    assert len(directions) == 5


def test_a_direction_that_crosses_a_kink_counts_only_where_all_do():
    """ReLU, one element at .15 eps from 0: directions along it cross the kink, others do not."""
    x = np.array([1.5e-6, 1.0])
    rng = np.random.default_rng([0, ord("v")])
    rng.standard_normal(2)
    steps = [abs((v / np.linalg.norm(v))[0]) for v in rng.standard_normal((40, 2))]
    assert steps[0] > .15 and min(steps) < .15  # a step along the first one crosses, along another one not

    def backward(dy, x):
        return dy * (x > 0)

    def relu(x):
        return np.maximum(x, 0), x
    with pytest.raises(GradientCheckError, match="A kink or a jump"):
        check_gradients(relu, backward, [x], directions=1)
    assert check_gradients(relu, backward, [x], directions=40)[0].problem == ""
    with pytest.raises(GradientCheckError, match="gradient is wrong"):
        check_gradients(relu, lambda dy, x: 2 * backward(dy, x), [x], directions=40)


def test_an_error_that_one_direction_happens_not_to_see():
    """The wrong part of the gradient is at a right angle to the first direction. Two are tried unless one says otherwise."""
    rng = np.random.default_rng([0, ord("v")])
    _, v = rng.standard_normal(2), rng.standard_normal(2)  # the checker's own dy and direction

    def backward(dy, cache):
        return dy + np.array([v[1], -v[0]])
    check_gradients(lambda x: (x, None), backward, [np.zeros(2)], directions=1)
    with pytest.raises(GradientCheckError, match="gradient is wrong"):
        check_gradients(lambda x: (x, None), backward, [np.zeros(2)])


def test_the_numbers_are_the_known_derivative():
    """f = x^3 at x = 2 with one element: v = +-1, so that both numbers are 12 dy up to the sign."""
    given = []

    def backward(dy, x):
        given.append(dy)
        return dy * 3 * x**2
    row, = check_gradients(lambda x: (x**3, x), backward, [np.array([2.0])], seed=3)
    dy, = given[0]
    assert abs(row.analytic) == pytest.approx(abs(12 * dy), rel=1e-15)
    assert row.numeric == pytest.approx(row.analytic, rel=1e-9)
    assert row.relative == pytest.approx(abs(row.analytic - row.numeric) / abs(row.numeric), rel=1e-3, abs=1e-15)


def test_dy_is_not_the_input_of_the_same_seed():
    """Both drawn from default_rng(0), batch norm's dx would be 1e-7, whatever the backward pass does."""
    x = np.random.default_rng(0).standard_normal((6, 5))

    def backward(dy, cache):
        assert not np.any(dy == cache)
        return dy
    check_gradients(lambda x: (x, x), backward, [x])


def test_same_seed_same_numbers():
    first, second, other = (check_gradients(scale_forward, scale_backward, inputs_of_scale(), seed=s) for s in (1, 1, 2))
    assert first == second != other


@pytest.mark.parametrize("wrong, ratio", [
    (lambda dx, dw: (-dx, dw), "backward / forward = -1"),
    (lambda dx, dw: (2 * dx, dw), "backward / forward = 2"),
    (lambda dx, dw: (dx, dw / 4), "backward / forward = 0.25"),                             # a mean over the batch
    (lambda dx, dw: (np.where(np.arange(12).reshape(4, 3) == 7, 0, dx), dw), "is wrong"),    # one element of twelve
    (lambda dx, dw: (dx * (1 + 3e-6), dw), "is wrong"),                                     # three times the tolerance
    (lambda dx, dw: (dx + 1e-4 * np.array([[1, -1, 0]] + [[0] * 3] * 3), dw), "is wrong"),   # hidden from dy = 1, v = 1
])
def test_a_wrong_gradient_is_caught(wrong, ratio):
    with pytest.raises(GradientCheckError, match=ratio) as caught:
        check_gradients(scale_forward, lambda dy, cache: wrong(*scale_backward(dy, cache)), inputs_of_scale())
    assert [row.problem for row in caught.value.rows].count("wrong") == 1
    text = str(caught.value)
    assert "<grad, v>" in text and "central difference" in text and "relative error" in text and "usual causes" in text
    assert ("argument 0 'x' (4, 3)" in text) != ("argument 1 'w' (3,)" in text)


def test_an_error_that_sums_to_zero_is_caught():
    """softmax's dx = y * dy lacks a term which vanishes for dy = 1, where the true gradient is 0."""
    def forward(x):
        e = np.exp(x - x.max())
        return e / e.sum(), e / e.sum()
    x = np.random.default_rng(0).standard_normal(5)
    check_gradients(forward, lambda dy, y: y * (dy - (dy * y).sum()), [x])
    with pytest.raises(GradientCheckError):
        check_gradients(forward, lambda dy, y: y * (dy - dy.sum() / 5), [x])


def test_tiny_gradients_are_not_passed_by_the_absolute_tolerance():
    x = np.random.default_rng(0).standard_normal(5)
    for backward in (lambda dy, x: 1e-8 * dy, lambda dy, x: -1e-8 * dy, lambda dy, x: 0 * x):
        with pytest.raises(GradientCheckError, match="too small|wrong"):
            check_gradients(lambda x: (1e-8 * x, x), backward, [x])
    check_gradients(lambda x: (1e-8 * x, x), lambda dy, x: 1e-8 * dy, [x], atol=1e-15)
    with pytest.raises(GradientCheckError):
        check_gradients(lambda x: (1e-8 * x, x), lambda dy, x: 1.00001e-8 * dy, [x], atol=1e-15)


def test_an_output_that_does_not_depend_on_the_argument_has_gradient_zero():
    x = np.ones(3)
    row, = check_gradients(lambda x: (np.ones(2), x), lambda dy, x: 0 * x, [x])
    assert row.analytic == row.numeric == row.relative == 0
    with pytest.raises(GradientCheckError):
        check_gradients(lambda x: (np.ones(2), x), lambda dy, x: x, [x])


@pytest.mark.parametrize("offset", [0.0, 1e-7, -3e-6, 1e-5 / 3, -4e-6, 6e-6, -9e-6])
def test_a_kink_is_named(offset):
    """|x - kink| with the kink at x itself and at several distances inside eps. v = +-1 for one element."""
    def forward(x):
        return np.abs(x - 1.0), x
    with pytest.raises(GradientCheckError, match="kink") as caught:
        check_gradients(forward, lambda dy, x: dy * np.sign(x - 1.0), [np.array([1.0 + offset])])
    assert caught.value.rows[0].problem == "kink" and "Move the inputs" in str(caught.value)


def test_a_kink_is_named_even_where_the_numbers_agree():
    """At the kink itself the central difference is the mean slope: a backward that returns it would pass."""
    with pytest.raises(GradientCheckError, match="kink"):
        check_gradients(lambda x: (np.maximum(x, 0), x), lambda dy, x: 0.5 * dy, [np.zeros(1)])


def test_a_kink_farther_than_eps_away_is_none():
    x = np.array([1.0 + 2e-5, 1.0 - 2e-5])
    check_gradients(lambda x: (np.abs(x - 1.0), x), lambda dy, x: dy * np.sign(x - 1.0), [x])


def test_a_jump_is_named():
    for offset in (0.0, 3e-6, 8e-6):
        with pytest.raises(GradientCheckError, match="jump"):
            check_gradients(lambda x: (np.floor(x), x), lambda dy, x: 0 * dy, [np.array([1.0 + offset, 2.0 - offset])])


def test_a_strong_bend_is_no_kink():
    """Third derivatives of some thousands, as batch norm has them for a small variance."""
    x = np.random.default_rng(0).uniform(-1, 1, 6)
    check_gradients(lambda x: (np.sin(12 * x), x), lambda dy, x: dy * 12 * np.cos(12 * x), [x])


def test_writes_are_caught():
    x = np.random.default_rng(0).standard_normal(4)

    def backward(dy, x):
        dy *= 2 * x
        return dy
    with pytest.raises(GradientCheckError, match="backward writes into dy"):
        check_gradients(lambda x: (x * x, x), backward, [x])

    def backward(dy, cache):
        out = cache["kept"][0]
        out *= 2 * dy
        return out
    with pytest.raises(GradientCheckError, match="backward writes into the cache"):
        check_gradients(lambda x: (x * x, {"kept": (x.copy(),)}), backward, [x])

    def backward(dy, x):
        dx = 2 * x * dy
        x[0] = 0
        return dx
    with pytest.raises(GradientCheckError, match="backward writes into the inputs"):
        check_gradients(lambda x: (x * x, x), backward, [x.copy()])

    def forward(x):
        x[x < 0] = 0
        return x, x
    with pytest.raises(GradientCheckError, match="forward writes into the inputs"):
        check_gradients(forward, lambda dy, x: dy * (x > 0), [x.copy()])


def test_a_write_into_a_scalar_dy_is_caught():
    def backward(dy, x):
        dy *= 2
        return dy * x
    with pytest.raises(GradientCheckError, match="writes into dy"):
        check_gradients(lambda x: ((x * x).sum(), x), backward, [np.ones(3)])


def test_shape_dtype_and_number_of_gradients():
    x, w = inputs_of_scale()
    with pytest.raises(GradientCheckError, match=r"argument 1 'w' \(3,\).*\(4, 3\)"):      # no sum over the batch
        check_gradients(scale_forward, lambda dy, c: (scale_backward(dy, c)[0], dy * c[0]**3), (x, w))
    with pytest.raises(GradientCheckError, match="float32"):
        check_gradients(scale_forward, lambda dy, c: scale_backward(dy, c)[0].astype(np.float32), (x, w))
    with pytest.raises(GradientCheckError, match="3 gradients for 2 inputs"):
        check_gradients(scale_forward, lambda dy, c: (*scale_backward(dy, c), dy), (x, w))
    with pytest.raises(GradientCheckError, match="gradients for"):
        check_gradients(scale_forward, lambda dy, c: None, (x, w))


def test_float32_is_refused():
    x, w = inputs_of_scale()
    with pytest.raises(TypeError, match="input 1 is float32.*float64"):
        check_gradients(scale_forward, scale_backward, (x, w.astype(np.float32)))
    with pytest.raises(GradientCheckError, match="float64 into.*float32"):
        check_gradients(lambda x: (x.astype(np.float32), x), lambda dy, x: dy, [x])


def test_nan_does_not_pass():
    x = np.ones(3)
    for forward, backward in ((lambda x: (x, x), lambda dy, x: dy * np.nan),
                              (lambda x: (x * np.nan, x), lambda dy, x: dy)):
        with pytest.raises(GradientCheckError, match="not finite"):
            check_gradients(forward, backward, [x])


def test_several_outputs_options_and_chosen_inputs():
    """Two outputs of different shapes; a constant, an integer array and an option among the inputs."""
    def forward(constant, index, power, x):
        return (constant * x**power, x[index]), (constant, index, power, x)

    def backward(dy, cache):
        (dy_power, dy_picked), (constant, index, power, x) = dy, cache
        dx = dy_power * constant * power * x**(power - 1)
        np.add.at(dx, index, dy_picked)
        return dx

    def overwriting(dy, cache):
        (dy_power, dy_picked), (constant, index, power, x) = dy, cache
        dx = dy_power * constant * power * x**(power - 1)
        dx[index] += dy_picked                                       # loses the second 1
        return dx
    rng = np.random.default_rng(0)
    inputs = (rng.standard_normal(5), np.array([1, 1, 4]), 3, rng.standard_normal(5))
    row, = check_gradients(forward, backward, inputs, wrt=[3])
    assert row.position == 3 and row.numeric != 0
    with pytest.raises(GradientCheckError, match="argument 3 'x'"):
        check_gradients(forward, overwriting, inputs, wrt=[3])


def test_gradients_that_are_none_are_passed_over():
    x, w = inputs_of_scale()
    row, = check_gradients(scale_forward, lambda dy, c: (None, scale_backward(dy, c)[1]), (x, w))
    assert row.position == 1
    rows = check_gradients(lambda x, w, b=None: scale_forward(x, w),
                           lambda dy, c: (*scale_backward(dy, c), None), (x, w, None))
    assert [row.position for row in rows] == [0, 1]


def test_empty_arguments_have_only_a_shape():
    row, = check_gradients(lambda x: (x * x, x), lambda dy, x: 2 * dy * x, [np.ones((0, 3))])
    assert row.relative == 0
    with pytest.raises(GradientCheckError, match=r"shape \(0, 4\)"):
        check_gradients(lambda x: (x * x, x), lambda dy, x: np.ones((0, 4)), [np.ones((0, 3))])


def test_adjoint():
    rng = np.random.default_rng(0)
    a, x, dy = rng.standard_normal((5, 7)), rng.standard_normal(7), rng.standard_normal(5)
    assert check_adjoint(lambda x: a @ x, lambda dy: a.T @ dy, x, dy) <= 1e-12
    b = a.copy()
    b[2, 3] += 1e-9
    with pytest.raises(GradientCheckError, match="Not the adjoint.*relative error"):
        check_adjoint(lambda x: a @ x, lambda dy: b.T @ dy, x, dy)
    with pytest.raises(GradientCheckError, match="bias"):
        check_adjoint(lambda x: a @ x + 1, lambda dy: a.T @ dy, x, dy)
    with pytest.raises(GradientCheckError):
        check_adjoint(lambda x: a @ x, lambda dy: a.T @ dy * np.nan, x, dy)
