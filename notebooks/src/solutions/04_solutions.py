# %% [markdown]
# # 04  The feature pyramid: solutions
#
# Try the exercises of [notebook 04](../04_the_feature_pyramid.ipynb) first. Each solution here is followed by
# its check.

# %%
import numpy as np

from nprcnn import check_gradients
from nprcnn.course.pyramid import check_fast_nearest_backward, check_pyramid_shapes, check_top_down_backward
from nprcnn.ops.resize import resize_nearest, resize_nearest_grad

rng = np.random.default_rng(0)

# %% [markdown]
# ## Exercise 1: the shapes of the levels
#
# Round both sides up to multiples of 32; then the four divisions leave nothing over. `[::2]` begins with the
# first cell, so of an odd number it takes the larger half: 25 rows give 13.

# %%
def pyramid_shapes(height, width):
    height, width = (-(-size // 32) * 32 for size in (height, width))
    shapes = [(height // stride, width // stride) for stride in (4, 8, 16, 32)]
    rows, columns = shapes[-1]
    return shapes + [((rows + 1) // 2, (columns + 1) // 2)]

print("800 x 1333:", pyramid_shapes(800, 1333))
check_pyramid_shapes(pyramid_shapes)

# %% [markdown]
# ## Exercise 2: the way back through the enlargement, without loops
#
# `np.add.at` is the scatter-add. It takes the rows first, then the columns.

# %%
def fast_nearest_backward(dy, x_shape):
    N, C, H, W = x_shape
    OH, OW = dy.shape[2:]
    # forward: rows = x[:, :, index_of_rows];  y = rows[:, :, :, index_of_columns]
    drows = np.zeros((N, C, OH, W))
    np.add.at(drows, (slice(None), slice(None), slice(None), np.arange(OW) * W // OW), dy)
    dx = np.zeros(x_shape)
    np.add.at(dx, (slice(None), slice(None), np.arange(OH) * H // OH), drows)
    return dx

check_fast_nearest_backward(fast_nearest_backward)

# %% [markdown]
# The other way: a row of the matrix has a single 1, at the cell that was copied. Forward is a product with it, so
# backward is one with its transpose. That is what `nprcnn/ops/resize.py` does, because `np.add.at` is slow.

# %%
def with_matrices(dy, x_shape):
    rows, columns = (np.eye(size)[np.arange(n) * size // n] for n, size in zip(dy.shape[2:], x_shape[2:]))
    return rows.T @ dy @ columns

check_fast_nearest_backward(with_matrices)

# %% [markdown]
# ## Exercise 3: find the bug
#
# Only `l5` is wrong, and the bug gives it too little: with a gradient at the finest output alone, `dl4` gets
# its part, but `dl5` stays 0. In the line of `dl5` the gradient that is handed on is `dinner4`, that of the
# *output* inner4. But inner4 has two readers: the output, and inner3. Its complete gradient is what `dl4`
# already is.

# %%
def top_down_forward(l3, l4, l5):
    inner5 = l5
    inner4 = l4 + resize_nearest(inner5, l4.shape[2:])
    inner3 = l3 + resize_nearest(inner4, l3.shape[2:])
    return (inner3, inner4, inner5), (l3.shape, l4.shape, l5.shape)

def top_down_backward(dy, shapes):
    dinner3, dinner4, dinner5 = dy
    # forward: inner3 = l3 + up(inner4), and inner4 is an output as well: fan-out -> sum
    dinner4 = dinner4 + resize_nearest_grad(dinner3, shapes[1])
    # forward: inner4 = l4 + up(inner5), and inner5 is an output as well
    dinner5 = dinner5 + resize_nearest_grad(dinner4, shapes[2])
    return dinner3, dinner4, dinner5                      # add -> the same gradient to both: dl is dinner

inputs = [rng.standard_normal(s) for s in ((1, 2, 7, 6), (1, 2, 4, 3), (1, 2, 2, 2))]
for row in check_gradients(top_down_forward, top_down_backward, inputs):
    print(f"{row.argument:26} relative error {row.relative:.0e}")
check_top_down_backward(top_down_backward)
