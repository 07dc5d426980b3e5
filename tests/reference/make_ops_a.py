"""Makes the reference values of convolution, linear layer, norms, activations, pooling and resizing.

    python tests/reference/make_ops_a.py

needs PyTorch (2.13 made the stored files) and writes conv.npz, deconv.npz, linear.npz, norm.npz,
activation.npz, pool.npz and resize.npz beside itself. Everything is float64. An entry is called "case/name":
the inputs, the output y, a random cotangent dy, the gradients dx, dw, ... that autograd gives for it, and
"options", in JSON.
"""

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

HERE = Path(__file__).parent


def gradients(function, dy, **inputs):
    """Run function(**inputs) and its backward pass from dy(shape of y): y and {"d" + name: gradient}."""
    tensors = {name: torch.tensor(value, requires_grad=True) for name, value in inputs.items()}
    y = function(**tensors)
    y.backward(torch.tensor(dy(tuple(y.shape))))
    return y.detach().numpy(), {"d" + name: tensor.grad.numpy() for name, tensor in tensors.items()}


class Writer:
    """Collects the entries of one file."""

    def __init__(self, name, seed):
        self.path, self.entries = HERE / f"{name}.npz", {}
        self.normal = np.random.default_rng(seed).standard_normal

    def add(self, case, function, inputs, options=None, **others):
        kept = {}

        def cotangent(shape):
            kept["dy"] = self.normal(shape)
            return kept["dy"]

        y, grads = gradients(function, cotangent, **inputs)
        for name, value in (inputs | others | {"y": y} | kept | grads).items():
            self.entries[f"{case}/{name}"] = np.asarray(value)
        if options:
            self.entries[f"{case}/options"] = np.array(json.dumps(options))

    def save(self):
        np.savez_compressed(self.path, **self.entries)
        print(self.path.name, self.path.stat().st_size, "bytes")


def make_conv():
    out = Writer("conv", 1)
    #  case: x shape, w shape, bias, stride, padding, dilation, groups
    cases = {
        "3x3": ((2, 3, 5, 6), (4, 3, 3, 3), True, (1, 1), (1, 1), (1, 1), 1),
        "3x3_valid": ((2, 2, 6, 5), (3, 2, 3, 3), False, (1, 1), (0, 0), (1, 1), 1),
        "3x3_stride2": ((2, 2, 9, 6), (3, 2, 3, 3), True, (2, 2), (1, 1), (1, 1), 1),
        "3x3_stride2_unused_border": ((2, 2, 6, 8), (2, 2, 3, 3), True, (2, 2), (0, 0), (1, 1), 1),
        "uneven_everything": ((2, 2, 7, 9), (3, 2, 3, 2), True, (2, 3), (2, 1), (1, 2), 1),
        "7x7_stem": ((2, 1, 9, 7), (3, 1, 7, 7), False, (2, 2), (3, 3), (1, 1), 1),
        "dilated": ((2, 2, 5, 6), (3, 2, 3, 3), True, (1, 1), (2, 2), (2, 2), 1),
        "dilated_stride2": ((2, 2, 7, 8), (2, 2, 3, 3), True, (2, 2), (3, 1), (3, 2), 1),
        "groups": ((2, 4, 4, 5), (6, 2, 3, 3), True, (1, 1), (1, 1), (1, 1), 2),
        "groups_stride2": ((2, 3, 7, 5), (6, 1, 3, 3), True, (2, 2), (1, 1), (1, 1), 3),
        "depthwise": ((2, 4, 5, 6), (4, 1, 3, 3), True, (1, 1), (1, 1), (1, 1), 4),
        "1x1": ((2, 5, 4, 7), (3, 5, 1, 1), True, (1, 1), (0, 0), (1, 1), 1),
        "1x1_groups": ((2, 6, 4, 3), (4, 3, 1, 1), True, (1, 1), (0, 0), (1, 1), 2),
        "1x1_stride2": ((2, 5, 5, 8), (3, 5, 1, 1), True, (2, 2), (0, 0), (1, 1), 1),
        "1x1_padded": ((2, 3, 4, 5), (2, 3, 1, 1), True, (1, 1), (1, 2), (1, 1), 1),
        "padding_beyond_kernel": ((2, 2, 4, 3), (3, 2, 2, 2), True, (1, 1), (3, 2), (1, 1), 1),
        "kernel_is_image": ((2, 2, 4, 5), (3, 2, 4, 5), True, (1, 1), (0, 0), (1, 1), 1),
    }
    for case, (x_shape, w_shape, bias, stride, padding, dilation, groups) in cases.items():
        inputs = {"x": out.normal(x_shape), "w": out.normal(w_shape)}
        if bias:
            inputs["b"] = out.normal(w_shape[0])

        def conv(x, w, b=None):
            return F.conv2d(x, w, b, stride, padding, dilation, groups)

        out.add(case, conv, inputs,
                {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups})
    out.save()


