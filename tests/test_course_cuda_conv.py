"""The exercises of notebook 17: convolution in CUDA."""
import numpy as np
import pytest
from exercises import assert_explained, assert_solutions_pass, assert_stubs_are_not_solved, assert_three_mistakes_each, solutions_of

from nprcnn.course import cuda_conv
from nprcnn.kernels.cuda_on_cpu import compiler
from nprcnn.ops.conv import conv2d, conv2d_grad_x

NUMBER = "17"


def place(k, p, C, H, W, KH, KW, OH, OW, stride, padding, image=1, guard=True, sign=-1):
    c, i, j = np.unravel_index(k, (C, KH, KW))
    n, oy, ox = np.unravel_index(p, (99, OH, OW))
    iy, ix = oy * stride + i + sign * padding, ox * stride + j + sign * padding
    if guard and not (0 <= iy < H and 0 <= ix < W):
        return -1
    return n * image * C * H * W + c * H * W + iy * W + ix


def exchanged(k, p, C, H, W, *rest):
    """H and W have changed places in the last line."""
    at = place(k, p, C, H, W, *rest)
    return at if at < 0 else at // (H * W) * H * W + at % (H * W) // W * H + at % W


def grad(c, iy, ix, dy, w, stride, padding, test=lambda up, left, stride: up % stride == left % stride == 0, floor=0):
    total = 0
    for o, i, j in np.ndindex(len(w), *w.shape[2:]):
        up, left = iy + padding - i, ix + padding - j
        oy, ox = up // stride, left // stride
        if up >= floor and left >= floor and test(up, left, stride) and oy < dy.shape[1] and ox < dy.shape[2]:
            total += w[o, c, i, j] * dy[o, oy, ox]
    return total


WRONG = [
    ("place_in_x", lambda *a: place(*a, image=0), "the image is missing"),
    ("place_in_x", exchanged, "have changed places"),
    ("place_in_x", lambda *a: place(*a, guard=False), "return -1 there"),
    ("place_in_x", lambda *a: place(*a, sign=0), "the padding is missing"),
    ("place_in_x", lambda *a: place(*a, sign=1), "padding's sign"),
    ("place_in_x", lambda k, p, C, H, W, KH, KW, *a: place(k % C * KH * KW + k // C, p, C, H, W, KH, KW, *a), "c slowest"),
    ("smallest_pad", lambda depth, width: 1, "neighbour column"),
    ("smallest_pad", lambda depth, width: 0, "all 32 banks"),
    ("smallest_pad", lambda depth, width: 32 // depth, "begin in bank 0"),
    ("smallest_pad", lambda depth, width: solutions_of(NUMBER)["smallest_pad"](depth, width) + width, "The pad alone"),
    ("grad_x_thread", lambda *a: grad(*a, test=lambda up, left, stride: up // stride % stride == left // stride % stride == 0),
     "before the quotient"),
    ("grad_x_thread", lambda *a: grad(*a, test=lambda *b: True), "which rows of x does"),
    ("grad_x_thread", lambda *a: grad(*a, test=lambda up, left, stride: up % stride == 0), "columns are not"),
    ("grad_x_thread", lambda *a: grad(*a, floor=-9), "an index of -1"),
    ("grad_x_thread", lambda c, iy, ix, dy, w, *a: grad(c, iy, ix, dy, w[:, :, ::-1, ::-1], *a), "turned round"),
]


def test_stubs_are_not_solved():
    assert_stubs_are_not_solved(cuda_conv)


def test_solutions_pass():
    assert_solutions_pass(cuda_conv, NUMBER)


@pytest.mark.parametrize("exercise, wrong, expected", WRONG)
def test_a_wrong_answer_gets_its_explanation(exercise, wrong, expected):
    assert_explained(cuda_conv, exercise, wrong, expected)


def test_each_exercise_tells_three_mistakes_apart():
    assert_three_mistakes_each(cuda_conv, WRONG)


def test_the_places_of_the_exercise_make_a_convolution():
    rng = np.random.default_rng(6)
    x, w = rng.standard_normal((2, 3, 6, 5)), rng.standard_normal((4, 3, 3, 2))
    y = conv2d(x, w, None, 2, 1)
    flat = np.append(x.ravel(), 0.0)                      # -1 is the padding's 0
    place_in_x = solutions_of(NUMBER)["place_in_x"]
    columns = np.array([[flat[place_in_x(k, p, 3, 6, 5, 3, 2, *y.shape[2:], 2, 1)] for p in range(2 * y[0, 0].size)]
                        for k in range(18)])
    product = (w.reshape(4, -1) @ columns).reshape(4, 2, *y.shape[2:]).swapaxes(0, 1)
    assert np.abs(product - y).max() <= 1e-13             # sums of 18 products of size 1 in float64


def test_the_gradient_of_the_exercise_is_that_of_the_library():
    rng = np.random.default_rng(7)
    dy, w = rng.standard_normal((1, 3, 4, 3)), rng.standard_normal((3, 2, 3, 3))
    dx = conv2d_grad_x(dy, w, (1, 2, 8, 6), 2, 1)
    thread = solutions_of(NUMBER)["grad_x_thread"]
    assert np.abs([thread(*at, dy[0], w, 2, 1) for at in np.ndindex(dx.shape[1:])] - dx.ravel()).max() <= 1e-13


@pytest.mark.parametrize("version, depth, width", [(3, 16, 64), (4, 8, 128)])
def test_the_smallest_pad_of_the_exercise_is_the_one_in_the_file(version, depth, width):
    from nprcnn.kernels.cuda import conv2d as cuda_conv2d, launch
    text = launch.source(cuda_conv2d.FILES[version])
    assert f"#define DEPTH {depth} " in text and f"#define TILE {width} " in text
    assert f"#define PAD {solutions_of(NUMBER)['smallest_pad'](depth, width)} " in text


@pytest.mark.parametrize("pad", [0, 1, 2])
def test_the_inspector_agrees_on_the_pad(pad):
    """Version 3's writes to tile_a take one pass with the exercise's pad, more with a smaller one."""
    try:
        compiler.find()
    except compiler.NoCompiler as error:
        pytest.skip(str(error).split("\n")[0])
    from nprcnn.kernels.cuda_on_cpu.inspection import inspect, watched
    from nprcnn.kernels.cuda_on_cpu.loader import Module
    fill = Module(f"""extern "C" __global__ void fill(float* out) {{
        __shared__ float a[16][64 + {pad}];
        a[threadIdx.x % 16][threadIdx.x / 16] = 1;
        __syncthreads();
        out[threadIdx.x] = a[(threadIdx.x ^ 1) % 16][threadIdx.x / 16]; }}""", mode="inspect").get_function("fill")
    with inspect() as launches:
        watched(fill)((1,), (32,), (np.zeros(32, np.float32),))
    conflicts = launches[0].total("passes", shared=True) - launches[0].total("least_passes", shared=True)
    assert (conflicts == 0) == (pad >= solutions_of(NUMBER)["smallest_pad"](16, 64))
