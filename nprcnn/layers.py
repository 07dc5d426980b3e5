"""Layers: parameters, and the call of one forward/backward pair from nprcnn.ops.

Every layer has the same two methods:

    y, cache = layer.forward(x, train)      cache is None when train is False
    dx = layer.backward(dy, cache)          adds to parameter.grad, returns the gradient of the input

x and dx have one shape, y and dy another; each class states them. What a backward pass computes stands in the pair, under nprcnn.ops.

The cache is returned, never kept on the layer: one layer may run several times in a forward pass (the RPN head runs on five pyramid
levels), and each run needs its own.
"""

import numpy as np

from . import backend, devices
from .errors import WeightsError
from .ops.activation import relu_backward, relu_forward
from .ops.conv import conv2d_backward, conv2d_forward
from .ops.conv_at import conv2d_backward_at
from .ops.conv_fused import conv2d_fused_backward, conv2d_fused_forward
from .ops.deconv import conv_transpose2d, conv_transpose2d_backward, conv_transpose2d_forward
from .ops.linear import linear_backward, linear_forward
from .ops.norm import (batch_norm_backward, batch_norm_forward, frozen_batch_norm_backward,
                       frozen_batch_norm_forward)


class Parameter:
    """An array that training changes: `data`, and `grad` of the same shape (None until a backward pass reaches it)."""

    def __init__(self, data):
        self.data = data
        self.grad = None
        self.trainable = True

    def add_grad(self, grad):
        """grad has the shape of data. Gradients always add up: a layer that ran five times gets five contributions. zero_grad() starts
        anew.

        The first gradient is kept as it is, not copied: whoever computed it has no more use for it."""
        grad = grad.astype(self.data.dtype, copy=False)
        self.grad = grad if self.grad is None else self.grad + grad


class Buffer:
    """An array that belongs to the state but has no gradient: the running statistics of batch norm."""

    def __init__(self, data):
        self.data = data


class Layer:
    """What owns parameters, directly or through layers (or lists of layers) among its attributes.

    The attribute names are the keys of the state dict: `model.backbone.fpn.inner_blocks[0][0].weight` is
    "backbone.fpn.inner_blocks.0.0.weight", the name that torchvision uses.
    """

    def named_tensors(self, prefix=""):
        """Yield (name, Parameter or Buffer) in the order in which the attributes were made."""
        for name, value in vars(self).items():
            yield from named_tensors(value, prefix + name)

    def named_parameters(self):
        """Yield (name, Parameter)."""
        return ((name, t) for name, t in self.named_tensors() if isinstance(t, Parameter))

    def parameters(self):
        """List of all Parameters."""
        return [parameter for _, parameter in self.named_parameters()]

    def zero_grad(self):
        """Forget all gradients. Backward passes add, so call this once a step."""
        for parameter in self.parameters():
            parameter.grad = None

    def state_dict(self):
        """All parameters and buffers: {name: NumPy array}, under torchvision's names. Not copied, but for those on a GPU."""
        return {name: devices.to_host(tensor.data, "state") for name, tensor in self.named_tensors()}

    def load_state_dict(self, state):
        """Take over all parameters and buffers.

        Raises
        ------
        WeightsError
            A name is missing or left over, or a shape differs; then nothing was changed.
        """
        own = dict(self.named_tensors())
        # PyTorch's batch norm also counts its batches; the count has no use here, and FrozenBatchNorm has none
        state = {name: array for name, array in state.items() if not name.endswith(".num_batches_tracked")}
        problems = [f"{name} is missing" for name in own if name not in state]
        problems += [f"{name} is not part of this model" for name in state if name not in own]
        problems += [f"{name} has shape {tuple(state[name].shape)}, the model wants {own[name].data.shape}"
                     for name in own if name in state and tuple(state[name].shape) != own[name].data.shape]
        if problems:
            more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
            raise WeightsError(f"the weights do not fit the model: {'; '.join(problems[:3])}{more}. "
                               "Build the model that they were saved from (depth, num_classes, options).")
        for name, tensor in own.items():
            tensor.data = np.array(devices.to_host(state[name], "state"), tensor.data.dtype, like=tensor.data)

    def to(self, device):
        """Move all parameters and buffers to "cpu" or "cuda" (see nprcnn.devices). Returns self.

        Gradients are forgotten; an optimiser is made afterwards, for its velocity lies where the parameters are.

        Raises
        ------
        BackendError
            There is no GPU, or nothing to use it with, or too little memory; then nothing was moved.
        """
        devices.move([tensor for _, tensor in self.named_tensors()], device)
        self.zero_grad()
        return self

    def astype(self, dtype):
        """Cast all parameters and buffers in place (gradients are checked in float64). Returns self."""
        for _, tensor in self.named_tensors():
            tensor.data = tensor.data.astype(dtype)
        self.zero_grad()
        return self