def make_deconv():
    out = Writer("deconv", 2)
    #  case: x shape, w shape, bias, stride, padding
    cases = {
        "2x2_stride2": ((2, 3, 3, 4), (3, 2, 2, 2), True, (2, 2), (0, 0)),
        "3x3_stride2": ((2, 2, 5, 3), (2, 3, 3, 3), True, (2, 2), (1, 1)),
        "3x3": ((2, 3, 4, 5), (3, 2, 3, 3), False, (1, 1), (1, 1)),
        "uneven_everything": ((2, 2, 3, 4), (2, 3, 2, 4), True, (3, 2), (0, 1)),
        "gaps": ((2, 2, 3, 4), (2, 3, 2, 1), True, (3, 2), (0, 0)),
    }
    for case, (x_shape, w_shape, bias, stride, padding) in cases.items():
        inputs = {"x": out.normal(x_shape), "w": out.normal(w_shape)}
        if bias:
            inputs["b"] = out.normal(w_shape[1])

        def deconv(x, w, b=None):
            return F.conv_transpose2d(x, w, b, stride, padding)

        out.add(case, deconv, inputs, {"stride": stride, "padding": padding})
    out.save()


def make_linear():
    out = Writer("linear", 3)
    for case, bias in {"bias": True, "no_bias": False}.items():
        inputs = {"x": out.normal((5, 7)), "w": out.normal((3, 7))}
        if bias:
            inputs["b"] = out.normal(3)
        out.add(case, lambda x, w, b=None: F.linear(x, w, b), inputs)
    out.save()


def make_norm():
    out = Writer("norm", 4)
    for shape_name, shape in {"maps": (2, 3, 5, 7), "rows": (6, 3)}.items():
        for train in (True, False):
            mean, var = out.normal(3), np.abs(out.normal(3)) + 0.1
            new_mean, new_var = torch.tensor(mean), torch.tensor(var)

            def norm(x, weight, bias):
                return F.batch_norm(x, new_mean, new_var, weight, bias, train, 0.3, 1e-3)

            inputs = {"x": 2 * out.normal(shape) + 1, "weight": out.normal(3), "bias": out.normal(3)}
            case = f"{shape_name}_{'train' if train else 'infer'}"
            # F.batch_norm writes the new statistics into the tensors it is given, which share these arrays
            out.add(case, norm, inputs, {"train": train, "momentum": 0.3, "eps": 1e-3}, running_mean=mean,
                    running_var=var, new_mean=new_mean.numpy(), new_var=new_var.numpy())
    out.save()


