"""See a step again that diverged: from the replay file and the checkpoint beside it that a guard has left."""

from pathlib import Path

import numpy as np

from ..errors import NprcnnError, WeightsError
from ..pretrained import build_model
from ..trace import Trace
from .checkpoint import read_checkpoint
from .gradients import sampling_rngs
from .guards import load_replay


def replay(path):
    """Run the step again and describe it, a line a stage: how many numbers are not finite, and the largest of the others.

    Returns
    -------
    str

    Raises
    ------
    WeightsError
        The file, or the checkpoint beside it, cannot be read.
    """
    model, trace, about = replay_trace(path)
    lines = [about["text"], "", f"step {about['step']}, images {', '.join(about['names'])}", "", "forward"]
    lines += [_line(name, value) for name, value in trace.values.items()]
    lines += ["", "backward"] + [_line(name, value) for name, value in trace.grad.items()]
    gradients = [(name, p.grad) for name, p in model.named_parameters() if p.grad is not None and not np.isfinite(p.grad).all()]
    return "\n".join(lines + ["", f"{len(gradients)} parameters have gradients that are not finite"]
                     + [_line(name, value) for name, value in gradients[:10]])


def replay_trace(path):
    """The model with the weights before the step and the step's gradients, the Trace, and what the file says: see load_replay."""
    if not Path(path).is_file():
        raise WeightsError(f"{path}: there is no such file; a training that diverges leaves a replay.npz in its folder")
    part, decisions, about = load_replay(path)
    checkpoint = read_checkpoint(Path(path).with_name(Path(about["checkpoint"]).name))
    try:
        stated = checkpoint.about["config"]["model"]
        model = build_model(stated["builder"], stated["arguments"])
        model.load_state_dict(checkpoint.weights)
    except (KeyError, NprcnnError) as error:
        raise WeightsError(f"{path}: the model in {about['checkpoint']} cannot be built ({error})") from error
    trace = Trace()
    with np.errstate(all="ignore"):
        rngs = sampling_rngs(0, about["step"], range(len(part.images)))  # not used where decisions were made
        _, cache = model.losses(part.images, part.targets, rngs, decisions, trace)
        model.backward(cache, trace)
    return model, trace, about


def _line(name, value):
    arrays = [np.asarray(v) for v in (value if isinstance(value, (list, tuple)) else [value])]
    bad = sum(int((~np.isfinite(a)).sum()) for a in arrays)
    finite = [np.abs(a[np.isfinite(a)]).max() for a in arrays if np.isfinite(a).any()]
    shapes = " ".join(str(a.shape) for a in arrays[:3]) + (" ..." if len(arrays) > 3 else "")
    largest = f"{max(finite):.3g}" if finite else "-"
    return f"  {name:<32} {shapes:<28} largest {largest:<10}" + (f" {bad} NOT FINITE" if bad else "")
