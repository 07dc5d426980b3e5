# %% [markdown]
# # 02  Convolution: solutions
#
# Try the exercises of [notebook 02](../02_convolution.ipynb) first. Each solution here is followed by its check.

# %%
import numpy as np

from nprcnn.course.convolution import check_receptive_field, check_conv_transpose, check_grad_x_by_convolution
from nprcnn.gradcheck import check_adjoint
from nprcnn.ops.conv import conv2d

rng = np.random.default_rng(0)

# %% [markdown]
# ## Exercise 1: the receptive field, by a formula
#
# Keep two numbers: `size`, what an output sees so far, and `step`, how far apart two neighbouring outputs lie in
# the image. A filter of `kernel` taps has `kernel - 1` gaps, each of `dilation` neighbours, each of `step`
# pixels. The layer's own stride sets its *outputs* apart, so it multiplies `step` afterwards.

# %%
def receptive_field(layers):
    size, step = 1, 1
    for kernel, stride, dilation in layers:
        size += (kernel - 1) * dilation * step
        step *= stride
    return size

resnet = [(7, 2, 1), (3, 2, 1)]                           # stem and max-pool
for stage, blocks in enumerate((3, 4, 6, 3)):
    for block in range(blocks):
        resnet += [(1, 1, 1), (3, 2 if stage > 0 and block == 0 else 1, 1), (1, 1, 1)]
    print(f"ResNet-50, C{stage + 2}: {receptive_field(resnet):4} pixels")
check_receptive_field(receptive_field)

# %% [markdown]
# The same four numbers as measured in section 4.
#
# ## Exercise 2: a transposed convolution, by stamping
#
# The last stamp begins at row (H − 1) · stride and is KH high, so that is where y ends. The stamp of one pixel is
# the sum over the input channels of value times filter. Stamps overlap where the filter is larger than the
# stride: `+=`.

# %%
def conv_transpose(x, w, stride):
    N, C, H, W = x.shape
    _, O, KH, KW = w.shape
    y = np.zeros((N, O, (H - 1) * stride + KH, (W - 1) * stride + KW))
    for h in range(H):
        for v in range(W):
            stamp = np.einsum("nc,coij->noij", x[:, :, h, v], w)                  # (N, O, KH, KW)
            y[:, :, h * stride:h * stride + KH, v * stride:v * stride + KW] += stamp
    return y

x, w, dy = (rng.standard_normal(shape) for shape in ((2, 3, 4, 5), (3, 2, 3, 3), (2, 2, 9, 11)))
error = check_adjoint(lambda x: conv_transpose(x, w, 2), lambda dy: conv2d(dy, w, None, 2), x, dy)
print(f"the adjoint of conv2d: relative error {error:.0e}")
check_conv_transpose(conv_transpose)

# %% [markdown]
# ## Exercise 3: dx as a convolution, for any stride
#
# With stride $s$, $y = z[:, :, ::s, ::s]$, where $z$ is the output with stride 1. So first slice → scatter: `dy`
# goes into an array of zeros of z's shape, $s$ apart. Then equation (5).
#
# $z$ has $H + 2p - K + 1$ rows. That can be more than $(OH - 1) s + 1$: the rows after the last one that was kept.
# They get no gradient, but they must be there, or `dx` comes out too small.

# %%
def out_size(size, kernel, stride=1, padding=0):
    return (size + 2 * padding - kernel) // stride + 1

def grad_x_by_convolution(dy, w, x_shape, stride, padding):
    N, C, H, W = x_shape
    O, C, K, K = w.shape
    z_shape = N, O, out_size(H, K, 1, padding), out_size(W, K, 1, padding)
    # forward: y = z[:, :, ::stride, ::stride]
    dz = np.zeros(z_shape)
    dz[:, :, ::stride, ::stride] = dy
    # forward: z = conv2d(x, w, padding=padding), with stride 1; equation (5)
    turned = w[:, :, ::-1, ::-1].swapaxes(0, 1)
    dx = conv2d(dz, turned, padding=K - 1 - padding)
    return dx

check_grad_x_by_convolution(grad_x_by_convolution)

# %% [markdown]
# Most of these multiplications are with zeros: for stride 2, three of four. That is why nprcnn uses col2im there.
