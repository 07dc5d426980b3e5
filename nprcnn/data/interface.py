"""What a data source is: a small base class, parts of a source, and a split that is the same on every machine.

The whole interface is `len(source)`, `source.class_names` (index 0 is "background") and `source[i] -> (image, target)`; the base
class adds a name for each image and a fingerprint of the set, which messages and checkpoints use. A source of your own is ten lines:

    from pathlib import Path
    import numpy as np
    from nprcnn.data import Source, read_image, target_from_masks

    class Cells(Source):
        class_names = ("background", "cell")

        def __init__(self, folder):
            self.files = sorted(Path(folder).glob("*.jpg"))

        def __len__(self):
            return len(self.files)

        def __getitem__(self, i):  # beside cell7.jpg lies cell7.npy, (n, height, width) of 0 and 1
            masks = np.load(self.files[i].with_suffix(".npy"))
            return read_image(self.files[i]), target_from_masks(masks, [1] * len(masks), image_id=i)

Written to cells.py it is `--data python:cells.py:FOLDER` on the command line; `nprcnn data check python:cells.py:FOLDER` checks it.
Two methods more, and a training that goes on notices when an image or an annotation is another than before:

        def name(self, i):
            return self.files[i].name

        def annotation_files(self):
            return [file.with_suffix(".npy") for file in self.files]
"""

import hashlib
from pathlib import Path

import numpy as np

from ..errors import ConfigError
from .faults import refuse


class Source:
    """Base of data sources.

    A subclass has `class_names`, `__len__` and `__getitem__(i) -> (image, target)`: image (H, W, 3) uint8 RGB; target a dict of
    "boxes" (n, 4) float32, x1 y1 x2 y2 in pixels; "labels" (n,) int64 in 1 to K - 1; "masks" (n, H, W) uint8 0 or 1 (missing where
    the set has boxes only); "image_id" int; and "iscrowd" (n,) int64 where the format knows crowds. IndexError past the end.
    """

    class_names = ("background", "object")

    @property
    def category_ids(self):
        """The id that each label has in the set's own files, by label; None for the background."""
        return (None, *range(1, len(self.class_names)))

    def name(self, i):
        """What messages call image i: its file's name where there is one."""
        return f"image {i}"

    def fingerprint(self):
        """16 hex digits that change with the classes, the names of the images and the bytes of `annotation_files`, not with pixels.

        A source that does not say which its annotation files are has none: then a changed annotation goes unnoticed, and so does
        another image where `name` is the base class's, which only counts.
        """
        return digest(self.class_names, [self.name(i) for i in range(len(self))], *(_read(path) for path in self.annotation_files()))

    def annotation_files(self):
        """Paths of the files that hold boxes, masks and classes."""
        return []


class FileSource(Source):
    """Base of the sources that read files. A subclass has `image(i)` and `target(i, shape)`.

    Parameters
    ----------
    report : callable(file, entry, problem, stops)
        Called for every fault (see faults.py). Where it returns, `image` gives None and `target` leaves the row out.
    """

    def __init__(self, report=refuse):
        self.report = report
        self._fingerprint = None

    def __getitem__(self, i):
        if not 0 <= i < len(self):
            raise IndexError(f"image {i} of {len(self)}")
        image = self.image(i)
        return image, self.target(i, image.shape[:2])

    def fingerprint(self):
        """See Source. The files are read once."""
        if self._fingerprint is None:
            self._fingerprint = super().fingerprint()
        return self._fingerprint


def _read(path):
    """The bytes of a file, none where it is missing: that is another fault's business."""
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


def digest(*parts):
    """16 hex digits of bytes and of anything with a repr."""
    whole = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else repr(part).encode()
        whole.update(f"{len(data)}:".encode())  # so that no two lists of parts run together into the same bytes
        whole.update(data)
    return whole.hexdigest()[:16]


class Subset(Source):
    """Some images of a source, in the order given.

    Parameters
    ----------
    source : data source
    indices : sequence of int
        Positions in `source`.
    """

    def __init__(self, source, indices):
        self.source, self.indices = source, [int(i) for i in indices]
        for i in self.indices:
            if not 0 <= i < len(source):
                raise ConfigError(f"image {i} was chosen, but the set has {len(source)}")
        self.class_names = source.class_names

    def __len__(self):
        return len(self.indices)

    def __getitem__(self, i):
        if not 0 <= i < len(self.indices):
            raise IndexError(f"image {i} of {len(self.indices)}")
        return self.source[self.indices[i]]

    @property
    def category_ids(self):
        return self.source.category_ids

    def name(self, i):
        return self.source.name(self.indices[i])

    def fingerprint(self):
        return digest(self.source.fingerprint(), self.indices)


def split_source(source, held_out, seed=0):
    """Split a source at random into images to train on and images to measure on.

    Parameters
    ----------
    source : data source
    held_out : int
        How many images to hold out, 0 to len(source).
    seed : int

    Returns
    -------
    train, held_out : Subset
        Each in the order of the source. A function of (len(source), held_out, seed) alone.
    """
    if not 0 <= held_out <= len(source):
        raise ConfigError(f"{held_out} images cannot be held out of {len(source)}")
    # RandomState: its stream is frozen, so that the split is the same with every version of NumPy
    order = np.random.RandomState(seed).permutation(len(source))
    return Subset(source, np.sort(order[held_out:])), Subset(source, np.sort(order[:held_out]))