def make_activation():
    out = Writer("activation", 5)
    away_from_0 = out.normal((4, 9))
    away_from_0 += 0.1 * np.sign(away_from_0)
    out.add("relu", torch.relu, {"x": away_from_0})
    out.add("relu_at_zero", torch.relu, {"x": np.array([-1.0, -0.0, 0.0, 1e-300, -1e-300, 2.0])})
    out.add("sigmoid", torch.sigmoid, {"x": 3 * out.normal((4, 9))})
    out.add("sigmoid_far", torch.sigmoid, {"x": np.array([-700.0, -100.0, -40.0, -20.0, 20.0, 40.0, 700.0])})
    out.add("softmax", lambda x: torch.softmax(x, -1), {"x": 3 * out.normal((4, 9))}, {"axis": -1})
    out.add("softmax_axis1", lambda x: torch.softmax(x, 1), {"x": 3 * out.normal((2, 3, 4, 2))}, {"axis": 1})
    out.add("softmax_far", lambda x: torch.softmax(x, -1), {"x": 1000 * out.normal((4, 6))}, {"axis": -1})
    out.save()


def make_pool():
    out = Writer("pool", 6)
    integers = np.random.default_rng(60).integers
    #  case: x, kernel, stride, padding
    cases = {
        "resnet": (out.normal((2, 2, 9, 10)), (3, 3), (2, 2), (1, 1)),
        "2x2": (out.normal((2, 2, 7, 6)), (2, 2), (2, 2), (0, 0)),
        "overlapping": (out.normal((2, 2, 4, 5)), (3, 3), (1, 1), (1, 1)),
        "uneven_everything": (out.normal((2, 2, 9, 11)), (4, 3), (2, 3), (2, 1)),
        "subsample": (out.normal((2, 3, 5, 8)), (1, 1), (2, 2), (0, 0)),
        "gaps": (out.normal((2, 2, 8, 9)), (2, 2), (3, 4), (0, 1)),
        "ties": (integers(0, 3, (2, 2, 9, 8)).astype(float), (3, 3), (2, 2), (1, 1)),
        "ties_below_zero": (integers(-4, -1, (2, 2, 8, 9)).astype(float), (3, 3), (2, 2), (1, 1)),
        "all_minus_infinity": (np.full((1, 1, 5, 6), -np.inf), (3, 3), (2, 2), (1, 1)),
    }
    for case, (x, kernel, stride, padding) in cases.items():
        _, index = F.max_pool2d(torch.tensor(x), kernel, stride, padding, return_indices=True)
        out.add(case, lambda x: F.max_pool2d(x, kernel, stride, padding), {"x": x},
                {"kernel": kernel, "stride": stride, "padding": padding},
                index=index.numpy().astype(np.int16))
    out.add("average", lambda x: x.mean(dim=(2, 3)), {"x": out.normal((2, 3, 5, 7))})
    out.save()


def make_resize():
    out = Writer("resize", 7)
    #  case: size in, size out
    sizes = {
        "twice": ((4, 5), (8, 10)),
        "odd_level": ((4, 7), (7, 13)),
        "smaller": ((9, 8), (4, 3)),
        "one_axis": ((6, 5), (6, 9)),
        "same": ((4, 5), (4, 5)),
        "from_one_pixel": ((1, 1), (3, 4)),
        "to_one_pixel": ((5, 4), (1, 1)),
        "larger_and_smaller": ((4, 11), (9, 5)),
    }
    for case, (before, after) in sizes.items():
        for mode in ("nearest", "bilinear"):
            x = out.normal((2, 1, *before))
            out.add(f"{mode}_{case}", lambda x: F.interpolate(x, size=after, mode=mode), {"x": x})
    # Which pixel "nearest" takes for float32 features, at sizes where i * (H / OH) comes close to integers
    for n_in, n_out in ((17, 799), (27, 333), (45, 333), (7, 49), (49, 7), (100, 199), (25, 13)):
        column = torch.arange(n_in, dtype=torch.float32).reshape(1, 1, n_in, 1)
        chosen = F.interpolate(column, size=(n_out, 1)).numpy().reshape(-1)
        out.entries[f"index_{n_in}_{n_out}/chosen"] = chosen.astype(np.int16)
    out.save()


if __name__ == "__main__":
    torch.set_num_threads(1)
    for make in (make_conv, make_deconv, make_linear, make_norm, make_activation, make_pool, make_resize):
        make()
