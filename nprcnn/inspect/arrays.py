"""How a page carries its arrays: one byte a number, all in one compressed block.

A feature map of float32 would need four bytes a number and hardly compresses. For looking, 256 steps between the smallest and the largest
value are enough: the error is at most 1/510 of that range.
"""

import base64
import zlib

import numpy as np


class Arrays:
    """Collects arrays; `text()` is the whole block. In the page, `unpack` of draw.js reads it."""

    def __init__(self):
        self.parts, self.size = [], 0

    def add(self, array, low=None, high=None):
        """Store an array of numbers in 256 steps between low and high (by default its smallest and largest value).

        Returns
        -------
        dict with the place of the first byte "at", the "shape", and "low" and "step": value = low + step * byte.
        """
        array = np.asarray(array, np.float64)
        array = np.where(np.isfinite(array), array, 0)  # a broken model has NaN; the page shall still open
        low = float(array.min(initial=np.inf)) if low is None else float(low)
        high = float(array.max(initial=-np.inf)) if high is None else float(high)
        if not low <= high:
            low = high = 0.0
        step = (high - low) / 255
        steps = np.zeros(array.shape) if step == 0 else (np.clip(array, low, high) - low) / step
        place = {"at": self.size, "shape": list(array.shape), "low": low, "step": step}
        self.parts.append(np.rint(steps).astype(np.uint8).tobytes())
        self.size += array.size
        return place

    def text(self):
        """The block: zlib, then base64."""
        return base64.b64encode(zlib.compress(b"".join(self.parts), 9)).decode()


def rounded(value, digits=4):
    """Arrays and NumPy numbers as lists and Python numbers of so many significant digits, as JSON wants them."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [rounded(v, digits) for v in value]
    if isinstance(value, (float, np.floating)):
        return float(f"{value:.{digits}g}") if np.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value


def strongest(maps, count):
    """The `count` channels of maps (C, h, w) that vary most, strongest first."""
    return np.argsort(-maps.std(axis=(1, 2)), kind="stable")[:count]


def shrunk(maps, longest):
    """maps (..., h, w) averaged over squares of equal side, so that no side is longer than `longest`; and that side in cells."""
    h, w = maps.shape[-2:]
    factor = -(-max(h, w) // longest)
    if factor == 1:
        return maps, 1
    pad = [(0, 0)] * (maps.ndim - 2) + [(0, -h % factor), (0, -w % factor)]
    maps = np.pad(maps, pad, mode="edge")
    h, w = maps.shape[-2:]
    return maps.reshape(*maps.shape[:-2], h // factor, factor, w // factor, factor).mean(axis=(-3, -1)), factor
