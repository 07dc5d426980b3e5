"""How much each algorithm rounds: its largest error in float32, over the largest true value.

    python -m nprcnn.kernels.cpu.conv_errors

The truth is direct convolution in float64. "worst" is over all outputs, and it is the figure to plan with; "typical" is the root mean
square, also over the largest value. Features after a ReLU are at least 0; in a trained network they also span a wide range, with single
channels and single pixels far above the others. A tile with one large number is Winograd's worst case: its products mix all the tile's
inputs, so the rounding of the large one reaches the outputs that never see it.
"""

import numpy as np

from . import conv
from .conv_epilogue import make_epilogue
from .conv_geometry import geometry

ALGORITHMS = ("direct", "im2col", "winograd 2x2", "winograd 4x4")


def features(kind, shape, rng):
    """(N, C, H, W) float64 numbers that are float32 numbers."""
    x = rng.standard_normal(shape)
    if kind != "normal":
        x = np.maximum(x, 0)
    if kind == "wide range":
        x *= np.exp(2 * rng.standard_normal((1, shape[1], 1, 1)) + rng.standard_normal(shape))      # e^2: 0.05 to 20 for most
    if kind == "spikes":
        x[rng.random(shape) < 1e-3] *= 1000
    return x.astype(np.float32).astype(np.float64)


KINDS = {"normal": "normal numbers", "after ReLU": "half of them 0", "wide range": "after ReLU, log-normal over channels and pixels",
         "spikes": "after ReLU, one number in 1000 times 1000"}


def table(channels=(64, 256, 512), size=28, draws=3):
    """Rows (what, kind, channels, {algorithm: (worst, typical)}); what is "y" or "dw", the worst of `draws` draws each."""
    rows = []
    for what in ("y", "dw"):
        for kind in KINDS:
            for count in channels:
                errors = {name: (0.0, 0.0) for name in ALGORITHMS}
                for draw in range(draws):
                    for name, error in _errors(what, kind, count, size, np.random.default_rng(draw)).items():
                        errors[name] = tuple(max(pair) for pair in zip(errors[name], error))
                rows.append((what, kind, count, errors))
    return rows


def _errors(what, kind, channels, size, rng):
    """{algorithm: (worst, typical)} of one draw."""
    x = features(kind, (1, channels, size, size), rng)
    w = rng.standard_normal((64, channels, 3, 3)).astype(np.float32) * np.float32((9 * channels) ** -0.5)
    dy = rng.standard_normal((1, 64, size, size)).astype(np.float32)
    geo = geometry(x.shape, w.shape, 1, 1)
    as32 = x.astype(np.float32)
    if what == "y":
        truth = conv.convolve("im2col", x, w.astype(np.float64), geo, make_epilogue(geo, np.dtype(np.float64)))
        found = {name: conv.convolve(name, as32, w, geo, make_epilogue(geo, np.dtype(np.float32))) for name in ALGORITHMS}
    else:
        truth = conv.gradient_to_filters("im2col", dy.astype(np.float64), x, geo)
        found = {name: conv.gradient_to_filters(name, dy, as32, geo) for name in ALGORITHMS if name != "direct"}
    largest = np.abs(truth).max()
    return {name: (np.abs(y - truth).max() / largest, np.sqrt(np.mean((y - truth) ** 2)) / largest) for name, y in found.items()}


def main():
    print("largest error / largest value (root mean square / largest value), float32 against float64")
    print(f"{'':4}{'features':12}{'C':>5}" + "".join(f"{name:>22}" for name in ALGORITHMS))
    for what, kind, channels, errors in table():
        cells = [f"{worst:.1e} ({typical:.1e})" if worst else "" for worst, typical in errors.values()]
        print(f"{what:4}{kind:12}{channels:5}" + "".join(f"{cell:>22}" for cell in cells))


if __name__ == "__main__":
    main()
