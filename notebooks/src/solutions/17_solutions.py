# %% [markdown]
# # 17  Convolution in CUDA: solutions
#
# Try the exercises of [notebook 17](../17_convolution_in_cuda.ipynb) first. Each solution here is followed by its check.

# %%
import numpy as np

from nprcnn.course.cuda_conv import check_grad_x_thread, check_place_in_x, check_smallest_pad

# %% [markdown]
# ## Exercise 1: a matrix that is not there
#
# k is (c, i, j) and p is (n, oy, ox), each with the last one fastest. Tap (i, j) of output (oy, ox) meets pixel
# (oy · stride + i − padding, ox · stride + j − padding).

# %%
def place_in_x(k, p, C, H, W, KH, KW, OH, OW, stride, padding):
    c, i, j = k // (KH * KW), k // KW % KH, k % KW
    n, oy, ox = p // (OH * OW), p // OW % OH, p % OW
    iy, ix = oy * stride + i - padding, ox * stride + j - padding
    if not (0 <= iy < H and 0 <= ix < W):
        return -1
    return ((n * C + c) * H + iy) * W + ix

check_place_in_x(place_in_x)

# %% [markdown]
# ## Exercise 2: the smallest pad
#
# Lane t writes word (t % depth) · (width + pad) + t // depth. All 32 are to lie in different banks: try 0, 1, 2, ...
#
# For the two files: 16 lanes go down, 2 columns side by side, rows of 64 words. The rows must begin 2 banks apart, to
# leave room for the second column: 64 + 2. With 8 lanes down and 4 columns it is 4.

# %%
def smallest_pad(depth, width):
    lanes = np.arange(32)
    pad = 0
    while len(np.unique((lanes % depth * (width + pad) + lanes // depth) % 32)) < 32:
        pad += 1
    return pad

check_smallest_pad(smallest_pad)

# %% [markdown]
# ## Exercise 3: a bug on the way back
#
# Forward, iy = oy · stride + i − padding. Given iy and i, there is such an oy only if iy + padding − i is a multiple of
# the stride. The planted version rounds down, and so gives pixels a share of outputs that have never seen them. With
# stride 1 everything is a multiple, and the bug cannot be seen.

# %%
def grad_x_thread(c, iy, ix, dy, w, stride, padding):
    O, OH, OW = dy.shape
    total = 0.0
    for o in range(O):
        for i in range(w.shape[2]):
            up = iy + padding - i
            oy = up // stride
            if up < 0 or up % stride != 0 or oy >= OH:
                continue
            for j in range(w.shape[3]):
                left = ix + padding - j
                ox = left // stride
                if left < 0 or left % stride != 0 or ox >= OW:
                    continue
                total += w[o, c, i, j] * dy[o, oy, ox]
    return total

check_grad_x_thread(grad_x_thread)
