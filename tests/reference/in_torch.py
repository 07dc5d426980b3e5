"""What the scripts that store PyTorch's answers share. Needs torch; the tests do not."""

import numpy as np
import seeded
import torch

torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)


def t(array, grad=False):
    return torch.tensor(np.asarray(array), requires_grad=grad)


def fill(module, prefix=""):
    """Give every parameter and buffer its number from seeded.py, under the state dict's name."""
    state = {name: value if name.endswith("num_batches_tracked") else t(seeded.tensor(prefix + name, tuple(value.shape)))
             for name, value in module.state_dict().items()}
    module.load_state_dict(state)
    return module.double()


def gradient_dots(module, prefix=""):
    """<gradient, seeded direction> of every parameter, in the order of named_parameters."""
    return np.array([float((p.grad * t(seeded.normal("direction " + prefix + name, *p.shape))).sum())
                     for name, p in module.named_parameters()])


def running_dots(module, prefix=""):
    """The same of the running statistics."""
    return np.array([(b * t(seeded.normal("direction " + prefix + name, *b.shape))).sum().item()
                     for name, b in module.named_buffers() if "running" in name])


def scene():
    """seeded.scene as torchvision wants it."""
    images, targets = seeded.scene()
    inputs = [t(image.transpose(2, 0, 1) / 255.0) for image in images]
    return inputs, [{"boxes": t(x["boxes"].astype(np.float64)), "labels": t(x["labels"]), "masks": t(x["masks"])} for x in targets]
