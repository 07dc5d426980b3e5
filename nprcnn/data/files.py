"""What the readers of annotation formats share: folders of images, JSON, label images, lists of classes. All report what is wrong."""

import gc
import json
import warnings

import numpy as np

from ..errors import DataError
from .images import read_image

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
NOT_CLASSES = ("__ignore__", "_background_", "background", "__background__")


def images_in(folder, report):
    """The image files of a folder, sorted by name, hidden ones left out. Two of one stem (a.png, a.jpg) are a fault."""
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and not file.name.startswith("."))
    stems = {}
    for file in files:
        if file.stem in stems:
            report(file, "", f"has the same name as {stems[file.stem].name} but for the suffix; keep one of them")
        stems.setdefault(file.stem, file)
    return list(stems.values())


def readable_image(path, report, hint=""):
    """read_image, or None after a report. `hint` says what to do where the file is not there."""
    if not path.exists():
        report(path, "", f"is not there{hint}")
        return None
    try:
        return read_image(path)
    except DataError as error:
        report(path, "", str(error).removeprefix(f"{path} "))
        return None


def read_numbers(path, report):
    """A one-channel image file as integers (H, W), palette indices included; None after a report."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                image.load()
                mode, numbers = image.mode, np.asarray(image)
    except Exception as error:  # decoders raise a dozen different kinds on broken bytes
        report(path, "", f"cannot be read as an image ({error})")
        return None
    if numbers.ndim != 2 or numbers.dtype.kind not in "uib":
        report(path, "", f"is of the kind {mode}; one channel of integers is needed, whose values are the objects' numbers")
        return None
    if numbers.min(initial=0) < 0:
        report(path, "", f"holds the number {numbers.min()}; 0 and above are needed")
        return None
    return numbers if numbers.dtype != bool else numbers.astype(np.uint8)


def read_json(path, report):
    """The content of a JSON file, or None after a report."""
    collects = gc.isenabled()
    gc.disable()  # at millions of new lists it would look for cycles again and again: 27 MB took 2.1 s instead of 1.5
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        report(path, "", f"is not JSON ({error or 'nested too deeply'})")
    except OSError as error:
        report(path, "", f"cannot be read ({error.strerror or error})")
    finally:
        if collects:
            gc.enable()
    return None


def class_list(folder, report):
    """("background", names...) from FOLDER/classes.txt, one name a line; None if there is no such file.

    Empty lines and LabelMe's __ignore__ and _background_ are passed over.
    """
    file = folder / "classes.txt"
    if not file.is_file():
        return None
    try:
        names = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, ValueError) as error:
        report(file, "", f"cannot be read as text ({error})")
        return None
    names = [name for name in names if name and name not in NOT_CLASSES]
    if len(set(names)) < len(names):
        report(file, "", f"names {max(names, key=names.count)!r} twice")
    return ("background", *dict.fromkeys(names))
