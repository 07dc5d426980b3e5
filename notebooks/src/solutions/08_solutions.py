# %% [markdown]
# # 08  RoIPool, RoIAlign and the half pixel: solutions
#
# Try the exercises of [notebook 08](../08_roi_pool_and_roi_align.ipynb) first. Each solution here is followed by its
# check.

# %%
import numpy as np

from nprcnn import check_gradients
from nprcnn.course.roi import check_looked_at, check_point_backward, check_sample_backward

rng = np.random.default_rng(0)

# %% [markdown]
# ## Exercise 1: what RoIPool looks at
#
# Cell $k$ covers the pixels from $k \cdot$ stride to $(k + 1) \cdot$ stride. The first cell gives its beginning, the
# last one its end. That `+ 1` makes the box on average half a cell larger on the right than on the left: a shift on
# top of the rounding.

# %%
def looked_at(boxes, stride):
    first, last = np.floor(boxes[:, :2] / stride + 0.5), np.floor(boxes[:, 2:] / stride + 0.5)
    return np.concatenate([first, last + 1], axis=1) * stride

print(looked_at(np.array([[63.7, 67.3, 113.8, 117.3]]), 16))
corner, side = rng.uniform(100, 200, (1000, 2)), rng.uniform(20, 100, (1000, 2))
boxes = np.concatenate([corner, corner + side], axis=1)
print("mean move of x1, y1, x2, y2 at stride 16:", (looked_at(boxes, 16) - boxes).mean(axis=0).round(1), "pixels")
check_looked_at(looked_at)

# %% [markdown]
# ## Exercise 2: the gradient to the place
#
# Only the fractions depend on the place, $dv/dy = 1$ and $du/dx = 1$ (away from the creases, where $y_0$ jumps).
# Differentiating equation (1) by $v$:
#
# $$\frac{\partial F}{\partial y} = (1 - u)(F_{10} - F_{00}) + u\,(F_{11} - F_{01}) .$$
#
# The difference of the lower and the upper row, interpolated along x. For x the roles change.

# %%
def read_forward(F, ys, xs):
    y0, x0 = np.floor(ys).astype(int), np.floor(xs).astype(int)
    v, u = ys - y0, xs - x0
    y = ((1 - v) * (1 - u) * F[y0, x0] + (1 - v) * u * F[y0, x0 + 1]
         + v * (1 - u) * F[y0 + 1, x0] + v * u * F[y0 + 1, x0 + 1])
    return y, (F, ys, xs)

def point_backward(dy, cache):
    F, ys, xs = cache
    y0, x0 = np.floor(ys).astype(int), np.floor(xs).astype(int)
    v, u = ys - y0, xs - x0
    f00, f01, f10, f11 = F[y0, x0], F[y0, x0 + 1], F[y0 + 1, x0], F[y0 + 1, x0 + 1]
    dys = dy * ((1 - u) * (f10 - f00) + u * (f11 - f01))
    dxs = dy * ((1 - v) * (f01 - f00) + v * (f11 - f10))
    return dys, dxs

F = rng.standard_normal((5, 6))
ys, xs = np.array([0.3, 1.6, 3.2]), np.array([4.4, 0.7, 2.5])
for row in check_gradients(read_forward, point_backward, (F, ys, xs), wrt=[1, 2]):
    print(f"{row.argument:20} relative error {row.relative:.0e}")
check_point_backward(point_backward)

# %% [markdown]
# ## Exercise 3: find the bug
#
# A map of 2 x 2, one point at v = 0.2, u = 0.1. The gradient must be the four weights with which it was read: $(1 -
# v)(1 - u)$, $(1 - v) u$, $v (1 - u)$, $v u$.

# %%
v, u = 0.2, 0.1
print("should be ", np.array([[(1 - v) * (1 - u), (1 - v) * u], [v * (1 - u), v * u]]).round(2).tolist())
print("the buggy ", np.array([[(1 - v) * (1 - u), v * (1 - u)], [(1 - v) * u, v * u]]).round(2).tolist())

# %% [markdown]
# The two off the diagonal are exchanged: the upper right cell gets the lower left one's weight. The four weights
# still sum to 1, so a check with `dy` of ones, or of the sum of `dF`, sees nothing. And on the diagonal, v = u, it is
# even right.

# %%
def corners(ys, xs, H, W):
    y0, x0 = np.floor(ys).astype(int), np.floor(xs).astype(int)
    return y0, np.minimum(y0 + 1, H - 1), ys - y0, x0, np.minimum(x0 + 1, W - 1), xs - x0

def sample_forward(F, ys, xs):
    y0, y1, v, x0, x1, u = corners(ys, xs, *F.shape[1:])
    v, u = v[:, None], u[None]
    y = ((1 - v) * (1 - u) * F[:, y0][:, :, x0] + (1 - v) * u * F[:, y0][:, :, x1]
         + v * (1 - u) * F[:, y1][:, :, x0] + v * u * F[:, y1][:, :, x1])
    return y, (F.shape, ys, xs)

def sample_backward(dy, cache):
    shape, ys, xs = cache
    y0, y1, v, x0, x1, u = corners(ys, xs, *shape[1:])
    dF = np.zeros(shape)
    for i in range(len(ys)):
        for j in range(len(xs)):
            # forward: each cell with its own weight; a cell may be read by several points, so +=
            dF[:, y0[i], x0[j]] += (1 - v[i]) * (1 - u[j]) * dy[:, i, j]
            dF[:, y0[i], x1[j]] += (1 - v[i]) * u[j] * dy[:, i, j]
            dF[:, y1[i], x0[j]] += v[i] * (1 - u[j]) * dy[:, i, j]
            dF[:, y1[i], x1[j]] += v[i] * u[j] * dy[:, i, j]
    return dF

inputs = rng.standard_normal((2, 5, 6)), np.array([0.3, 1.9, 2.4, 4.0]), np.array([0.25, 2.5, 4.8, 4.9])
row, = check_gradients(sample_forward, sample_backward, inputs, wrt=[0])
print(f"{row.argument} relative error {row.relative:.0e}")
check_sample_backward(sample_backward)
