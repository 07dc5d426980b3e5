"""What happened when a file met a model: LoadReport. And what file names and old key names tell."""

import hashlib
import re
import warnings
from pathlib import Path
from typing import NamedTuple

from ..errors import WeightsError

# Released by torchvision (the URLs in torchvision/models/resnet.py and models/detection): the name ends in the file's SHA-256.
RELEASES = ("maskrcnn_resnet50_fpn_coco-bf2d0c1e", "maskrcnn_resnet50_fpn_v2_coco-73cbd019", "fasterrcnn_resnet50_fpn_coco-258fb6c6",
            "fasterrcnn_resnet50_fpn_v2_coco-dd69338a", "resnet18-f37072fd", "resnet34-b627a593", "resnet50-0676ba61",
            "resnet50-11ad3fa6", "resnet50-19c8e357", "resnet101-63fe2227", "resnet101-cd907fc2", "resnet152-394f9c45",
            "resnet152-f82ba261")

# Trained when torchvision's FrozenBatchNorm had no eps yet; torchvision sets it to 0 for these weights and no others
EPS_0 = ("maskrcnn_resnet50_fpn_coco-bf2d0c1e", "fasterrcnn_resnet50_fpn_coco-258fb6c6")

# torchvision before 0.13 had no block around a convolution without a norm; its models still accept the old names
OLD_NAMES = (
    (re.compile(r"(.*\bfpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)"), lambda m: f"{m[1]}.0.{m[2]}"),
    (re.compile(r"(.*\brpn\.head\.conv)\.(weight|bias)"), lambda m: f"{m[1]}.0.0.{m[2]}"),
    (re.compile(r"(.*\bmask_head)\.mask_fcn([1-9]\d*)\.(weight|bias)"), lambda m: f"{m[1]}.{int(m[2]) - 1}.0.{m[3]}"),
)


class LoadReport(NamedTuple):
    """What nprcnn.load_weights did; print it.

    matched, missing, left_over: names. Missing are the model's that the file lacks, left over the file's that the model lacks.
    shapes: (name, shape in the file, shape in the model) of those that fit by name only. notes: sentences.
    """

    path: str
    matched: list
    missing: list
    left_over: list
    shapes: list
    notes: list

    @property
    def complete(self):
        """Did every tensor of the model come from the file, and the other way round?"""
        return not (self.missing or self.left_over or self.shapes)

    def __str__(self):
        lines = [f"{Path(self.path).name}: {len(self.matched)} tensors loaded, {len(self.missing)} missing in the file, "
                 f"{len(self.left_over)} left over, {len(self.shapes)} of another shape"]
        differences = [f"{name}: {theirs} in the file, {own} in the model" for name, theirs, own in self.shapes]
        for title, items in (("missing", self.missing), ("left over", self.left_over), ("other shape", differences)):
            lines += [f"  {title:12s}{item}" for item in items[:10]]
            if len(items) > 10:
                lines.append(f"  {title:12s}and {len(items) - 10} more")
        return "\n".join(lines + [f"  {note}" for note in self.notes])

    __repr__ = __str__


def current_names(state):
    """Replace torchvision's old key names by those of today: `rpn.head.conv.weight` is `rpn.head.conv.0.0.weight`.

    Raises
    ------
    WeightsError
        The state has a tensor under both names.
    """
    result = {}
    for name, array in state.items():
        for pattern, renamed in OLD_NAMES:
            match = pattern.fullmatch(name)
            if match:
                name = renamed(match)
                break
        if name in result:
            raise WeightsError(f"{name} is in the file twice, once under its old name; take one of them out")
        result[name] = array
    return result


def check_sha256(path):
    """Compare the end of the name of a released .pth file, `-xxxxxxxx.pth`, with the file's SHA-256.

    A mismatch is an error for a known release and a warning otherwise, unless the digits are a date (model-20241105.pth).

    Raises
    ------
    WeightsError
        A file named as a known release is not that release.
    """
    release = next((name for name in RELEASES if path.name.startswith(name) and path.suffix == ".pth"), None)
    match = re.search(r"-([0-9a-f]{8})\.pth$", path.name)
    if release is None and (match is None or _is_date(match[1])):
        return
    wanted = release[-8:] if release else match[1]
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()[:8]
    if found == wanted:
        return
    message = f"{path}: the SHA-256 of the file begins with {found}, not with the {wanted} of its name"
    if release:
        raise WeightsError(f"{message}; it is damaged or something else: download {release}.pth again")
    warnings.warn(f"{message}; it may be damaged", stacklevel=4)


def _is_date(digits):
    """Could YYYYMMDD be meant?"""
    return bool(re.fullmatch(r"(19|20)\d\d(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])", digits))


def frozen_norms(value):
    """Yield every FrozenBatchNorm2d of a layer, or of a list of layers."""
    if type(value).__name__ == "FrozenBatchNorm2d":  # by name: weights import no layers
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from frozen_norms(item)
    elif hasattr(value, "named_tensors"):
        for item in vars(value).values():
            yield from frozen_norms(item)