def named_tensors(value, name):
    """Yield (name, Parameter or Buffer) of an attribute: a layer, a list of layers, a Parameter; of anything else nothing."""
    if isinstance(value, (Parameter, Buffer)):
        yield name, value
    elif isinstance(value, Layer):
        yield from value.named_tensors(name + ".")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from named_tensors(item, f"{name}.{index}")


# Initial values. `shape` is (out, in, kh, kw) or (out, in).

def kaiming_normal_fan_out(rng, shape):
    """N(0, sqrt(2 / fan_out)): keeps the variance of the gradient through conv + ReLU (He et al. 2015, section 2.2)."""
    return rng.standard_normal(shape, np.float32) * np.float32(np.sqrt(2 / (shape[0] * np.prod(shape[2:]))))


def kaiming_uniform_a1(rng, shape):
    """U(-b, b), b = sqrt(3 / fan_in): keeps the variance through a layer without ReLU. torchvision's FPN."""
    bound = np.sqrt(3 / np.prod(shape[1:]))
    return rng.uniform(-bound, bound, shape).astype(np.float32)


def uniform_fan_in(rng, shape):
    """U(-b, b), b = 1 / sqrt(fan_in): PyTorch's default for Linear, which the box head uses. (Biases begin at 0 here, not so there.)"""
    bound = 1 / np.sqrt(np.prod(shape[1:]))
    return rng.uniform(-bound, bound, shape).astype(np.float32)


def normal_001(rng, shape):
    """N(0, .01): torchvision's RPN head."""
    return rng.standard_normal(shape, np.float32) * np.float32(0.01)


class Conv2d(Layer):
    """Convolution. weight (out, in / groups, k, k), bias (out,) or None. x (N, in, H, W) -> y (N, out, H', W')."""

    def __init__(self, rng, in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1, groups=1,
                 bias=True, init=kaiming_normal_fan_out):
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        self.weight = Parameter(init(rng, (out_channels, in_channels // groups, kernel_size, kernel_size)))
        self.bias = Parameter(np.zeros(out_channels, np.float32)) if bias else None

    def forward(self, x, train):
        bias = None if self.bias is None else self.bias.data
        if not train:
            return backend.active(x).conv2d(x, self.weight.data, bias, self.stride, self.padding, self.dilation,
                                           self.groups), None
        return conv2d_forward(x, self.weight.data, bias, self.stride, self.padding, self.dilation, self.groups,
                              kernels=backend.active(x))

    def backward(self, dy, cache, needs_dx=True):
        """needs_dx=False: returns None, for a first layer, whose input is the image."""
        dx, dw, db = conv2d_backward(dy, cache, needs_dx, kernels=backend.active(dy))
        self.weight.add_grad(dw)
        if self.bias is not None:
            self.bias.add_grad(db)
        return dx

    def backward_at(self, dy, cache, pixels):
        """As `backward`, where only P pixels of the output have a gradient: dy (out, P) -> dcolumns (in * k * k, P). See ops.conv_at."""
        dcolumns, dw, db = conv2d_backward_at(dy, cache, pixels)
        self.weight.add_grad(dw)
        if self.bias is not None:
            self.bias.add_grad(db)
        return dcolumns


class ConvTranspose2d(Layer):
    """Transposed convolution ("deconvolution"). weight (in, out, k, k), bias (out,). x (N, in, H, W) -> y (N, out, H', W')."""

    def __init__(self, rng, in_channels, out_channels, kernel_size, stride=1, padding=0, init=kaiming_normal_fan_out):
        self.stride, self.padding = stride, padding
        self.weight = Parameter(init(rng, (in_channels, out_channels, kernel_size, kernel_size)))
        self.bias = Parameter(np.zeros(out_channels, np.float32))

    def forward(self, x, train):
        if not train:
            return self.forward_fused(x, relu=False), None
        return conv_transpose2d_forward(x, self.weight.data, self.bias.data, self.stride, self.padding, kernels=backend.active(x))

    def forward_fused(self, x, relu):
        """Outside of training: y, through a ReLU or not."""
        return conv_transpose2d(x, self.weight.data, self.bias.data, self.stride, self.padding, relu, kernels=backend.active(x))

    def backward(self, dy, cache):
        dx, dw, db = conv_transpose2d_backward(dy, cache, kernels=backend.active(dy))
        self.weight.add_grad(dw)
        self.bias.add_grad(db)
        return dx


def relu_after(h, train):
    """ReLU of what a layer has just put out, (any shape) -> y, cache. Outside of training it is taken in place: nobody else has h."""
    if train:
        return relu_forward(h)
    return np.maximum(h, 0, out=h), None


def flatten(x):
    """(R, ...) -> (R, F), what Linear takes. reshape(R, -1) cannot tell what F is when there are no rows."""
    return x.reshape(len(x), int(np.prod(x.shape[1:])))


class Linear(Layer):
    """Fully connected. weight (out, in), bias (out,). x (R, in) -> y (R, out)."""

    def __init__(self, rng, in_features, out_features, init=uniform_fan_in):
        self.weight = Parameter(init(rng, (out_features, in_features)))
        self.bias = Parameter(np.zeros(out_features, np.float32))

    def forward(self, x, train):
        y, cache = linear_forward(x, self.weight.data, self.bias.data)
        return y, cache if train else None

    def backward(self, dy, cache):
        dx, dw, db = linear_backward(dy, cache)
        self.weight.add_grad(dw)
        self.bias.add_grad(db)
        return dx


class BatchNorm2d(Layer):
    """Batch norm: with train=True it uses the batch's statistics and updates the running ones. x, y (N, C, H, W); all vectors (C,)."""

    def __init__(self, channels, eps=1e-5, momentum=0.1):
        self.eps, self.momentum = eps, momentum
        self.weight = Parameter(np.ones(channels, np.float32))
        self.bias = Parameter(np.zeros(channels, np.float32))
        self.running_mean = Buffer(np.zeros(channels, np.float32))
        self.running_var = Buffer(np.ones(channels, np.float32))

    def forward(self, x, train):
        y, cache, (mean, var) = batch_norm_forward(x, self.weight.data, self.bias.data, self.running_mean.data,
                                                   self.running_var.data, train, self.momentum, self.eps)
        if not train:
            return y, None
        self.running_mean.data, self.running_var.data = mean, var
        return y, cache

    def scale_and_shift(self):
        """Outside of training: y = x * scale + shift, (C,) each."""
        scale = self.weight.data / np.sqrt(self.running_var.data + self.eps)
        return scale, self.bias.data - self.running_mean.data * scale

    def backward(self, dy, cache):
        dx, dweight, dbias = batch_norm_backward(dy, cache)
        self.weight.add_grad(dweight)
        self.bias.add_grad(dbias)
        return dx


class FrozenBatchNorm2d(Layer):
    """Batch norm whose statistics, weight and bias are constants: a scale and a shift a channel.

    x, y (N, C, H, W); all vectors (C,). Detection fine-tunes with one or two images a GPU, too few for statistics, so pretrained
    backbones keep theirs.
    """

    def __init__(self, channels, eps=1e-5):
        self.eps = eps
        self.weight = Buffer(np.ones(channels, np.float32))
        self.bias = Buffer(np.zeros(channels, np.float32))
        self.running_mean = Buffer(np.zeros(channels, np.float32))
        self.running_var = Buffer(np.ones(channels, np.float32))

    def forward(self, x, train):
        y, cache = frozen_batch_norm_forward(x, self.weight.data, self.bias.data, self.running_mean.data,
                                             self.running_var.data, self.eps)
        return y, cache if train else None

    def scale_and_shift(self):
        """y = x * scale + shift, (C,) each."""
        scale = self.weight.data / np.sqrt(self.running_var.data + self.eps)
        return scale, self.bias.data - self.running_mean.data * scale

    def backward(self, dy, cache):
        return frozen_batch_norm_backward(dy, cache)


NORMS = {"batch": BatchNorm2d, "frozen": FrozenBatchNorm2d}


def conv_block(rng, in_channels, out_channels, kernel_size, norm=None, init=kaiming_normal_fan_out):
    """[convolution, norm or None]: what conv_norm_relu takes. norm: None or a key of NORMS.

    The convolution keeps the size (kernel_size odd). With a norm it needs no bias of its own.
    """
    return [Conv2d(rng, in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=norm is None, init=init),
            NORMS[norm](out_channels) if norm else None]


def conv_norm_relu(conv, norm, x, train, residual=None, relu=True):
    """y = relu(norm(conv(x)) + residual): the one place where convolution, norm, sum and ReLU meet.

    x (N, C, H, W) -> y (N, O, H', W') and a cache for conv_norm_relu_backward (None without train). norm may be None, and so may
    residual (an array of y's shape); relu=False leaves the ReLU out.

    One operation (ops.conv_fused) instead of four passes over the map, wherever the norm is a constant scale and shift. In training
    BatchNorm2d is not: its statistics are known only when the whole map is there, so then each step runs by itself.
    """
    if train and isinstance(norm, BatchNorm2d):
        return _step_by_step(conv, norm, x, residual, relu)
    scale, shift = (None, None) if norm is None else norm.scale_and_shift()
    bias = None if conv.bias is None else conv.bias.data
    geometry = (conv.stride, conv.padding, conv.dilation, conv.groups)
    if train:
        return conv2d_fused_forward(x, conv.weight.data, bias, residual, scale, shift, relu, *geometry, kernels=backend.active(x))
    return backend.active(x).conv2d_fused(x, conv.weight.data, bias, *geometry, scale, shift, residual, relu), None


def conv_norm_relu_backward(conv, norm, dy, cache, needs_dx=True):
    """dy, of y's shape -> dx, of x's (None if not needed), and the gradient of the residual, of y's (None if there was none)."""
    if isinstance(norm, BatchNorm2d):
        return _step_by_step_backward(conv, norm, dy, cache, needs_dx)
    dx, dw, db, dresidual = conv2d_fused_backward(dy, cache, needs_dx, kernels=backend.active(dy))
    conv.weight.add_grad(dw)
    if conv.bias is not None:
        conv.bias.add_grad(db)
    return dx, dresidual


def _step_by_step(conv, norm, x, residual, relu):
    """The same, each step with its cache."""
    y, conv_cache = conv.forward(x, train=True)
    y, norm_cache = norm.forward(y, train=True)
    if residual is not None:
        y = y + residual
    relu_cache = None
    if relu:
        y, relu_cache = relu_forward(y)
    return y, (conv_cache, norm_cache, relu_cache)


def _step_by_step_backward(conv, norm, dy, cache, needs_dx):
    conv_cache, norm_cache, relu_cache = cache
    # forward: y = relu(s), s = n + residual      the sum gives the same gradient to both
    ds = dy if relu_cache is None else relu_backward(dy, relu_cache)
    # forward: n = norm(c)
    dc = norm.backward(ds, norm_cache)
    # forward: c = conv(x)
    return conv.backward(dc, conv_cache, needs_dx), ds
